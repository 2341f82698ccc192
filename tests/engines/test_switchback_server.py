"""A switchback and the outlook on the real server, under a load that is too much for it."""

import contextlib
import json
import threading
import time
from urllib.error import HTTPError

import pytest
from engine_help import MODEL, fitted
from test_end_to_end import Server
from tiny_model import make_model

from sagellm_lifetime.cli.main import run

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("vllm")]
PERIOD_S = 8.0
CLIENTS = 16
"""Requests at any time; two of them run, so that the queue and not the client is what limits."""
LONG = 3
"""Every so many clients ask for long answers."""


class Load:
    """Clients that ask again as soon as they are answered; one in three asks for much."""

    def __init__(self, server):
        self.server = server
        self.errors = []
        self.ids = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(CLIENTS)
        ]

    def _ask(self, number):
        is_long = number % LONG == 0
        while not self._over.is_set():
            try:
                self.server.complete(
                    model=MODEL,
                    max_tokens=200 if is_long else 8,
                    ignore_eos=True,
                    vllm_xargs={"client_id": "long" if is_long else "short"},
                )
            except OSError as error:
                self.errors.append(error)
                return

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        for thread in self._threads:
            thread.join(60)


@pytest.fixture(scope="module")
def server(vllm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("switchback")
    make_model(folder / "model")
    fitted().save(folder / "trained")
    server = Server(
        folder,
        *("--enable-lifetime-prediction", "--predictor-checkpoint", "trained"),
        *("--lifetime-mode", "switchback", "--period", f"{PERIOD_S:g}s"),
        vllm=("--served-model-name", MODEL, "--max-num-seqs", "2"),
        env={"TORCH_COMPILE_DISABLE": "1"},
    )
    try:
        yield server.wait()
    finally:
        server.stop()


def test_off_and_act_alternate_and_the_difference_is_shown(server, capsys):
    arms, outlooks = set(), []
    ends = time.monotonic() + 25 * PERIOD_S
    with Load(server) as load:
        while time.monotonic() < ends:
            found = server.stats()["switchback"]
            arms.add(found["arm"])
            with contextlib.suppress(HTTPError):  # in the blocks of off there is none
                outlooks.append(json.loads(server.get("/lifetime/outlook")))
            if found["pairs"] >= 7:
                break
            time.sleep(1.0)
        assert not load.errors
    assert arms == {"off", "act"}
    assert found["running"]
    assert found["pairs"] >= 7
    assert found["effects"].keys() == {"latency", "first_token", "throughput", "preemptions"}
    for name in ("latency", "first_token"):
        effect = found["effects"][name]
        assert effect["low"] < effect["difference"] < effect["high"]
        # Seven short pairs on a shared machine prove no gain; they must not prove a loss.
        assert effect["low"] < 0.0, found["effects"]
    assert server.stats()["decisions"]["act"]["overtaken"] > 0
    assert run(["stats", "--engine", server.url], "sagellm-lifetime") == 0
    text = capsys.readouterr().out
    assert f"blocks of {PERIOD_S:g} s" in text
    assert "    first token: off " in text
    running = f'switchback_running{{engine="all",model_name="{MODEL}"}} 1.0'
    assert running in server.get("/metrics")
    assert outlooks
    assert any(outlook["retry_after_s"] >= 1 for outlook in outlooks)
    for outlook in outlooks:
        assert outlook["running_tokens"]["expected"] >= 0.0


def test_another_mode_ends_it(server):
    assert server.post("/lifetime/mode", {"mode": "shadow"})["mode"] == "shadow"
    found = server.until(lambda stats: not stats["switchback"]["running"])
    assert found["mode"] == "shadow"
    assert found["switchback"]["effects"]
