"""Predictions of many sequences from any predictor of the protocol, and a forecast from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
)
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast

UNKNOWN: Final = -1.0
"""Confidence of a missing or untrained prediction, below every threshold."""


def ask(
    predictor: LifetimePredictorProtocol, requests: Sequence[PredictionRequest]
) -> list[PredictionResult | None]:
    """Return the prediction of every request, ``None`` where the predictor failed.

    An engine must schedule and evict whether or not a predictor works, so an exception becomes
    "unknown", and the engine's own rule decides.
    """
    batch = getattr(predictor, "predict_batch", None)
    if batch is not None:
        try:
            return list(batch(requests))
        except Exception:  # noqa: BLE001 - perhaps one bad request of many: predict them singly
            pass
    return [_ask_one(predictor, request) for request in requests]


def _ask_one(
    predictor: LifetimePredictorProtocol, request: PredictionRequest
) -> PredictionResult | None:
    try:
        return predictor.predict(request)
    except Exception:  # noqa: BLE001 - the engine must go on without a prediction
        return None


def forecast_of(
    results: Sequence[PredictionResult | None], requests: Sequence[PredictionRequest]
) -> SurvivalForecast:
    """Return the survival forecast of ``N`` sequences.

    A result with a distribution counts with it, one without as certain; without a result the
    sequence runs to its cap. The confidence is that of the result, and :data:`UNKNOWN` without a
    result or before training.
    """
    survival = SurvivalForecast.exact(
        np.array([_point(*pair) for pair in zip(results, requests, strict=True)], dtype=np.float64)
    ).survival
    confidence = np.full(len(results), UNKNOWN)
    spread = []
    for i, result in enumerate(results):
        if result is None:
            continue
        # A result with only the three fields of the specification is accepted too.
        if getattr(result, "source", "model") == "model":
            confidence[i] = result.confidence
        distribution = getattr(result, "distribution", None)
        # stack() needs unshifted distributions, the only kind that predict() returns.
        if distribution is not None and not distribution.shift:
            spread.append((i, distribution))
    if spread:
        index, distributions = zip(*spread, strict=True)
        batch = LengthDistributionBatch.stack(distributions)
        survival[list(index)] = SurvivalForecast.of(batch, confidence[list(index)]).survival
    return SurvivalForecast(survival, confidence)


def _point(result: PredictionResult | None, request: PredictionRequest) -> float:
    if result is not None:
        return float(result.estimated_remaining_tokens)
    if request.max_length is not None:
        return float(request.max_length - request.current_length)
    return float(HORIZON[-1])
