"""Predictors of the tests: one fixed distribution, spies, and a rule that leaks."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
)


class Fixed(LifetimePredictorProtocol):
    """The same log-logistic length for everyone; notes what it is asked and told."""

    name = "fixed"

    def __init__(self, median: float = 100.0, log_sd: float = 0.8) -> None:
        self.row = hazard.log_logistic(median, log_sd)
        self.log: list[tuple] = []

    def predict(self, request: PredictionRequest) -> PredictionResult:
        self.log.append(("predict", request.sequence_id, request.current_length, request))
        d = LengthDistribution(self.row, request.current_length, 0, request.max_length)
        point = d.median()
        return PredictionResult(point, d.within(point), point * 0.02, d)

    def predict_batch(self, requests: list[PredictionRequest]) -> list[PredictionResult]:
        return [self.predict(request) for request in requests]

    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop") -> None:
        self.log.append(("update", sequence_id, actual_length, actual_time, finish_reason))

    def discard(self, sequence_id) -> None:
        self.log.append(("discard", sequence_id))

    def get_metrics(self):
        return {}

    def events(self, kind: str) -> list[tuple]:
        return [event for event in self.log if event[0] == kind]


class PointOnly(LifetimePredictorProtocol):
    """Only ``predict``, no distribution: ``rule(request)`` remaining tokens."""

    name = "rule"

    def __init__(self, rule) -> None:
        self.rule = rule

    def predict(self, request: PredictionRequest) -> PredictionResult:
        return PredictionResult(self.rule(request), 0.5, 0.0)

    def update(self, *args, **kwargs) -> None:
        pass

    def get_metrics(self):
        return {}


def remaining_is_current() -> PointOnly:
    """Return a predictor of the rule that the specification's benchmark rewards."""
    return PointOnly(lambda request: request.current_length)


def history(n: int = 400, seed: int = 0, **columns) -> pl.DataFrame:
    """Return log-normal lengths, half explained by ``prompt_length``, arrivals 0.5 s apart."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 500, n)
    length = np.maximum(1, (prompt * 0.4 * rng.lognormal(0.0, 0.5, n)).astype(int) + 5)
    base = {
        "request_id": [f"r{i}" for i in range(n)],
        "arrival_time": np.arange(n) * 0.5,
        "prompt_length": prompt,
        "actual_length": length,
    }
    return pl.DataFrame(base | columns)
