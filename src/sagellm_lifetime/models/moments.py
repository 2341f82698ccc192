"""Running mean and variance of lengths, fading slowly."""

from __future__ import annotations

from math import log, sqrt

import numpy as np

PRIOR_MEDIAN = 200.0
PRIOR_LOG_SD = 1.6
"""What is believed before data; see ``residual_life.prior_hazards``."""
_PRIOR_WEIGHT = 2.0
_MEMORY = 1.0 - 1.0 / 2000.0


class Moments:
    """Exponentially weighted mean and variance (West 1979) of tokens per sequence."""

    def __init__(self, weight: float = 0.0, mean: float = 0.0, spread: float = 0.0) -> None:
        self.weight, self.mean, self.spread = weight, mean, spread

    def add(self, value: float) -> None:
        """Count one length."""
        self.weight = self.weight * _MEMORY + 1.0
        gap = value - self.mean
        self.mean += gap / self.weight
        self.spread = self.spread * _MEMORY + gap * (value - self.mean)

    def variance(self) -> float:
        """Variance in tokens squared."""
        return self.spread / self.weight if self.weight else 0.0

    def log_normal(self) -> tuple[float, float]:
        """Median and standard deviation of ``log L`` of the log-normal with these moments.

        ``sd**2 = log(1 + variance / mean**2)``; with few observations the spread leans to the
        prior's, since two equal lengths do not make a certainty.
        """
        mean = max(self.mean, 1.0)
        sd = sqrt(log(1.0 + self.variance() / mean**2))
        share = self.weight / (self.weight + _PRIOR_WEIGHT)
        return mean * np.exp(-(sd**2) / 2), max(share * sd + (1 - share) * PRIOR_LOG_SD, 0.02)

    def state(self) -> np.ndarray:
        """Return what was learned, shape ``(3,)``."""
        return np.array([self.weight, self.mean, self.spread])
