"""The soak's verdict, on made-up lives: what passes, and that each fault fails its own check."""

from __future__ import annotations

import json
import random
from importlib import import_module
from pathlib import Path

import pytest

from sagellm_lifetime.vllm import service

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LEAK = 1.0


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def verdict():
    return import_module("live.verdict")


@pytest.fixture
def mixture():
    return import_module("live.mixture")


def sample(time, *, mib=1500.0, files=100, running=0, predictions=10, faults=0, lost=0):
    counts = {"completions": 6, "censored": predictions - 6 - running, "running": running}
    metrics = {
        "predictions_total": float(predictions),
        "completions_total": 6.0,
        "censored_total": float(predictions - 6 - running),
        "running_sequences": float(running),
    }
    stats = {
        "total_predictions": predictions,
        **counts,
        "record_lost": lost,
        "faults": {"hang": faults},
    }
    return {
        "time": time,
        "resident": mib * 2**20,
        "each": {"1 server": 500 * 2**20, "2 core": (mib - 500) * 2**20},
        "files": files,
        "processes": 2,
        "stats": stats,
        "metrics": metrics,
    }


def life(verdict, began=0.0, n=90, grows=0.0, **last):
    """A quarter of an hour."""
    samples = [sample(began + 10.0 * i, mib=1500 + grows * i / 6) for i in range(n - 1)]
    samples.append(sample(began + 10.0 * (n - 1), mib=1500 + grows * (n - 1) / 6, **last))
    return verdict.Life(began, samples)


def failed(verdict, lives, asked=(), recorded=()):
    found = verdict.checks(lives, asked, recorded, leak=LEAK)
    return [name for name, good, _ in found if good is False]


def answered(mixture, kind="plain", name="soak-0000001", sent=10.0, ended=20.0, **more):
    reasons = ("stop", "length") if kind == "two" else ("stop",)
    said = {"status": 200, "reasons": reasons, "tokens": 5, **more}
    return mixture.Asked(kind, name, sent, ended, **said)


def test_a_good_life_passes(verdict, mixture):
    asked = [
        answered(mixture),
        answered(mixture, "two", "soak-0000002"),
        mixture.Asked("bad-json", "soak-0000003", 1.0, 2.0, 400),
        mixture.Asked("disconnect", "soak-0000004", 1.0, 2.0, 200),
    ]
    names = ["cmpl-soak-0000001-0-ab", "0_cmpl-soak-0000002-0-cd", "1_cmpl-soak-0000002-0-cd"]
    assert failed(verdict, [life(verdict)], asked, [*names, "cmpl-soak-0000004-0-ef"]) == []


def test_growth_is_told_by_process(verdict):
    found = verdict.of_any_server([life(verdict, grows=1.5)], [], leak=LEAK)
    (says,) = [says for name, _, says in found if name == "life 1: memory"]
    assert "by process 1 server +0.00, 2 core +1.50" in says


def test_each_fault_is_found(verdict):
    assert failed(verdict, [life(verdict, grows=1.5)]) == ["life 1: memory"]
    assert failed(verdict, [life(verdict, grows=0.5)]) == []
    assert failed(verdict, [life(verdict, files=140)]) == ["life 1: open files"]
    assert failed(verdict, [life(verdict, running=1)]) == ["nothing is left running"]
    assert failed(verdict, [life(verdict, faults=1)]) == ["no fault in predictor or policy"]
    assert failed(verdict, [life(verdict, lost=1)]) == ["no row was refused by the disk"]
    assert failed(verdict, [life(verdict)], recorded=["a", "a"]) == ["nothing recorded twice"]
    wrong = life(verdict)
    wrong.samples[5]["metrics"]["completions_total"] += 1
    assert failed(verdict, [wrong]) == ["predictions = completions + censored + running"]
    silent = life(verdict)
    silent.silent.append((50.0, "timed out"))
    assert failed(verdict, [silent]) == ["the watch was always answered"]
    silent.killed = 40.0
    assert failed(verdict, [silent]) == []
    short = next(verdict.checks([life(verdict, n=9)], [], [], leak=LEAK))
    assert short == ("life 1: memory", None, "80 s are too short to tell")


def test_a_jump_is_no_leak(verdict):
    one = life(verdict)
    for each in one.samples[60:]:
        each["resident"] += 30 * 2**20
    assert failed(verdict, [one]) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("plain", {"status": 500}),
        ("plain", {"tokens": 0}),
        ("plain", {"status": 0, "error": "hung up"}),
        ("two", {"reasons": ("stop",)}),
        ("oversized", {"status": 200}),
        ("wrong-type", {"status": 500}),
    ],
)
def test_who_is_not_answered_is_found(verdict, mixture, kind, changes):
    one = answered(mixture, kind, **changes)
    recorded = ["cmpl-soak-0000001-0"] * len(one.reasons)
    found = failed(verdict, [life(verdict)], [one], [*dict.fromkeys(recorded), "other"])
    assert "everybody was answered as they should be" in found
    dead = life(verdict)
    dead.killed = 15.0  # while it was asked
    found = failed(verdict, [dead, life(verdict, 100.0)], [one], [*dict.fromkeys(recorded)])
    assert "everybody was answered as they should be" not in found


def test_only_the_last_moment_before_a_kill_may_be_lost(verdict, mixture):
    dead = life(verdict)
    dead.killed = 100.0
    lives = [dead, life(verdict, 200.0)]
    assert service._RECORD_S <= verdict.LAST_S / 2  # and half of it for the writing
    late, early = answered(mixture, ended=99.2), answered(mixture, ended=98.0)
    assert failed(verdict, lives, [late]) == []
    assert failed(verdict, lives, [early]) == ["every completion was recorded"]
    half = answered(mixture, "two", ended=50.0)
    found = failed(verdict, lives, [half], ["0_cmpl-soak-0000001-0"])
    assert found == ["every completion was recorded"]


def test_metrics_are_read_and_summed():
    text = (
        "# HELP lifetime_predictor_predictions_total x\n"
        'lifetime_predictor_predictions_total{engine="0"} 10.0\n'
        'lifetime_predictor_predictions_total{engine="1"} 5.0\n'
        'vllm:generation_tokens_total{engine="0"} 99.0\n'
    )
    assert import_module("live.vitals").parse_metrics(text) == {"predictions_total": 15.0}


def test_own_vitals_are_seen():
    import os

    seen = import_module("live.vitals").vitals(os.getsid(0))
    assert seen["processes"] >= 1
    assert seen["resident"] == sum(seen["each"].values()) > 2**20
    assert seen["files"] > 2


def test_bodies_are_what_their_kind_says(mixture):
    draw = random.Random(0)
    for kind in mixture.KINDS:
        for _ in range(20):
            text = mixture.body(kind, "m", 256, draw)
            if kind == "bad-json":
                with pytest.raises(ValueError):  # noqa: PT011  # JSON's own
                    json.loads(text)
                continue
            said = json.loads(text)
            assert said["model"] == "m"
            if kind == "oversized":
                assert len(said["prompt"]) >= 256
            elif kind != "wrong-type":
                assert 1 <= said["max_tokens"] <= 128
