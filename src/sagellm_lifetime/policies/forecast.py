"""Who says how long sequences live: a predictor, the truth, or one number for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest, SequenceId
from sagellm_lifetime.policies.state import SurvivalForecast
from sagellm_lifetime.predictor.base import Predictor


class Forecaster(Protocol):
    """What a scheduler asks about its sequences and tells of them."""

    def arrived(self, request: PredictionRequest) -> None:
        """Take note of a sequence that has come."""

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Take in what sequences have generated, or many sequences that come at once."""

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """What is expected of sequences that have arrived, at their ages."""

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """A sequence has ended."""


class PredictedLengths:
    """A predictor of this package, which learns from what it is told.

    Args:
        predictor: any predictor; of its sequences none is forgotten, for it is told of every end.
        doubting: whether its confidence is asked for, too. It costs as much as all the rest, and
            counts only where a policy has a threshold; otherwise everything is believed.
    """

    def __init__(self, predictor: Predictor, *, doubting: bool = False) -> None:
        predictor.track_all()
        self.predictor = predictor
        self._doubting = doubting

    def arrived(self, request: PredictionRequest) -> None:
        """Ask for the first time."""
        self.predictor.predict(request)

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Ask again, with what is new."""
        self.predictor.predict_batch(requests)

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Calibrated distributions, conditioned on the ages."""
        batch = self.predictor.distributions(ids, ages)
        if self._doubting:
            return SurvivalForecast.of(batch, self.predictor.confidences(ids, ages))
        return SurvivalForecast.of(batch, np.ones(len(batch)))

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Learn from it."""
        self.predictor.update(sequence_id, length, seconds, finish_reason=reason)


class KnownLengths:
    """The oracle: final lengths are known from the start.

    Args:
        lengths: total generated tokens of every sequence.
    """

    def __init__(self, lengths: Mapping[SequenceId, int]) -> None:
        self._lengths = lengths

    def arrived(self, request: PredictionRequest) -> None:
        """Nothing to learn."""

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Nothing to learn."""

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """The truth."""
        return SurvivalForecast.exact(np.array([self._lengths[each] for each in ids]) - ages)

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Nothing to learn."""


class MaxTokens:
    """Conservative: every sequence runs into its cap.

    Args:
        default: cap of those that have none.
    """

    def __init__(self, default: int) -> None:
        self._default = default
        self._caps: dict[SequenceId, int] = {}

    def arrived(self, request: PredictionRequest) -> None:
        """Remember its cap."""
        self._caps[request.sequence_id] = request.max_length or self._default

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Remember their caps."""
        for request in requests:
            self.arrived(request)

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Up to the cap."""
        return SurvivalForecast.exact(np.array([self._caps[each] for each in ids]) - ages)

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Forget it."""
        self._caps.pop(sequence_id, None)


class GlobalAverage:
    """One moving average for all, as LightLLM keeps (Gong et al. 2025).

    Args:
        mean: to start from, tokens.
        memory: completions after which an old one has faded to 1/e.
    """

    def __init__(self, mean: float = 256.0, memory: float = 200.0) -> None:
        self.mean = mean
        self._share = 1.0 / memory

    def arrived(self, request: PredictionRequest) -> None:
        """Nothing to remember."""

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Nothing to remember."""

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """What is left of the average; the old ones are about to end, forever."""
        return SurvivalForecast.exact(np.maximum(self.mean - ages, 1.0))

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Move the average."""
        self.mean += self._share * (length - self.mean)


class GlobalRatio(MaxTokens):
    """One share of ``max_tokens`` for all, as SGLang's ``new_token_ratio``.

    It falls by a little with every step towards its floor, and jumps when a sequence had to be
    preempted; here it follows the share that finished sequences used.

    Args:
        default: cap of those that have none.
        ratio: to start from.
        memory: completions after which an old one has faded to 1/e.
    """

    def __init__(self, default: int, ratio: float = 0.7, memory: float = 200.0) -> None:
        super().__init__(default)
        self.ratio = ratio
        self._share = 1.0 / memory

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """The ratio of what is left to the cap."""
        caps = np.array([self._caps[each] for each in ids])
        return SurvivalForecast.exact(np.maximum(self.ratio * (caps - ages), 1.0))

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Move the ratio."""
        cap = self._caps.pop(sequence_id, None)
        if cap:
            self.ratio += self._share * (length / cap - self.ratio)
