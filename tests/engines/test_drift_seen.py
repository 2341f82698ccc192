"""Changes of a workload, as an engine core publishes them."""

from __future__ import annotations

import json

import pytest

from sagellm_lifetime.cli.stats import _drift as lines
from sagellm_lifetime.vllm.observability.merge import _drift as merged
from sagellm_lifetime.vllm.published import _is_drift

ONE = {"generation": 2, "completions": 40, "generations": 3, "in_trial": 0}
DRIFT = {"changes": 2, "returns": 1, "trials": 4, "models": {"chat": ONE, "": ONE}}


def test_what_a_predictor_says_is_accepted_and_what_is_damaged_is_not():
    assert _is_drift({})
    assert _is_drift(json.loads(json.dumps(DRIFT)))
    for damaged in (
        [],
        {"changes": 1},
        {**DRIFT, "changes": "2"},
        {**DRIFT, "models": []},
        {**DRIFT, "models": {"chat": 3}},
        {**DRIFT, "models": {"chat": {**ONE, "completions": None}}},
        {**DRIFT, "models": {"chat": {"generation": 2}}},
    ):
        assert not _is_drift(damaged), damaged


def test_several_engine_cores_add_up_and_the_newest_change_of_a_model_is_shown():
    other = {"changes": 1, "returns": 0, "trials": 1, "models": {"chat": {**ONE, "completions": 7}}}
    found = merged([DRIFT, {}, other])
    assert (found["changes"], found["returns"], found["trials"]) == (3, 1, 5)
    assert found["models"] == {"chat": {**ONE, "completions": 7}, "": ONE}
    assert merged([{}]) == {}


def test_stats_has_a_line_for_every_model():
    assert lines(DRIFT) == [
        "  Drift: 2 changes, 1 returns",
        "    chat: generation 2, 40 completions since",
        "    (no model named): generation 2, 40 completions since",
    ]
    assert lines({}) == lines(None) == []


def test_metrics_have_a_label_for_the_model():
    pytest.importorskip("prometheus_client")
    from sagellm_lifetime.vllm.observability.metrics import PREFIX, _drift

    families = {each.name: each for each in _drift([{"engine": 0, "drift": DRIFT}])}
    labels = [each.labels for each in families[f"{PREFIX}drift_generation"].samples]
    assert labels == [{"engine": "0", "model": "chat"}, {"engine": "0", "model": ""}]
    assert all(not each.samples for each in _drift([{"engine": 0, "drift": {}}]))
