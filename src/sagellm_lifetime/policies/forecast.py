"""Forecasters of sequence lengths: a predictor, an oracle, or one figure for all sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest, SequenceId
from sagellm_lifetime.policies.state import SurvivalForecast
from sagellm_lifetime.predictor.base import Predictor


class Forecaster(Protocol):
    """The interface of a source of length forecasts."""

    def arrived(self, request: PredictionRequest) -> None:
        """Record an arrival."""

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Record newly generated tokens, or many simultaneous arrivals."""

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return the survival of arrived sequences, given their ages in tokens, shape ``(N,)``."""

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Record the end of a sequence of ``length`` tokens, ``seconds`` after its arrival."""


class PredictedLengths:
    """Forecasts of a predictor of this package, which learns from every end.

    Args:
        predictor: any predictor; it tracks all sequences, since every end is reported.
        uses_confidence: True to compute confidences, which doubles the cost and is needed only by
            a plan with a threshold; otherwise every confidence is 1.
    """

    def __init__(self, predictor: Predictor, *, uses_confidence: bool = False) -> None:
        predictor.track_all()
        self.predictor = predictor
        self._uses_confidence = uses_confidence

    def arrived(self, request: PredictionRequest) -> None:
        """Predict for the first time."""
        self.predictor.predict(request)

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Predict again, with the new tokens."""
        self.predictor.predict_batch(requests)

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return calibrated distributions, conditioned on the ages."""
        batch = self.predictor.distributions(ids, ages)
        if self._uses_confidence:
            return SurvivalForecast.of(batch, self.predictor.confidences(ids, ages))
        return SurvivalForecast.of(batch, np.ones(len(batch)))

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Learn from the completed sequence."""
        self.predictor.update(sequence_id, length, seconds, finish_reason=reason)


class KnownLengths:
    """An oracle, which knows all final lengths.

    Args:
        lengths: total generated tokens of every sequence.
    """

    def __init__(self, lengths: Mapping[SequenceId, int]) -> None:
        self._lengths = lengths

    def arrived(self, request: PredictionRequest) -> None:
        """Do nothing: the length is known."""

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Do nothing: the lengths are known."""

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return the true remaining lengths as a certain forecast."""
        return SurvivalForecast.exact(
            np.array([self._lengths[sequence_id] for sequence_id in ids]) - ages
        )

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Do nothing: the length was known."""


class MaxTokens:
    """A conservative forecast: every sequence reaches its cap.

    Args:
        default: cap of requests without one, tokens.
    """

    def __init__(self, default: int) -> None:
        self._default = default
        self._caps: dict[SequenceId, int] = {}

    def arrived(self, request: PredictionRequest) -> None:
        """Record the cap of the request."""
        self._caps[request.sequence_id] = request.max_length or self._default

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Record the caps of the requests."""
        for request in requests:
            self.arrived(request)

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return the tokens left up to the cap as a certain forecast."""
        return SurvivalForecast.exact(
            np.array([self._caps[sequence_id] for sequence_id in ids]) - ages
        )

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Forget the cap of the sequence."""
        self._caps.pop(sequence_id, None)


class GlobalAverage:
    """Moving average of the length, shared by all sequences, as in LightLLM (Gong et al. 2025).

    Args:
        mean: initial average, tokens.
        memory: completions after which the weight of an old one has fallen to 1/e.
    """

    def __init__(self, mean: float = 256.0, memory: float = 200.0) -> None:
        self.mean = mean
        self._share = 1.0 / memory

    def arrived(self, request: PredictionRequest) -> None:
        """Do nothing: requests have no state here."""

    def grown(self, requests: Sequence[PredictionRequest]) -> None:
        """Do nothing: requests have no state here."""

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return the average less the age, at least one token, as a certain forecast."""
        return SurvivalForecast.exact(np.maximum(self.mean - ages, 1.0))

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Update the average with the completed length."""
        self.mean += self._share * (length - self.mean)


class GlobalRatio(MaxTokens):
    """Share of ``max_tokens``, the same for all sequences, as SGLang's ``new_token_ratio``.

    SGLang's ratio decays towards a floor and jumps at a preemption; here it follows the share that
    finished sequences used.

    Args:
        default: cap of requests without one, tokens.
        ratio: initial share.
        memory: completions after which the weight of an old one has fallen to 1/e.
    """

    def __init__(self, default: int, ratio: float = 0.7, memory: float = 200.0) -> None:
        super().__init__(default)
        self.ratio = ratio
        self._share = 1.0 / memory

    def forecast(self, ids: Sequence[SequenceId], ages: np.ndarray) -> SurvivalForecast:
        """Return the ratio times the tokens left up to the cap, as a certain forecast."""
        caps = np.array([self._caps[sequence_id] for sequence_id in ids])
        return SurvivalForecast.exact(np.maximum(self.ratio * (caps - ages), 1.0))

    def finished(self, sequence_id: SequenceId, length: int, seconds: float, reason: str) -> None:
        """Update the ratio with the used share of the cap."""
        cap = self._caps.pop(sequence_id, None)
        if cap:
            self.ratio += self._share * (length / cap - self.ratio)
