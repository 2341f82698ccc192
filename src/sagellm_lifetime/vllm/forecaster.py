"""A predictor asked by a live engine: its answers are checked before anybody believes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest, PredictionResult, SequenceId
from sagellm_lifetime.policies.advisor import AdviceError
from sagellm_lifetime.policies.forecast import PredictedLengths
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast
from sagellm_lifetime.predictor.base import Predictor

_ROUNDING = 1e-6
Answer = tuple[str, int, float]
"""Id, predicted total length in tokens, confidence."""


class CheckedForecaster(PredictedLengths):
    """Keeps what was answered for the statistics, and learns only where it is told to.

    Args:
        predictor: any predictor.
        learn: whether completions are passed on; otherwise they are forgotten.
        doubting: whether its confidence is asked for, which costs as much as all the rest.
    """

    def __init__(self, predictor: Predictor, *, learn: bool, doubting: bool = False) -> None:
        super().__init__(predictor, doubting=doubting)
        self._learn = learn
        self._answers: list[Answer] = []

    @property
    def lessons(self) -> int:
        """Return the completions that the state in use was learned from, earlier runs included."""
        # Not by get_metrics(), whose lock a call that hangs may hold: any thread may ask this.
        return self.predictor.lessons

    def take_answers(self) -> list[Answer]:
        """Return what was answered since the last call, in its order."""
        answers, self._answers = self._answers, []
        return answers

    def arrived(self, request: PredictionRequest) -> None:
        """Ask for the first time.

        Raises:
            AdviceError: the answer cannot be.
        """
        self._answers.append(_checked(request, self.predictor.predict(request)))

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Ask again, with what is new.

        Raises:
            AdviceError: an answer cannot be.
        """
        results = self.predictor.predict_batch(requests)
        if len(results) != len(requests):
            raise AdviceError(f"{len(results)} answers to {len(requests)} questions")
        self._answers += [_checked(r, result) for r, result in zip(requests, results, strict=True)]

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return calibrated distributions, conditioned on the ages.

        Raises:
            AdviceError: of another shape, or with a probability that is none.
        """
        forecast = super().forecast(ids, ages)
        survival, confidence = forecast.survival, forecast.confidence
        if survival.shape != (len(ids), len(HORIZON)) or confidence.shape != (len(ids),):
            raise AdviceError(
                f"survival of shape {survival.shape} and confidence of shape {confidence.shape} "
                f"for {len(ids)} sequences"
            )
        # A comparison with NaN is false.
        if len(ids) and not (
            survival.min() >= -_ROUNDING
            and survival.max() <= 1.0 + _ROUNDING
            and confidence.min() >= -_ROUNDING
            and confidence.max() <= 1.0 + _ROUNDING
        ):
            raise AdviceError("a probability that is none")
        return forecast

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Learn from it, or forget it."""
        if self._learn:
            super().finished(sequence_id, length, seconds, reason)
        else:
            self.predictor.discard(sequence_id)

    def forget(self, ids: Iterable[SequenceId]) -> None:
        """Drop sequences that are asked about no more."""
        for sequence_id in ids:
            self.predictor.discard(sequence_id)


def _checked(request: PredictionRequest, result: PredictionResult) -> Answer:
    """Return id, total length and confidence of an answer.

    Raises:
        AdviceError: it is not one.
    """
    remaining, confidence = result.estimated_remaining_tokens, result.confidence
    if isinstance(remaining, bool) or not isinstance(remaining, int) or remaining < 0:
        raise AdviceError(f"{remaining!r} tokens remaining")
    if not 0.0 <= confidence <= 1.0 + _ROUNDING:
        raise AdviceError(f"a confidence of {confidence!r}")
    if not (isfinite(result.estimated_time) and result.estimated_time >= 0.0):
        raise AdviceError(f"{result.estimated_time!r} seconds remaining")
    return str(request.sequence_id), request.current_length + remaining, confidence
