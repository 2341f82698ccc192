"""The contract of the specification, field for field; what is added is optional and last."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from sagellm_lifetime.core.distribution import LengthDistribution

SequenceId = int | str
FinishReason = Literal["stop", "length", "abort", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")
MAX_DURATION_S: Final = 10**8
"""Seconds from arrival to finish, three years: above this a time is a mistake (milliseconds, a
clock that jumped), and an estimate that rests on it would overflow."""


@dataclass
class PredictionRequest:
    """What an engine knows about one sequence when it asks.

    NumPy's integers and arrays are taken like Python's. A predictor refuses what it cannot use
    with a :class:`~sagellm_lifetime.core.errors.RequestError`, and then nothing has changed.

    Attributes:
        sequence_id: the engine's id of the sequence, an int or a string (``True`` is no id).
        token_ids: prompt tokens followed by the tokens generated so far; may be empty or ``None``.
        current_length: tokens generated so far (the age).
        max_length: cap on generated tokens, a bound and not a guess; ``None`` when unknown.
        prompt_features: optional extra knowledge; unknown keys are ignored, a missing key is
            different from a zero. The recognised keys are listed in ``features.request``. All are
            read at the first request of a sequence; later only what is new may be, which is
            ``output_text``, ``eos_logprob`` and ``entropy``.
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
class Prediction(PredictionResult):
    """The answer of a predictor of this package: its distribution is always there."""

    distribution: LengthDistribution


@dataclass
class PredictionMetrics:
    """The metrics of the specification, over the sequences that ended by themselves (``stop``).

    The first prediction of each is the one that counts: later ones are easier and their number
    depends on the answer. ``mae`` and ``mse`` are in tokens and tokens squared.

    Sequences that were cut off are left out of all but ``total_predictions``. Where a cap was
    reached, the length is the cap and says nothing of the predictor: its answer is bounded by the
    cap, so that nearly every one would be a hit. ``get_metrics`` counts them beside these fields,
    as ``capped``, and all that were cut off as ``censored``.
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
        A :class:`~sagellm_lifetime.core.errors.RequestError` changes nothing: the sequence is
        tracked as before.
        """

    @abstractmethod
    def get_metrics(self) -> dict[str, Any]:
        """The fields of :class:`PredictionMetrics`, and more."""
