"""Intervals of figures over a log, by bootstrap of blocks of neighbouring rows.

Neighbours share clients, sessions and bursts, so rows are drawn in blocks, not one by one (circular
block bootstrap: Politis & Romano 1992).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import numpy as np

DRAWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Range:
    """A figure with its lower and upper end.

    >>> Range.of([0.3, 0.1, 0.2])
    Range(middle=0.2, low=0.1, high=0.3)
    """

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Range:
        """Return the median of values, the least and the largest."""
        return cls(median(values), min(values), max(values))

    @property
    def sign(self) -> int:
        """Return 1 if all of it is above 0, -1 if below, else 0."""
        return (self.low > 0) - (self.high < 0)

    def to_json(self) -> dict[str, Any]:
        """Return the three numbers."""
        return asdict(self)


def saved_share(mine: np.ndarray, theirs: np.ndarray, *, seed: int = 0) -> Range:
    """Return the share of ``theirs`` that ``mine`` saves, with a 95 % interval.

    Args:
        mine: error of each row, in the order of time, shape ``(n,)``.
        theirs: the same of another.
        seed: of the draws.

    >>> saved_share(np.ones(100), np.full(100, 2.0)).low
    0.5
    """
    n, total = len(mine), float(theirs.sum())
    if not total > 0:
        return Range(0.0, 0.0, 0.0)
    length = max(math.isqrt(n), 1)
    starts = np.random.default_rng(seed).integers(n, size=(DRAWS, -(-n // length)))

    def sums(values: np.ndarray) -> np.ndarray:
        cumulative = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values]))])
        return np.asarray((cumulative[starts + length] - cumulative[starts]).sum(axis=1))

    drawn, other = sums(mine), sums(theirs)
    shares = 1 - drawn[other > 0] / other[other > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return Range(1 - float(mine.sum()) / total, float(low), float(high))
