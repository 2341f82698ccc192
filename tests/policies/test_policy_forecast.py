"""Who is asked about lengths: what each says, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.policies.forecast import (
    GlobalAverage,
    GlobalRatio,
    KnownLengths,
    MaxTokens,
    PredictedLengths,
)


def arrive(forecaster, caps, client="c") -> list[str]:
    """Sequences with these caps; their ids."""
    ids = [f"{client}-{i}" for i in range(len(caps))]
    for each, cap in zip(ids, caps, strict=True):
        forecaster.arrived(PredictionRequest(each, [], 0, cap, {"client_id": client}))
    return ids


def expected(forecaster, ids, ages) -> list[float]:
    return forecaster.forecast(ids, np.array(ages)).expected().tolist()


def test_known_lengths():
    truth = KnownLengths({"a": 100, "b": 7})
    truth.arrived(PredictionRequest("a", [], 0, 5))
    assert expected(truth, ["b", "a"], [3, 10]) == pytest.approx([4, 90])
    truth.finished("a", 100, 1.0, "stop")
    assert expected(truth, ["a"], [0]) == pytest.approx([100])
    assert truth.forecast(["a", "b"], np.array([0, 0])).confidence.tolist() == [1.0, 1.0]


def test_max_tokens():
    forecaster = MaxTokens(default=500)
    ids = arrive(forecaster, [100, None])
    assert expected(forecaster, ids, [40, 100]) == pytest.approx([60, 400])
    forecaster.finished(ids[0], 41, 1.0, "stop")
    assert expected(forecaster, ids[1:], [0]) == pytest.approx([500])
    with pytest.raises(KeyError):
        forecaster.forecast(ids[:1], np.array([0]))
    forecaster.finished("never seen", 3, 1.0, "stop")


def test_global_average():
    forecaster = GlobalAverage(mean=200.0, memory=10.0)
    ids = arrive(forecaster, [None, None])
    assert expected(forecaster, ids, [50, 900]) == pytest.approx([150, 1])
    for _ in range(10):
        forecaster.finished("x", 1000, 1.0, "stop")
    # After ``memory`` completions an old value has faded to about 1/e.
    assert forecaster.mean == pytest.approx(1000 - 800 / np.e, rel=0.05)
    assert expected(forecaster, ids[:1], [0])[0] == pytest.approx(forecaster.mean)


def test_global_ratio():
    forecaster = GlobalRatio(default=400, ratio=0.5, memory=10.0)
    ids = arrive(forecaster, [100, None])
    assert expected(forecaster, ids, [20, 0]) == pytest.approx([40, 200])
    assert expected(forecaster, ids[:1], [100]) == pytest.approx([1])
    forecaster.finished(ids[0], 100, 1.0, "stop")
    assert forecaster.ratio == pytest.approx(0.5 + 0.5 / 10)
    forecaster.finished("never seen", 100, 1.0, "stop")
    assert forecaster.ratio == pytest.approx(0.55)
    assert expected(forecaster, ids[1:], [0]) == pytest.approx([400 * forecaster.ratio])


def test_predicted_lengths_learn():
    forecaster = PredictedLengths(create_predictor("survival"))
    before = expected(forecaster, arrive(forecaster, [None], "new"), [0])[0]
    rng = np.random.default_rng(0)
    for _ in range(30):
        for client, length in (("short", 20), ("long", 2000)):
            for each in arrive(forecaster, [None] * 5, client):
                drawn = int(length * np.exp(rng.normal(0, 0.1)))
                forecaster.finished(each, drawn, drawn * 0.02, "stop")
    short, long = (arrive(forecaster, [None], each)[0] for each in ("short", "long"))
    found = expected(forecaster, [short, long], [0, 0])
    # The mean, unlike the median, feels the little that is kept for surprises.
    assert found[0] < min(before, 200.0)
    assert found[1] == pytest.approx(2000, rel=0.25)
    assert expected(forecaster, [long], [1500])[0] < 0.6 * found[1]
    assert forecaster.predictor.get_metrics()["completions"] == 300


def test_predicted_lengths_ask_the_predictor_and_respect_the_cap():
    forecaster = PredictedLengths(create_predictor("survival"))
    ids = arrive(forecaster, [50, 50])
    forecast = forecaster.forecast(ids, np.array([0, 49]))
    assert (forecast.expected() <= [50, 1.1]).all()
    assert ((forecast.confidence >= 0) & (forecast.confidence <= 1)).all()
    assert forecaster.predictor.get_metrics()["running"] == 2


def test_of_those_that_run_none_is_forgotten():
    forecaster = PredictedLengths(create_predictor("survival", capacity=2, expire_after=0.0))
    ids = arrive(forecaster, [50, 50, 50, 50])
    found = expected(forecaster, ids, [49, 0, 0, 49])
    assert (np.array(found) <= [1.1, 50, 50, 1.1]).all()
    for each in ids:
        forecaster.finished(each, 50, 1.0, "length")
    metrics = forecaster.predictor.get_metrics()
    assert (metrics["censored"], metrics["expired"], metrics["running"]) == (4, 0, 0)


def test_doubt_is_the_predictors_own_calibrated_one():
    forecaster = PredictedLengths(create_predictor("survival"), uses_confidence=True)
    rng = np.random.default_rng(1)
    for length in np.exp(rng.normal(5, 1, 200)).astype(int).tolist():
        forecaster.finished(arrive(forecaster, [None])[0], length, 1.0, "stop")
    ids, ages = arrive(forecaster, [None, 300]), [0, 70]
    said = forecaster.forecast(ids, np.array(ages)).confidence.tolist()
    asked = [
        PredictionRequest(each, [], age, cap)
        for each, age, cap in zip(ids, ages, (None, 300), strict=True)
    ]
    own = [result.confidence for result in forecaster.predictor.predict_batch(asked)]
    assert said == pytest.approx(own, abs=1e-6)
    assert 0 < min(said) < max(said) < 1


def test_aborts_are_not_lengths():
    stops, aborts = (PredictedLengths(create_predictor("survival")) for _ in range(2))
    for forecaster, reason in ((stops, "stop"), (aborts, "abort")):
        for each in arrive(forecaster, [None] * 200):
            forecaster.finished(each, 30, 1.0, reason)
    assert aborts.predictor.get_metrics()["censored"] == 200
    after = [expected(each, arrive(each, [None], "c"), [0])[0] for each in (stops, aborts)]
    assert after[1] > 2 * after[0]
