"""The contract of the specification, field for field; what is added is optional and last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sagellm_lifetime.core.distribution import LengthDistribution

SequenceId = int | str
FinishReason = Literal["stop", "length", "abort", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")


@dataclass
class PredictionRequest:
    """What an engine knows about one sequence when it asks.

    Attributes:
        sequence_id: the engine's id of the sequence, an int or a string.
        token_ids: prompt tokens followed by the tokens generated so far; may be empty.
        current_length: tokens generated so far (the age).
        max_length: cap on generated tokens, a bound and not a guess; ``None`` when unknown.
        prompt_features: optional extra knowledge; unknown keys are ignored, a missing key is
            different from a zero. The recognised keys are listed in ``features.request``.
    """

    sequence_id: SequenceId
    token_ids: list[int]
    current_length: int
    max_length: int | None
    prompt_features: dict[str, Any] | None = None


@dataclass
class PredictionResult:
    """The answer; every field derives from ``distribution``, so they cannot disagree.

    Attributes:
        estimated_remaining_tokens: median of the remaining length, clamped to
            ``[1, max_length - current_length]``; 0 only when the cap is reached.
        confidence: calibrated probability that the predicted total length is within 10 % of the
            actual total length.
        estimated_time: seconds until the sequence ends.
        distribution: distribution of the remaining length, conditioned on the age.
        source: ``"model"``, ``"prior"`` (nothing was learned yet) or ``"fallback"``.
    """

    estimated_remaining_tokens: int
    confidence: float
    estimated_time: float
    distribution: LengthDistribution | None = None
    source: str = "model"


@dataclass
class PredictionMetrics:
    """The metrics of the specification, over the completions seen so far.

    The first prediction of each completed sequence is the one that counts: later ones are easier
    and their number depends on the answer. ``mae`` and ``mse`` are in tokens and tokens squared.
    """

    total_predictions: int
    mae: float
    mse: float
    accuracy_within_10_percent: float
    avg_confidence: float


class LifetimePredictorProtocol(ABC):
    """What an engine calls. ``predict`` never changes what is learned; ``update`` does."""

    @abstractmethod
    def predict(self, request: PredictionRequest) -> PredictionResult:
        """Predict how many more tokens the sequence will generate."""

    @abstractmethod
    def update(
        self,
        sequence_id: SequenceId,
        actual_length: int,
        actual_time: float,
        *,
        finish_reason: str = "stop",
    ) -> None:
        """Learn from a finished sequence.

        ``actual_length`` counts generated tokens, ``actual_time`` seconds from arrival to finish.
        ``length``, ``abort`` and ``error`` mean "at least ``actual_length``" (right-censored).
        """

    @abstractmethod
    def get_metrics(self) -> dict[str, Any]:
        """The fields of :class:`PredictionMetrics`, and more."""
