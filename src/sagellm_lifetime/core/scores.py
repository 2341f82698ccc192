"""Running scores of a predictor on its own completions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sagellm_lifetime.core.distribution import TOLERANCE
from sagellm_lifetime.core.protocol import PredictionMetrics


@dataclass(slots=True)
class Scores:
    """Counts of ended sequences, and sums over the ``scored`` ones, which ended by themselves.

    A sequence that reached its cap is not scored: its length is the cap, which bounded the answer
    too, so that nearly any answer would be a hit. It is counted as ``capped`` and, like every
    other that was cut off, as ``censored``.
    """

    scored: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    hits: int = 0
    confidence: float = 0.0
    completions: int = 0
    censored: int = 0
    capped: int = 0
    unknown_updates: int = 0

    def ended(self, reason: str, length: int, first: tuple[int, float] | None) -> None:
        """Count one sequence that ended.

        Args:
            reason: finish reason.
            length: tokens generated.
            first: total and confidence of its first prediction; ``None`` without one.
        """
        if reason != "stop":
            self.censored += 1
            self.capped += reason == "length"
            return
        self.completions += 1
        if first is not None:
            total, confidence = first
            error = abs(total - length)
            self.scored += 1
            self.absolute += error
            self.squared += error * error
            self.hits += error <= TOLERANCE * length
            self.confidence += confidence

    def metrics(self, total_predictions: int) -> dict[str, Any]:
        """Return the fields of :class:`PredictionMetrics`, NaN while nothing has been scored."""

        def mean(value: float) -> float:
            return value / self.scored if self.scored else float("nan")

        return asdict(
            PredictionMetrics(
                total_predictions=total_predictions,
                mae=mean(self.absolute),
                mse=mean(self.squared),
                accuracy_within_10_percent=mean(self.hits),
                avg_confidence=mean(self.confidence),
            )
        )
