"""Running mean and variance of lengths, with slow forgetting."""

from __future__ import annotations

from math import log, sqrt

import numpy as np

PRIOR_MEDIAN = 200.0
PRIOR_LOG_SD = 1.6
"""Prior before any data: median in tokens, and standard deviation of the logarithm; see
``residual_life.prior_hazards``."""
_PRIOR_WEIGHT = 2.0
_MEMORY = 1.0 - 1.0 / 2000.0


class Moments:
    """Exponentially weighted mean and variance (West 1979) of tokens per sequence.

    Args:
        weight: effective number of lengths.
        mean: mean length, tokens.
        spread: weighted sum of squared deviations, tokens squared.
    """

    def __init__(self, weight: float = 0.0, mean: float = 0.0, spread: float = 0.0) -> None:
        self.weight, self.mean, self.spread = weight, mean, spread

    def add(self, value: float) -> None:
        """Add one length in tokens."""
        self.weight = self.weight * _MEMORY + 1.0
        gap = value - self.mean
        self.mean += gap / self.weight
        self.spread = self.spread * _MEMORY + gap * (value - self.mean)

    def merge(self, other: Moments) -> None:
        """Add other lengths (Chan, Golub and LeVeque 1983)."""
        weight = self.weight + other.weight
        if not weight:
            return
        gap = other.mean - self.mean
        share = self.weight * other.weight / weight
        self.mean = (self.weight * self.mean + other.weight * other.mean) / weight
        self.spread = self.spread + other.spread + gap * gap * share
        self.weight = weight

    def variance(self) -> float:
        """Return the variance in tokens squared, 0 before the first length."""
        return self.spread / self.weight if self.weight else 0.0

    def log_normal(self) -> tuple[float, float]:
        """Return median and standard deviation of ``log L`` of the log-normal with these moments.

        ``sd**2 = log(1 + variance / mean**2)``. With few lengths the standard deviation is shrunk
        towards the prior's, since it would be 0 for two equal lengths.
        """
        mean = max(self.mean, 1.0)
        sd = sqrt(log(1.0 + self.variance() / mean**2))
        share = self.weight / (self.weight + _PRIOR_WEIGHT)
        return mean * np.exp(-(sd**2) / 2), max(share * sd + (1 - share) * PRIOR_LOG_SD, 0.02)

    def state(self) -> np.ndarray:
        """Return weight, mean and spread, float64 of shape ``(3,)``."""
        return np.array([self.weight, self.mean, self.spread])
