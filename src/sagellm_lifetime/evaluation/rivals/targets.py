"""Regression targets of the boosted rival: three logarithmic forms of the remaining length.

All are monotone in the remaining length at a given age, so a quantile of one is a quantile of the
other. Which one trees fit best depends on the workload: regular totals, or heavy tails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sagellm_lifetime.evaluation.rivals.kaplan_meier import Curve


class Target:
    """The logarithm of a length, relative to a reference at its age.

    Args:
        curve: Kaplan-Meier curve of the training part, which gives the residual-life table.
        total: use the total length; otherwise the remaining one.
        by_age: refer to the residual-life table at the age; otherwise to its start.
    """

    def __init__(self, curve: Curve, *, total: bool, by_age: bool) -> None:
        self._curve = curve
        self._total = total
        self._by_age = by_age

    def of(self, remaining: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Return the regression target of remaining tokens at ages, shape ``(N,)``."""
        return np.asarray(np.log(remaining + age * self._total) - self._reference(age))

    def remaining(self, value: np.ndarray, age: np.ndarray) -> np.ndarray:
        """Return remaining tokens, 1 or more, from values of the target, shape ``(N, Q)``."""
        length = np.exp(value + self._reference(age)[:, None])
        return np.asarray(np.maximum(length - age[:, None] * self._total, 1.0))

    def _reference(self, age: np.ndarray) -> np.ndarray:
        ages, inverse = np.unique(age if self._by_age else np.zeros_like(age), return_inverse=True)
        median = self._curve.residual(ages, np.array([0.5]))[:, 0]
        return np.asarray(np.log(median + ages * self._total)[inverse])


TARGETS: Final[tuple[Callable[[Curve], Target], ...]] = (
    lambda curve: Target(curve, total=False, by_age=True),
    lambda curve: Target(curve, total=True, by_age=True),
    lambda curve: Target(curve, total=True, by_age=False),
)
