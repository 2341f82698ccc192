"""A port in use is told in one line, before anything heavy."""

import contextlib
import socket
import threading

import pytest

from sagellm_lifetime.cli import engine
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.vllm.launch import address
from sagellm_lifetime.vllm.launch.address import check_address
from sagellm_lifetime.vllm.launch.vllm_args import LaunchError


@contextlib.contextmanager
def bound(host="127.0.0.1", *, listens=True):
    """A port that somebody has."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, 0))
        if listens:
            taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("host", [[], ["--host", "127.0.0.1"], ["--host=localhost"]])
@pytest.mark.parametrize("listens", [True, False], ids=["listens", "loads its model"])
def test_a_port_in_use(host, listens):
    with bound(listens=listens) as port:
        for words in (["--port", str(port)], [f"--port={port}"], ["--por", str(port)]):
            with pytest.raises(LaunchError, match=f":{port}: the port is in use"):
                check_address([*host, *words])
    check_address([*host, "--port", str(port)])


def test_what_has_ended_is_no_obstacle():
    """Connections of a server that was stopped linger for a minute."""
    with bound() as port:
        pass
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        served.close()  # first, so that this side's linger
        client.close()
    assert port in address._ports_of_connections()
    check_address(["--port", str(port), "--host", "127.0.0.1"])


def test_another_address_of_the_machine_is_free():
    with bound("127.0.0.1") as port:
        check_address(["--host", "127.0.0.2", "--port", str(port)])


def test_ipv6():
    try:
        taken = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 address here")
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"\[::1\]:{port}: the port is in use"):
            check_address(["--host", "::1", "--port", str(port)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "abc"], "--port abc: not a port"),
        (["--port", "70000"], "--port 70000: not a port"),
        (["--port=-1"], "--port -1: not a port"),
        (["--port", "9" * 5000], r"--port 9+…9+: not a port"),
        (["--port", "0" * 5000 + "65536"], "not a port"),
        (["--host", "é..x", "--port", "0"], r"é..x:0: cannot listen there \(not the name"),
        (["--host", "a" * 64 + ".é", "--port", "0"], "cannot listen there"),
        (["--host", "a\0b", "--port", "0"], "cannot listen there"),
        (["--host", "\udcff", "--port", "0"], "cannot listen there"),
        (["--host", "203.0.113.7", "--port", "0"], r"203.0.113.7:0: cannot listen there \("),
        (["--host", "no.such.host.invalid", "--port", "0"], "cannot listen there"),
        (["--uds", "nowhere/a.sock"], "--uds nowhere/a.sock: cannot listen there"),
        (["--uds", "a" * 200], "cannot listen there"),
    ],
)
def test_where_nobody_can_listen(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LaunchError, match=told) as raised:
        check_address(words)
    assert "\n" not in str(raised.value)


def test_a_socket_in_the_file_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with bound() as port:
        check_address(["--uds", "a.sock", "--port", str(port)])  # which vLLM then ignores
    assert not list(tmp_path.iterdir())
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind("a.sock")
        for words in (["--uds", "a.sock"], ["--uds=a.sock"], ["--ud", "a.sock"]):
            with pytest.raises(LaunchError, match="exists already"):
                check_address(words)


def test_without_a_server_there_is_no_port():
    with bound() as port:
        check_address(["--headless", "--port", str(port)])


def test_what_says_nothing_is_the_default(monkeypatch):
    with bound() as port:
        monkeypatch.setattr(address, "PORT", port)
        for words in ([], ["--host", "", "--uds", "None"], ["--seed", "1"]):
            with pytest.raises(LaunchError, match=rf"^0\.0\.0\.0:{port}: the port is in use"):
                check_address(words)


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize("where", ["option", "after --", "file", "default"])
@pytest.mark.parametrize("on", [[], ["--enable-lifetime-prediction"]], ids=["plain", "ours"])
def test_the_command_says_so_before_anything_heavy(where, on, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.os, "execv", lambda *_: pytest.fail("it was started"))
    with bound() as port:
        words = {
            "option": ["--port", str(port)],
            "after --": ["--", f"--port={port}"],
            "file": ["--config", "vllm.yaml"],
            "default": [],
        }[where]
        (tmp_path / "vllm.yaml").write_text(f"port: {port}\n")
        if where == "default":
            monkeypatch.setattr(address, "PORT", port)
        assert run(["engine", "start", "org/model", *on, *words], "sage llm") == 2
    error = capfd.readouterr().err
    assert error == f"error: 0.0.0.0:{port}: the port is in use; {error.partition('; ')[2]}"
    assert error.count("\n") == 1


def test_a_listener_is_not_disturbed():
    """Looking takes nothing from whoever listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answers = []

        def serve():
            connection, _ = server.accept()
            answers.append(connection.recv(8))
            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(LaunchError):
            check_address(["--port", str(port)])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
        thread.join(10)
    assert answers == [b"hello"]
