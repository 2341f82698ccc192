"""Stores of a fleet: a folder, and a Redis server that the tests start."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

SERVERS = ("redis-server", "valkey-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisServer:
    """A server on a port of its own, with a password."""

    password = "s3cret"

    def __init__(self, program: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="fleet-redis-")
        self.port = free_port()
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(self._program, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", self.folder, "--save", "", "--requirepass", self.password),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20.0
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            time.sleep(0.05)
        raise RuntimeError("the Redis server of the tests does not answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_program() -> str:
    pytest.importorskip("redis", reason="needs redis: pip install 'isagellm-lifetime[fleet]'")
    for name in SERVERS:
        found = shutil.which(name) or shutil.which(name, path="/usr/bin:/usr/sbin")
        if found:
            return found
    pytest.skip(f"needs {' or '.join(SERVERS)} (apt-get install redis-server)")


@pytest.fixture
def redis_server(redis_program: str):
    server = RedisServer(redis_program)
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["folder", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the place of an empty store."""
    if request.param == "folder":
        return os.fspath(tmp_path / "store")
    return request.getfixturevalue("redis_server").address
