"""Checks of the contract of an answer: bounds, consistency, and answers before training."""

from __future__ import annotations

from itertools import pairwise
from math import isclose, isfinite

from sagellm_lifetime.core.batch import UNCAPPED
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
)
from sagellm_lifetime.core.timing import DEFAULT_SECONDS_PER_TOKEN
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.testing.common import Make, make_request, trained

_CAPS = (None, 0, 1, 7, 512, 65_535, 10**7, 2**63 - 1)
_AGES = (0, 1, 6, 7, 511, 512, 600, 10_000, 10**6)


def check_answer(result: PredictionResult, request: PredictionRequest) -> None:
    """Check that one answer keeps the contract."""
    estimate, age, cap = (
        result.estimated_remaining_tokens,
        int(request.current_length),
        request.max_length,
    )
    place = f"at age {age} under cap {cap}"
    assert type(estimate) is int, f"the estimate {place} is {type(estimate)}, not an int"
    room = UNCAPPED if cap is None else max(int(cap) - age, 0)
    assert min(1, room) <= estimate <= room, f"the estimate {place} is {estimate}"
    assert type(result.confidence) is float, f"confidence is {type(result.confidence)}"
    assert 0.0 <= result.confidence <= 1.0, f"confidence {place} is {result.confidence}"
    assert isfinite(result.estimated_time), f"time {place} is {result.estimated_time}"
    assert result.estimated_time >= 0.0, f"time {place} is {result.estimated_time}"
    assert result.source in ("model", "prior", "fallback"), f"source {result.source!r}"
    distribution = result.distribution
    assert isinstance(distribution, LengthDistribution), "a prediction carries its distribution"
    assert distribution.quantile(0.5) == estimate, f"the estimate {place} is not the median"
    low, high = distribution.interval(0.9)
    assert low <= estimate <= high <= room, f"interval {(low, high)} {place}"
    assert isfinite(distribution.mean()), f"the mean {place} is {distribution.mean()}"


def check_protocol(make: Make) -> None:
    """Check that ``make`` returns a new predictor with a name each time."""
    predictor = make()
    assert isinstance(predictor, LifetimePredictorProtocol)
    assert isinstance(predictor, Predictor)
    assert isinstance(predictor.name, str)
    assert predictor.name
    assert make() is not predictor, "make() must return a new predictor each time"
    for method in ("predict", "predict_batch", "quantiles", "update", "discard", "fit", "save"):
        assert callable(getattr(predictor, method)), f"no method {method}()"


def check_answers_keep_the_contract(make: Make) -> None:
    """Check answers at many ages under many caps, untrained and trained."""
    for predictor in (make(), trained(make)):
        for cap in _CAPS:
            for age in _AGES:
                request = make_request(f"{cap} {age}", age, cap)
                check_answer(predictor.predict(request), request)


def check_time_is_estimate_times_seconds_per_token(make: Make) -> None:
    """Check that time is 0.02 s per token until something was learned, then as measured."""
    predictor = make()
    result = predictor.predict(make_request(1))
    wanted = result.estimated_remaining_tokens * DEFAULT_SECONDS_PER_TOKEN
    assert isclose(result.estimated_time, wanted), f"{result.estimated_time} s, not {wanted} s"
    for i in range(30):
        predictor.predict(make_request(f"t{i}"))
        predictor.update(f"t{i}", 100, 5.0)
    result = predictor.predict(make_request(2))
    wanted = result.estimated_remaining_tokens * 0.05
    assert isclose(result.estimated_time, wanted), f"{result.estimated_time} s, not {wanted} s"


def check_useful_before_training(make: Make) -> None:
    """Check that a prior is finite and of low confidence, and a model after one completion."""
    predictor = make()
    for i, cap in enumerate((None, 4096, 65_535)):
        result = predictor.predict(make_request(f"prior{i}", 0, cap))
        assert result.source == "prior", f"untrained, yet source {result.source!r}"
        assert result.confidence < 0.3, f"untrained, yet confidence {result.confidence}"
        assert 1 <= result.estimated_remaining_tokens <= 65_535
    predictor.update("prior0", 80, 1.0)
    for request in (make_request("new"), make_request("prior1", 0, 4096)):
        source = predictor.predict(request).source
        assert source == "model", f"after a completion the source is {source!r}"


def check_older_sequences_live_on(make: Make) -> None:
    """Check that the median of the total length never falls as a sequence ages."""
    predictor = trained(make)
    totals = [
        age + predictor.predict(make_request("ageing", age, 4096)).estimated_remaining_tokens
        for age in (0, 1, 10, 50, 200, 1000, 4000)
    ]
    # Calibration differs a little between bands of ages.
    assert all(b >= 0.8 * a for a, b in pairwise(totals)), totals


CHECKS = [
    check_protocol,
    check_answers_keep_the_contract,
    check_time_is_estimate_times_seconds_per_token,
    check_useful_before_training,
    check_older_sequences_live_on,
]
