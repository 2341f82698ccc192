"""What a predictor scores, and what says nothing of it."""

import pytest

from sagellm_lifetime import PREDICTORS, PredictionRequest, create_predictor
from sagellm_lifetime.core.scores import Scores
from sagellm_lifetime.vllm.prediction_statistics import PredictionStatistics
from sagellm_lifetime.vllm.published import COUNTS


def test_a_cap_that_was_reached_is_no_hit():
    scores = Scores()
    scores.ended("stop", 100, (150, 0.5))
    for _ in range(9):
        scores.ended("length", 64, (64, 0.9))
    scores.ended("abort", 10, (90, 0.1))
    scores.ended("stop", 100, None)
    found = scores.metrics(12)
    assert found["accuracy_within_10_percent"] == 0.0
    assert (found["mae"], found["mse"], found["avg_confidence"]) == (50.0, 2500.0, 0.5)
    assert (scores.scored, scores.completions, scores.censored, scores.capped) == (1, 2, 10, 9)


@pytest.mark.parametrize("name", PREDICTORS)
def test_predictors_count_caps_apart(name):
    predictor = create_predictor(name)
    for i in range(12):
        predictor.predict(PredictionRequest(i, [], 0, 64))
        predictor.update(i, 64, 1.0, finish_reason="length")
    predictor.predict(PredictionRequest("one", [], 0, 64))
    predictor.update("one", 7, 1.0)
    metrics = predictor.get_metrics()
    assert (metrics["scored"], metrics["capped"], metrics["censored"]) == (1, 12, 12)
    assert metrics["accuracy_within_10_percent"] == 0.0, "64 is no hit of 7"


def test_an_engine_counts_caps_apart():
    tally = PredictionStatistics()
    for i in range(5):
        tally.predicted(f"r{i}", 64, 0.8)
        tally.ended(f"r{i}", 64, 1.0, "length")
    tally.predicted("s", 30, 0.4)
    tally.ended("s", 60, 3.0, "stop")
    found = tally.snapshot()
    assert (found["scored"], found["capped"], found["censored"]) == (1, 5, 5)
    assert found["accuracy_within_10_percent"] == 0.0
    assert found["mae"] == 30.0
    assert found["sums"]["scored"] == 1
    assert found["seconds_per_token"] == pytest.approx(8.0 / 380.0), "a cap tells the pace"
    assert {"scored", "capped"} <= set(COUNTS), "several engine cores are added up"
