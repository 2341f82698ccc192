"""Two live servers share what they learn: one predicts what only the other has seen."""

import contextlib
import json

import pytest
from test_end_to_end import ONLY_A, PATIENCE_S, Server
from tiny_model import make_model

from sagellm_lifetime.cli.main import run

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("vllm")]
OFTEN = json.dumps({"lifetime": {"fleet_every_s": 0.5, "learn_every_s": 0.5}})
SERVED = 40
"""Requests of a client at the server that alone sees them."""
LENGTHS = {"essays": 60, "notes": 6}
CAP = 200


def answer(server, client):
    """Ask for an answer that ends by itself after the client's usual number of tokens."""
    length = LENGTHS[client]
    done = server.complete(
        max_tokens=CAP,
        stop=["a"],
        min_tokens=length,
        vllm_xargs={"client_id": client},
        **ONLY_A,
    )
    assert done["choices"][0]["finish_reason"] == "stop"
    assert abs(done["usage"]["completion_tokens"] - length) <= 2


def first_predictions(server):
    """Return what was predicted and what came, in tokens, of the newest completions."""
    return json.loads(server.get("/lifetime/stats?live=1"))["engines"][0]["live"]["ended"]


@pytest.fixture(scope="module")
def servers(vllm, tmp_path_factory):
    """Two servers that start at the same time, without a checkpoint."""
    store, started = tmp_path_factory.mktemp("store"), []
    with contextlib.ExitStack() as ending:
        for name in ("a", "b"):
            folder = tmp_path_factory.mktemp(name)
            make_model(folder / "model")
            server = Server(
                folder,
                *("--enable-lifetime-prediction", "--enable-online-learning"),
                *("--predictor-type", "survival", "--lifetime-fleet", str(store)),
                vllm=("--additional-config", OFTEN),
                env={"TORCH_COMPILE_DISABLE": "1"},
            )
            ending.callback(server.stop)
            started.append(server)
        yield [server.wait() for server in started]


def test_what_one_learns_the_other_predicts_with(servers, capsys):
    one, other = servers
    for server, client in ((one, "essays"), (other, "notes")):
        for _ in range(SERVED):
            answer(server, client)
    for server in servers:
        stats = server.until(
            lambda stats: stats["fleet_lessons"] == SERVED and stats["lessons"] == 2 * SERVED,
            PATIENCE_S,
        )
        assert stats["engines"][0]["fleet_connected"]
        assert stats["engines"][0]["fleet_replicas"] == 1
        assert stats["completions"] == SERVED, "its own"
    for server, unseen in ((one, "notes"), (other, "essays")):
        answer(server, unseen)
        server.until(lambda stats: stats["completions"] == SERVED + 1)
        predicted, actual = first_predictions(server)[-1]
        assert abs(predicted - actual) <= 0.2 * actual + 2, (unseen, predicted, actual)
    assert run(["stats", "--engine", one.url], "sagellm-lifetime") == 0
    assert "Fleet: 1 other replica" in " ".join(capsys.readouterr().out.split())
    assert 'fleet_replicas{engine="0",model_name="model"} 1.0' in one.get("/metrics")


def test_one_goes_on_when_the_other_has_ended(servers):
    one, other = servers
    before = one.stats()["completions"]
    other.stop()
    answer(one, "essays")
    stats = one.until(lambda stats: stats["completions"] == before + 1, PATIENCE_S)
    assert stats["fleet_lessons"] >= SERVED, "what it knew stays in use"
