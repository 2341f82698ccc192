"""Protocol of the specification, field for field; additions are optional and last."""

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
"""Longest time from arrival to finish in seconds, three years: a longer one is a mistake
(milliseconds, a clock that jumped), and an estimate from it would overflow."""


@dataclass
class PredictionRequest:
    """State of one sequence at a prediction.

    NumPy's integers and arrays are taken like Python's. A predictor refuses what it cannot use
    with a :class:`~sagellm_lifetime.core.errors.RequestError`, and then nothing has changed.

    Attributes:
        sequence_id: the engine's id of the sequence, an int or a string (``True`` is no id).
        token_ids: prompt tokens followed by the tokens generated so far; may be empty or ``None``.
        current_length: tokens generated so far (the age).
        max_length: cap on generated tokens, a bound and not a guess; ``None`` when unknown.
        prompt_features: optional features; unknown keys are ignored, a missing key is different
            from a zero. The recognised keys are listed in ``features.request``. All are read at
            the first request of a sequence; later requests may only add ``output_text``,
            ``eos_logprob`` and ``entropy``.

    >>> request = PredictionRequest(
    ...     sequence_id="req-1",
    ...     token_ids=[],
    ...     current_length=40,
    ...     max_length=512,
    ...     prompt_features={"client_id": "batch", "prompt_length": 900},
    ... )
    """

    sequence_id: SequenceId
    token_ids: list[int]
    current_length: int
    max_length: int | None
    prompt_features: dict[str, Any] | None = None


@dataclass
class PredictionResult:
    """Prediction of one sequence; all fields derive from ``distribution``.

    Attributes:
        estimated_remaining_tokens: median of the remaining length, clamped to
            ``[1, max_length - current_length]``; 0 only when the cap is reached.
        confidence: calibrated probability that the predicted total length is within 10 % of the
            actual total length.
        estimated_time: seconds until the sequence ends.
        distribution: distribution of the remaining length, conditioned on the age.
        source: ``"model"``, ``"prior"`` (nothing was learned yet) or ``"fallback"``.

    >>> from sagellm_lifetime import create_predictor
    >>> result = create_predictor("baseline").predict(PredictionRequest(1, [], 0, 512))
    >>> result.source, result.estimated_remaining_tokens == result.distribution.median()
    ('prior', True)
    """

    estimated_remaining_tokens: int
    confidence: float
    estimated_time: float
    distribution: LengthDistribution | None = None
    source: str = "model"


@dataclass
class Prediction(PredictionResult):
    """Prediction by a predictor of this package, always with a distribution."""

    distribution: LengthDistribution


@dataclass
class PredictionMetrics:
    """Metrics of the specification, over the sequences that ended by themselves (``stop``).

    Only the first prediction of a sequence counts: later ones are easier and their number
    depends on the answer. ``mae`` and ``mse`` are in tokens and tokens squared.

    Sequences that were cut off count in ``total_predictions`` only. Where a cap was reached, the
    length is the cap, which bounds the answer too, so that nearly every answer would be a hit.
    ``get_metrics`` counts them beside these fields, as ``capped``, and all that were cut off as
    ``censored``.

    >>> from sagellm_lifetime import create_predictor
    >>> predictor = create_predictor("baseline")
    >>> result = predictor.predict(PredictionRequest(1, [], 0, 512))
    >>> predictor.update(1, actual_length=100, actual_time=2.0)
    >>> metrics = predictor.get_metrics()
    >>> metrics["mae"] == abs(result.estimated_remaining_tokens - 100)
    True
    """

    total_predictions: int
    mae: float
    mse: float
    accuracy_within_10_percent: float
    avg_confidence: float


class LifetimePredictorProtocol(ABC):
    """Interface that an engine calls; ``update`` learns, ``predict`` never does.

    >>> class AlwaysHundred(LifetimePredictorProtocol):
    ...     def predict(self, request):
    ...         return PredictionResult(100, confidence=0.1, estimated_time=2.0)
    ...     def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
    ...         pass
    ...     def get_metrics(self):
    ...         return {}
    >>> AlwaysHundred().predict(PredictionRequest(1, [], 0, None)).estimated_remaining_tokens
    100
    """

    @abstractmethod
    def predict(self, request: PredictionRequest) -> PredictionResult:
        """Predict how many more tokens the sequence will generate.

        Raises:
            RequestError: the request has an impossible value; nothing has changed.
        """

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
        """Return the fields of :class:`PredictionMetrics`, and more."""
