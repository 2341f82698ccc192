"""The running sequences that all adapters share, without any package."""

from __future__ import annotations

import numpy as np
import pytest
from sagellm_help import Tells

from sagellm_lifetime import (
    PredictionRequest,
    RequestError,
    UnknownSequenceError,
    create_predictor,
)
from sagellm_lifetime.integrations.sagellm import RunningSequences


def test_ids_are_strings_whatever_comes():
    sequences = RunningSequences()
    sequences.arrived(PredictionRequest(7, [], 0, 100))
    assert "7" in sequences
    assert 7 in sequences
    assert sequences.ids() == ["7"]
    sequences.finished(7, 10, seconds=1.0)
    assert len(sequences) == 0


def test_the_reason_reaches_the_predictor():
    sequences = RunningSequences(Tells({"a": 10, "b": 10}))
    for name in ("a", "b"):
        sequences.arrived(PredictionRequest(name, [], 0, 100))
    sequences.finished("a", 5, seconds=1.0, reason="abort")
    sequences.finished("b", 6, seconds=2.0)
    assert sequences.predictor.learned == [("a", 5, 1.0, "abort"), ("b", 6, 2.0, "stop")]


def test_bad_reports_are_one_line_and_change_nothing():
    sequences = RunningSequences()
    sequences.arrived(PredictionRequest("a", [], 0, 100))
    sequences.progressed("a", 20)
    with pytest.raises(RequestError, match="never become fewer"):
        sequences.progressed("a", 10)
    for call in (sequences.progressed, lambda name, n: sequences.finished(name, n, seconds=1.0)):
        with pytest.raises(UnknownSequenceError, match="is not running"):
            call("nobody", 3)
    for bad in (30.5, float("nan"), "30", None):
        with pytest.raises(RequestError, match="must be a whole number"):
            sequences.progressed("a", bad)
    assert sequences.request("a").current_length == 20
    with pytest.raises(RequestError):
        sequences.finished("a", -1, seconds=1.0)
    assert "a" in sequences


def test_more_tokens_than_the_cap_count_as_the_cap():
    sequences = RunningSequences()
    sequences.arrived(PredictionRequest("a", [], 0, 100))
    sequences.progressed("a", 103)  # speculative decoding may report a few more
    assert sequences.request("a").current_length == 100


def test_the_oldest_is_forgotten_beyond_the_capacity():
    sequences = RunningSequences(capacity=2)
    for name in "abc":
        sequences.arrived(PredictionRequest(name, [], 0, 100))
    assert sequences.ids() == ["b", "c"]


def test_forecasts_by_arrays_equal_those_one_by_one():
    predictor = create_predictor("survival")
    rng = np.random.default_rng(0)
    for i in range(200):
        predictor.predict(PredictionRequest(i, [], 0, 1000))
        predictor.update(i, int(rng.integers(10, 600)), 1.0)
    sequences = RunningSequences(predictor)
    for i, name in enumerate("abc"):
        sequences.arrived(PredictionRequest(name, [], 0, 1000))
        sequences.progressed(name, 50 * i)
    requests = [sequences.request(name) for name in "abc"]
    fast = sequences.forecast(requests)
    slow = [result.distribution.mean() for result in sequences.predictions(requests)]
    assert fast.expected() == pytest.approx(slow, rel=0.05)
    assert (fast.confidence == 1.0).all()
    assert len(sequences.forecast([])) == 0


def test_an_untrained_predictor_has_no_say():
    sequences = RunningSequences()
    sequences.arrived(PredictionRequest("a", [], 0, 1000))
    assert (sequences.forecast([sequences.request("a")]).confidence < 0).all()
