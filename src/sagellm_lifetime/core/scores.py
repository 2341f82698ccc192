"""The running score of a predictor on its own completions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sagellm_lifetime.core.distribution import TOLERANCE
from sagellm_lifetime.core.protocol import PredictionMetrics


@dataclass(slots=True)
class Scores:
    """Counts of what ended, and sums over the ``scored``: those that ended by themselves.

    A sequence that reached its cap is not scored. Its length is the cap, by which the answer was
    bounded: nearly any answer would be a hit, and say nothing of the predictor. It is counted as
    ``capped``, and as every other that was cut off, as ``censored``.
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

    def ended(self, reason: str, length: int, said: tuple[int, float] | None) -> None:
        """Count one sequence that ended.

        Args:
            reason: finish reason.
            length: tokens generated.
            said: total and confidence of its first prediction, or ``None`` where there was none.
        """
        if reason != "stop":
            self.censored += 1
            self.capped += reason == "length"
            return
        self.completions += 1
        if said is not None:
            total, confidence = said
            error = abs(total - length)
            self.scored += 1
            self.absolute += error
            self.squared += error * error
            self.hits += error <= TOLERANCE * length
            self.confidence += confidence

    def metrics(self, total_predictions: int) -> dict[str, Any]:
        """Fields of :class:`PredictionMetrics`; NaN where nothing has been scored yet."""

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
