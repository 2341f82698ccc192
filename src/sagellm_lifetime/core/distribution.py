"""The distribution of a length, conditioned on what has been generated already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, exp, expm1, floor, log, log1p

import numpy as np

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.grid import EDGES, TAIL_HAZARD

TOLERANCE = 0.10
"""The relative error of the total length that ``confidence`` speaks of."""
_HALF = log(2.0)
_ROUNDING = 1e-4
"""Tokens of slack before a quantile is rounded up, so that float32 rows do not add a token."""


@dataclass(slots=True, eq=False, repr=False)  # frozen costs 0.5 µs each, and engines make many
class LengthDistribution:
    """Distribution of the remaining length ``R = min(L, max_length) - age`` given ``L > age``.

    Attributes:
        row: cumulative hazard of the total length on the grid, shape ``(BINS + 1,)``.
        age: tokens already generated when the calibration ``curve`` was laid over it.
        shift: tokens generated since then (see :meth:`given`).
        max_length: cap on the total length, or ``None``.
        curve: calibration link, shape ``(LEVELS + 1,)``, or ``None`` for none.
    """

    row: np.ndarray
    age: int = 0
    shift: int = 0
    max_length: int | None = None
    curve: np.ndarray | None = None

    def __repr__(self) -> str:
        low, high = self.interval(0.9)
        return f"LengthDistribution(median={self.median()}, interval_90=({low}, {high}))"

    def given(self, age: int) -> LengthDistribution:
        """The distribution of what remains after ``age`` more tokens (``given(a).given(b)`` is
        ``given(a + b)``)."""
        if age < 0:
            raise ValueError(f"age must be 0 or more, got {age}")
        if self.curve is None:
            return replace(self, age=self.age + age)
        return replace(self, shift=self.shift + age)

    def survival(self, n: float) -> float:
        """``P(R > n)``."""
        if n < 0:
            return 1.0
        total = self.age + self.shift + n
        if self.max_length is not None and total >= self.max_length:
            return 0.0
        return exp(self._hazard(self.age + self.shift) - self._hazard(total))

    def quantile(self, q: float) -> int:
        """Smallest ``n >= 1`` with ``P(R <= n) >= q``; 0 only when the cap is reached."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"a quantile level lies between 0 and 1, got {q}")
        start = self.age + self.shift
        room = None if self.max_length is None else self.max_length - start
        if room is not None and room <= 0:
            return 0
        step = self._hazard(start) - log1p(-min(q, 1.0 - 1e-15))
        if self.curve is not None:
            step = link.backward(self.curve, step)
        target = hazard.cumulative(self.row, self.age) + step
        n = max(1, ceil(hazard.inverse(self.row, target) - start - _ROUNDING))
        return n if room is None else min(n, room)

    def median(self) -> int:
        """``quantile(0.5)``: the point estimate of every predictor."""
        return self.quantile(0.5)

    def interval(self, level: float) -> tuple[int, int]:
        """Central interval ``(low, high)``, both ends included, of probability ``level``."""
        tail = (1.0 - level) / 2.0
        return self.quantile(tail), self.quantile(1.0 - tail)

    def mean(self) -> float:
        """``E[R]`` in tokens."""
        start = self.age + self.shift
        if self.max_length is not None and start >= self.max_length:
            return 0.0
        points = EDGES[start < EDGES]
        last = 1.0
        if self.curve is not None:
            # Inside a bin the hazard bends where a segment of the link ends.
            base = hazard.cumulative(self.row, self.age)
            knots = [ceil(hazard.inverse(self.row, base + x)) for x in link.EDGES[1:].tolist()]
            points = np.unique([*points, *(at for at in knots if at > start)])
            last = link.last_factor(self.curve)
        if self.max_length is not None:
            points = np.append(points[points < self.max_length], self.max_length)
        at = np.concatenate([[start], points]).astype(np.float64)
        steps = self._hazards(at) - self._hazard(start)
        alive = np.exp(-steps)
        # Sum of S(n) over the integers of each step, S geometric inside a step.
        widths = np.diff(at)
        ratio = np.exp(-np.maximum(np.diff(steps), 0.0) / widths)
        drop = alive[:-1] - alive[1:]
        total = float(
            np.where(
                1 - ratio > 1e-12, drop / np.maximum(1 - ratio, 1e-12), alive[:-1] * widths
            ).sum()
        )
        if self.max_length is None:
            total += float(alive[-1]) / -expm1(-TAIL_HAZARD * last)
        return total

    def within(self, point: int, tolerance: float = TOLERANCE) -> float:
        """``P(|T - L| <= tolerance * L)`` for the predicted total ``T`` = age so far + ``point``.

        This is the raw ``confidence`` when ``point`` is the median.
        """
        start = self.age + self.shift
        low, high = tolerance_band(start + point, tolerance)
        return self.survival(low - 1 - start) - self.survival(high - start)

    def _hazard(self, total: float) -> float:
        """Calibrated cumulative hazard between ``age`` and ``total``."""
        step = hazard.cumulative(self.row, total) - hazard.cumulative(self.row, self.age)
        return step if self.curve is None else link.forward(self.curve, step)

    def _hazards(self, totals: np.ndarray) -> np.ndarray:
        index = np.zeros(len(totals), dtype=np.int64)
        steps = hazard.cumulative_many(self.row[None], index, totals)
        steps -= hazard.cumulative(self.row, self.age)
        return steps if self.curve is None else link.forward_many(self.curve[None], index, steps)


def point_and_confidence(
    row: np.ndarray, age: int, max_length: int | None, curve: np.ndarray
) -> tuple[int, float]:
    """Median of the remaining length and raw confidence, in one pass for the hot path.

    Equal to ``quantile(0.5)`` and ``within(median)`` of the distribution with these fields.
    """
    if max_length is not None and age >= max_length:
        return 0, 1.0
    base = hazard.cumulative(row, age) if age else 0.0
    total = hazard.inverse(row, base + link.backward(curve, _HALF))
    n = max(1, ceil(total - age - _ROUNDING))
    if max_length is not None:
        n = min(n, max_length - age)
    low, high = tolerance_band(age + n)
    above = 1.0
    if low - 1 > age:
        above = exp(-link.forward(curve, hazard.cumulative(row, low - 1) - base))
    if max_length is not None and high >= max_length:
        return n, above
    return n, above - exp(-link.forward(curve, hazard.cumulative(row, high) - base))


def tolerance_band(total: int, tolerance: float = TOLERANCE) -> tuple[int, int]:
    """Lengths ``low..high`` (included) for which ``total`` is within the tolerance."""
    return ceil(total / (1.0 + tolerance) - 1e-9), floor(total / (1.0 - tolerance) + 1e-9)
