"""The real server, started by our command, with a model of random weights."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from engine_help import adds_up, fitted
from tiny_model import ENVIRONMENT, OPTIONS, make_model

from sagellm_lifetime import load_predictor
from sagellm_lifetime.cli.main import run
from sagellm_lifetime.history.read import read_history
from sagellm_lifetime.vllm.journal import recover_journals

START = "import sys; from sagellm_lifetime.cli.main import main; main()"
LEARNED = "runs/engine/engine-0/predictor"
pytestmark = [pytest.mark.server, pytest.mark.usefixtures("vllm")]
ONLY_A = {"logit_bias": {"64": 100}}
"""The model says nothing else."""
NEVER = {"stop": ["a"], "min_tokens": 240, **ONLY_A}
"""A stop string that comes up all the time, and never counts."""
PAUSE_S = 5.0
PAUSED = 300
"""Sequences that are paused: enough to be at work for seconds, for statistics are a second old."""
PATIENCE_S = 300  # a machine under load takes long to import vLLM three times


class Server:
    """One server process, and how to talk to it."""

    def __init__(self, folder, *options, vllm=(), env=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", START, "engine", "start", "model", *options, "--"),
                    *(*OPTIONS, *vllm, "--host", "127.0.0.1", "--port", str(self.port)),
                ],
                cwd=folder,
                env={**os.environ, **ENVIRONMENT, **dict(env)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                self.get("/health")
                return self
            time.sleep(0.3)
        raise TimeoutError(self.log.read_text()[-3000:])

    def get(self, path):
        with urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def post(self, path, body, timeout=60):
        data = json.dumps(body).encode()
        request = Request(self.url + path, data, {"content-type": "application/json"})
        with urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def stats(self):
        return json.loads(self.get("/lifetime/stats"))

    def until(self, what, seconds=60):
        ends = time.monotonic() + seconds
        while not what(found := self.stats()):
            assert time.monotonic() < ends, found
            time.sleep(0.1)
        return found

    def complete(self, prompt="hello", **options):
        body = {"model": "model", "prompt": prompt, "max_tokens": 12, "temperature": 1.0}
        return self.post("/v1/completions", {**body, **options})

    def hang_up(self, **options):
        """Ask, and be gone when the answer has begun."""
        asked = {"model": "model", "prompt": "hello", "stream": True, **options}
        body = json.dumps(asked).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            while b"data:" not in (said := connection.recv(65_536)):
                assert said, "the server has hung up"

    def stop(self, sign=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            self.process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # nothing of it stays behind


def lessons_in(checkpoint):
    return load_predictor(checkpoint).get_metrics()["lessons"]


@pytest.fixture(scope="module")
def folder(vllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    make_model(folder / "model")
    fitted().save(folder / "trained")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    options = ("--enable-lifetime-prediction", "--enable-online-learning", "--record", "rec")
    # It can be paused, and does not compile for a minute when log-probabilities are asked for.
    env = {"VLLM_SERVER_DEV_MODE": "1", "TORCH_COMPILE_DISABLE": "1"}
    server = Server(folder, *options, "--predictor-checkpoint", "trained", env=env)
    try:
        yield server.wait()
    finally:
        server.stop()


def test_the_whole_way(server, folder, capsys, monkeypatch):
    # Ends of every kind.
    assert server.complete(vllm_xargs={"client_id": "short"})["usage"]["completion_tokens"] <= 12
    two = server.complete(n=2, max_tokens=8, ignore_eos=True)
    assert len(two["choices"]) == 2
    text = server.complete(seed=1, max_tokens=40, ignore_eos=True)["choices"][0]["text"]
    letter = next(each for each in text[5:] if each.isascii() and each.isprintable())
    stopped = server.complete(seed=1, max_tokens=40, ignore_eos=True, stop=[letter])
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert server.complete(max_tokens=4, **ONLY_A)["choices"][0]["text"] == "aaaa"
    with pytest.raises(HTTPError, match="400"):
        server.complete(prompt="x" * 1000)
    found = server.until(lambda s: s["total_predictions"] == 6)
    while not found["finish_reasons"].get("abort"):
        # On a machine so busy that the answer is whole before anybody notices, once more.
        assert found["total_predictions"] < 50
        server.hang_up(max_tokens=240, ignore_eos=True, n=4, **NEVER)
        before = found["total_predictions"]
        found = server.until(lambda s, b=before: s["total_predictions"] > b and s["running"] == 0)
    assert adds_up(found)
    assert found["mode"] == "shadow"
    assert found["predictor"] == "survival"
    assert 1 <= found["finish_reasons"]["stop"] <= 2, "no stop string counts before min_tokens"
    assert found["finish_reasons"]["length"] >= 3
    server.complete(use_beam_search=True, n=2, max_tokens=6, ignore_eos=True)
    found = server.until(lambda s: s["beam_steps"] == 1 + 5 * 2)
    assert found["running"] == 0
    assert found["breaker"] == "closed"
    learned = 200 + found["total_predictions"]
    found = server.until(lambda s: s["lessons"] == learned, PATIENCE_S)
    assert found["learner_running"]
    assert found["lessons_lost"] == found["lessons_dropped"] == found["lessons_on_the_way"] == 0

    # The switch.
    assert server.post("/lifetime/mode", {"mode": "act"}) == {"mode": "act", "engines": 1}
    server.until(lambda s: s["mode"] == "act")
    threads = [
        threading.Thread(target=server.complete, kwargs={"max_tokens": 30, "ignore_eos": True})
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = found["total_predictions"]
    found = server.until(lambda s: s["lessons"] == learned + 20 and not s["running"], PATIENCE_S)
    assert found["total_predictions"] == before + 20
    assert adds_up(found)
    assert found["faults"] == dict.fromkeys(found["faults"], 0)

    paused(server)
    before += PAUSED

    # Seen.
    capsys.readouterr()
    assert run(["stats", "--engine", server.url], "sagellm-lifetime") == 0
    said = capsys.readouterr().out
    assert "Predictor Type: Survival" in said
    assert f"Total Predictions: {before + 20}" in said
    assert "Mode: act" in said
    metrics = server.get("/metrics")
    ours = 'lifetime_predictor_predictions_total{engine="0",model_name="model"}'
    assert f"{ours} {before + 20}.0" in metrics
    assert "vllm:generation_tokens_total" in metrics

    # Stopped: everything is written.
    server.stop()
    frame = read_history(folder / "rec").frame
    assert len(frame) == before + 20
    assert set(frame["model"]) == {"model"}
    assert "short" in set(frame["client_id"].drop_nulls())
    assert lessons_in(folder / LEARNED) == 200 + len(frame)
    monkeypatch.chdir(folder)
    round_again(folder, capsys)


def paused(server):
    """A pause with running sequences is no step, however long."""
    thread = threading.Thread(
        target=server.complete, kwargs={"n": PAUSED, "max_tokens": 240, "ignore_eos": True}
    )
    first, started = server.stats(), time.monotonic()
    thread.start()
    server.until(lambda s: s["running"])
    server.post("/pause?mode=keep&clear_cache=false", {})
    time.sleep(PAUSE_S)
    assert server.stats()["running"], "they are paused, not over"
    server.post("/resume", {})
    thread.join()
    last = server.until(lambda s: s["lessons"] == first["lessons"] + PAUSED, PATIENCE_S)
    took = time.monotonic() - started
    assert last["step_seconds"] - first["step_seconds"] < took - 0.9 * PAUSE_S
    assert not any(last["faults"].values())


def round_again(folder, capsys):
    """What was recorded is trained on, exported and served; and what that learns is kept."""
    said = ["--data-path", "rec", "--predictor-type", "lstm", "--output-path", "lstm"]
    for line in (["train", *said], ["export", "--checkpoint", "lstm", "--output-path", "model.pt"]):
        assert run(line, "sagellm-lifetime") == 0, capsys.readouterr().err
    trained = lessons_in(folder / "model.pt")
    options = ("--enable-lifetime-prediction", "--enable-online-learning", "--watch-eos")
    kept = ("--record", "again", "--predictor-checkpoint", "model.pt")
    again = Server(folder, *options, *kept)
    try:
        again.wait()
        found = again.stats()
        assert found["predictor"] == "lstm"
        assert found["lessons"] == trained
        again.complete(n=20, max_tokens=40, ignore_eos=True)
        found = again.until(
            lambda s: s["lessons"] == trained + 20 and s["recorded"] == 20, PATIENCE_S
        )
        assert found["breaker"] == "closed"
    finally:
        again.stop(signal.SIGKILL)
    learned = load_predictor(folder / LEARNED)
    assert learned.name == "lstm"
    assert learned.get_metrics()["lessons"] == trained + 20
    assert load_predictor(folder / f"{LEARNED}.old").name == "survival"
    ends = time.monotonic() + 60
    while not list(
        recover_journals(folder / "again")
    ):  # as the next start does, when the killed one is gone
        assert time.monotonic() < ends
        time.sleep(0.3)
    rows = read_history(folder / "again").frame
    assert rows["eos_logprob"].list.len().to_list() == [2] * 20
    assert (rows["entropy"].list.min() > 0).all()


def test_several_engine_cores(vllm, tmp_path, capsys):
    """Each predicts, learns, records and is switched by itself; together they add up."""
    make_model(tmp_path / "model")
    fitted().save(tmp_path / "trained")
    options = ("--enable-lifetime-prediction", "--enable-online-learning", "--record", "rec")
    started = ("--predictor-checkpoint", "trained")
    server = Server(tmp_path, *options, *started, vllm=("--data-parallel-size", "2"))
    try:
        server.wait()
        assert server.post("/lifetime/mode", {"mode": "act"}) == {"mode": "act", "engines": 2}
        server.until(lambda s: s["mode"] == "act")
        server.complete(n=30, max_tokens=40, ignore_eos=True)
        threads = [threading.Thread(target=server.complete) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = server.until(
            lambda s: s["lessons_taken"] == 60 and not s["lessons_on_the_way"], PATIENCE_S
        )
        assert adds_up(found)
        assert found["total_predictions"] == 60
        assert not any(found["faults"].values())
        metrics = server.get("/metrics")
        counted = [
            float(line.split()[-1])
            for line in metrics.splitlines()
            if line.startswith("lifetime_predictor_predictions_total{")
        ]
        assert sum(counted) == 60
        assert min(counted) > 0, "both were asked"
        assert run(["stats", "--engine", server.url], "sagellm-lifetime") == 0
        assert "Total Predictions: 60" in capsys.readouterr().out
    finally:
        server.stop()
    assert len(read_history(tmp_path / "rec").frame) == 60
    learned = [lessons_in(tmp_path / f"runs/engine/engine-{rank}/predictor") for rank in (0, 1)]
    assert [each - 200 for each in learned] == counted


def test_a_client_is_told_by_its_key_and_not_by_what_it_says(folder):
    keys = ("sk-first", "sk-second")
    server = Server(
        folder,
        *("--enable-lifetime-prediction", "--record", "keyed", "--state", "keyed-state"),
        *("--lifetime-client-from", "api-key"),
        vllm=("--api-key", *keys),
        env={"TORCH_COMPILE_DISABLE": "1"},
    )

    def ask(key, **said):
        forged = {"client_id": "victim", "lifetime_client": "victim"}
        body = {"model": "model", "max_tokens": 8, "vllm_xargs": forged, "user": "victim", **said}
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        request = Request(f"{server.url}/v1/completions", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    try:
        server.wait()
        for key in (*keys, keys[0]):
            ask(key, prompt="hello", n=2)
        ask(keys[1], prompt="hello")
        with pytest.raises(HTTPError, match="401"):
            ask("sk-none", prompt="hello")
    finally:
        server.stop()
    list(recover_journals(folder / "keyed"))
    rows = read_history(folder / "keyed").frame
    counts = dict(rows.group_by("client_id").len().iter_rows())
    assert sorted(counts.values()) == [3, 4]
    assert all(name.startswith("key:") for name in counts)
    told = server.log.read_text()
    assert not any(key in told for key in keys)
