"""The forecasts of predictors and rivals at all points, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sagellm_lifetime.core.distribution import TOLERANCE

LEVELS: Final[np.ndarray] = np.array([0.01, *np.arange(1, 20) / 20, 0.99])
"""Quantile levels that are kept; the CRPS uses the 19 inner ones, 0.05 apart."""
LEVELS.flags.writeable = False
INNER: Final = slice(1, 20)


def column(level: float) -> int:
    """Return the column of a quantile level in :attr:`Forecast.quantiles`."""
    return int(np.argmin(np.abs(LEVELS - level)))


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """Predictions of the remaining length at ``P`` points.

    Attributes:
        point: point estimate, tokens, shape ``(P,)``.
        quantiles: remaining tokens at :data:`LEVELS`, shape ``(P, 21)``; ``None`` for a predictor
            without a distribution.
        confidence: stated probability of a total within 10 %, shape ``(P,)``, or ``None``.
    """

    point: np.ndarray
    quantiles: np.ndarray | None = None
    confidence: np.ndarray | None = None


def from_quantiles(quantiles: np.ndarray, ages: np.ndarray, caps: np.ndarray) -> Forecast:
    """Return the forecast of quantiles, in whole tokens from 1 up to the cap.

    Quantiles that cross are sorted (Chernozhukov et al. 2010). The point is the median; the
    confidence is the mass, linear between the quantiles, of the lengths within 10 %.

    Args:
        quantiles: remaining tokens at :data:`LEVELS`, shape ``(P, 21)``.
        ages: tokens generated so far, shape ``(P,)``.
        caps: cap on the total, shape ``(P,)``, a huge number for none.
    """
    tokens = np.ceil(np.sort(quantiles, axis=1) - 1e-6)
    tokens = np.minimum(np.maximum(tokens, 1.0), np.maximum(caps - ages, 0)[:, None])
    point = tokens[:, column(0.5)]
    total = ages + point
    high = np.floor(total / (1.0 - TOLERANCE) + 1e-9) - ages
    low = np.ceil(total / (1.0 + TOLERANCE) - 1e-9) - 1 - ages
    confidence = np.clip(cdf(tokens, high) - cdf(tokens, low), 0.0, 1.0)
    return Forecast(point.astype(np.int64), tokens.astype(np.int64), confidence)


def cdf(quantiles: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return ``P(R <= at)`` per row, shape ``(P,)``, from quantiles at :data:`LEVELS`.

    The largest level whose quantile is at most ``at``, and linearly on towards the next one.
    """
    count = (quantiles <= at[:, None]).sum(axis=1)
    padded = np.column_stack([np.zeros(len(at)), quantiles, 2.0 * quantiles[:, -1] + 1.0])
    levels = np.array([0.0, *LEVELS, 1.0])
    row = np.arange(len(at))
    low, high = padded[row, count], padded[row, count + 1]
    part = np.clip((at - low) / np.maximum(high - low, 1.0), 0.0, 1.0)
    return np.asarray(np.where(at <= 0, 0.0, levels[count] + part * np.diff(levels)[count]))
