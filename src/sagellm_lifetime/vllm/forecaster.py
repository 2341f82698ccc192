"""The forecaster of a live engine, which validates every prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.protocol import PredictionRequest, PredictionResult, SequenceId
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.policies.advisor import AdviceError
from sagellm_lifetime.policies.forecast import PredictedLengths
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast
from sagellm_lifetime.predictor.base import Predictor

_ROUNDING = 1e-6
Answer = tuple[str, int, float, LengthDistribution | None]
"""Id, predicted total length in tokens, confidence, distribution of what remains."""


class CheckedForecaster(PredictedLengths):
    """A forecaster that validates predictions and keeps them for the statistics.

    Args:
        predictor: any predictor.
        learn: True to learn from completions; otherwise they are discarded.
        uses_confidence: True to compute confidences, which doubles the cost.
    """

    def __init__(self, predictor: Predictor, *, learn: bool, uses_confidence: bool = False) -> None:
        super().__init__(predictor, uses_confidence=uses_confidence)
        self._learn = learn
        self._answers: list[Answer] = []

    @property
    def lessons(self) -> int:
        """Return the number of completions behind the state in use, earlier runs included."""
        # get_metrics() needs a lock that a hanging call may hold, and any thread may call this.
        return self.predictor.lessons

    def take_answers(self) -> list[Answer]:
        """Return the predictions made since the last call, in their order."""
        answers, self._answers = self._answers, []
        return answers

    def arrived(self, request: PredictionRequest) -> None:
        """Predict for the first time.

        Raises:
            AdviceError: if the prediction is invalid.
        """
        self._answers.append(_checked(request, self.predictor.predict(request)))

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Predict again, with the new tokens.

        Raises:
            AdviceError: if a prediction is invalid.
        """
        results = self.predictor.predict_batch(requests)
        if len(results) != len(requests):
            raise AdviceError(
                f"{counted(len(results), 'prediction')} for {counted(len(requests), 'request')}"
            )
        self._answers += [_checked(r, result) for r, result in zip(requests, results, strict=True)]

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return calibrated distributions, conditioned on the ages.

        Raises:
            AdviceError: if a shape is wrong, or a probability is not between 0 and 1.
        """
        forecast = super().forecast(ids, ages)
        survival, confidence = forecast.survival, forecast.confidence
        if survival.shape != (len(ids), len(HORIZON)) or confidence.shape != (len(ids),):
            raise AdviceError(
                f"survival of shape {survival.shape} and confidence of shape {confidence.shape} "
                f"for {counted(len(ids), 'sequence')}"
            )
        # Written as "not in range", since a comparison with NaN is false.
        if len(ids) and not (
            survival.min() >= -_ROUNDING
            and survival.max() <= 1.0 + _ROUNDING
            and confidence.min() >= -_ROUNDING
            and confidence.max() <= 1.0 + _ROUNDING
        ):
            raise AdviceError("a probability that is none")
        return forecast

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Learn from the completed sequence, or discard it."""
        if self._learn:
            super().finished(sequence_id, length, seconds, reason)
        else:
            self.predictor.discard(sequence_id)

    def forget(self, ids: Iterable[SequenceId]) -> None:
        """Drop sequences that have ended."""
        for sequence_id in ids:
            self.predictor.discard(sequence_id)


def _checked(request: PredictionRequest, result: PredictionResult) -> Answer:
    """Return id, total length in tokens, confidence and distribution of a prediction.

    Raises:
        AdviceError: if the prediction is invalid.
    """
    remaining, confidence = result.estimated_remaining_tokens, result.confidence
    if isinstance(remaining, bool) or not isinstance(remaining, int) or remaining < 0:
        raise AdviceError(f"{remaining!r} tokens remaining")
    if not 0.0 <= confidence <= 1.0 + _ROUNDING:
        raise AdviceError(f"a confidence of {confidence!r}")
    if not (isfinite(result.estimated_time) and result.estimated_time >= 0.0):
        raise AdviceError(f"{result.estimated_time!r} seconds remaining")
    distribution = result.distribution
    if not isinstance(distribution, LengthDistribution):  # of a predictor of another package
        distribution = None
    return str(request.sequence_id), request.current_length + remaining, confidence, distribution
