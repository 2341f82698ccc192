"""The running score of a predictor on its own completions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sagellm_lifetime.core.distribution import TOLERANCE
from sagellm_lifetime.core.protocol import PredictionMetrics


@dataclass(slots=True)
class Scores:
    """Sums over the completions whose length is known (``stop`` and ``length``)."""

    scored: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    hits: int = 0
    confidence: float = 0.0
    completions: int = 0
    censored: int = 0
    unknown_updates: int = 0

    def score(self, predicted_total: int, actual_total: int, confidence: float) -> None:
        """Count one first prediction against what came of it."""
        error = abs(predicted_total - actual_total)
        self.scored += 1
        self.absolute += error
        self.squared += error * error
        self.hits += error <= TOLERANCE * actual_total
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
