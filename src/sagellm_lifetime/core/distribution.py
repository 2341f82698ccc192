"""Distribution of a length, conditioned on the tokens generated so far.

All answers derive from the survival ``P(R > n)`` as computed in floats: a quantile is the smallest
``n`` that reaches its level, a median and an interval are quantiles, a confidence is a difference
of two survivals. The batch does the same operations in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import ceil, exp, expm1
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core import hazard, link, values
from sagellm_lifetime.core.grid import EDGES, TAIL_HAZARD

TOLERANCE: Final = 0.10
"""Relative error of the total length within which a prediction is a hit, for ``confidence``."""
_FINEST: Final = 1_000_000
"""Largest denominator of a tolerance."""
_LEAST_HAZARD: Final = 1.0 / values.LARGEST_AGE
"""Least share of sequences that a mean assumes to end with each token beyond the last point."""

_MUCH: Final = 0.25
"""Hazard of a step above which a mean cuts it into parts."""
_PARTS: Final = 9
"""Ends of the parts into which a mean cuts a step."""


@dataclass(slots=True, eq=False, repr=False)  # frozen costs 0.5 µs each, and engines make many
class LengthDistribution:
    """Distribution of the remaining length ``R = min(L, max_length) - age`` given ``L > age``.

    Attributes:
        row: cumulative hazard of the total length on the grid, shape ``(BINS + 1,)``, or wide
            (see :mod:`~sagellm_lifetime.core.hazard`).
        age: tokens already generated when the calibration ``curve`` was applied.
        shift: tokens generated since then (see :meth:`given`).
        max_length: cap on the total length, or ``None``.
        curve: calibration link, shape ``(LEVELS + 1,)``, or ``None`` for none.

    >>> from sagellm_lifetime.core.hazard import log_logistic
    >>> distribution = LengthDistribution(log_logistic(median=200.0, log_sd=0.5), max_length=512)
    >>> distribution.median(), distribution.given(150).median()
    (200, 82)
    >>> distribution.survival(511) > 0.0 == distribution.survival(512)
    True
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
        """Return the distribution of the remaining tokens after ``age`` more of them.

        ``given(a).given(b)`` is ``given(a + b)``. Raise :class:`RequestError` if ``age`` is not a
        whole number of 0 or more.
        """
        age = values.as_token_count(age, "age")
        if self.curve is None:
            return replace(self, age=self.age + age)
        return replace(self, shift=self.shift + age)

    def survival(self, n: float) -> float:
        """Return ``P(R > n)``: 1 for ``n < 0``, 0 from the cap on and at infinity.

        Between two whole numbers the hazard is shared out evenly. Raise :class:`RequestError` if
        ``n`` is NaN or not one number.
        """
        # A call costs more than this test, which nearly every argument passes; NaN fails it.
        if (type(n) is not int and type(n) is not float) or not n <= values.LARGEST_AGE:
            n = values.as_real(n, "n")
        if n < 0:
            return 1.0
        total = self.age + self.shift + n
        if self.max_length is not None and total >= self.max_length:
            return 0.0
        return exp(self._hazard(self.age + self.shift) - self._hazard(total))

    def quantile(self, q: float) -> int:
        """Return the smallest ``n >= 1`` with ``1 - survival(n) >= q``; 0 where the cap is reached.

        Raise :class:`RequestError` if ``q`` is not one number between 0 and 1.
        """
        q = values.as_level(q, "a quantile level")
        start = self.age + self.shift
        room = None if self.max_length is None else self.max_length - start
        if room is not None and room <= 0:
            return 0
        if q == 0.0:
            return 1
        step = link.threshold(self.curve, q, self._hazard(start) if self.shift else 0.0)
        n = hazard.first_reaching(self.row, hazard.cumulative(self.row, self.age), step, start)
        return n if room is None else min(n, room)

    def median(self) -> int:
        """Return ``quantile(0.5)``: the point estimate of every predictor."""
        return self.quantile(0.5)

    def interval(self, level: float) -> tuple[int, int]:
        """Return the central interval ``(low, high)``, both ends included, of that probability.

        Raise :class:`RequestError` if ``level`` is not one number between 0 and 1.
        """
        tail = (1.0 - values.as_level(level, "the level of an interval")) / 2.0
        return self.quantile(tail), self.quantile(1.0 - tail)

    def mean(self) -> float:
        """Return ``E[R]`` in tokens; the part beyond the grid adds at most 2**53 of them."""
        start = self.age + self.shift
        if self.max_length is not None and start >= self.max_length:
            return 0.0
        points = EDGES[start < EDGES]
        if self.row.size > hazard.ROW:
            knots = self.row[hazard.ROW : hazard.ROW + hazard.KNOTS]
            points = np.union1d(points, knots[(knots > start) & np.isfinite(knots)])
        last = 1.0
        if self.curve is not None:
            # Inside a bin the hazard bends where a segment of the link ends.
            base = hazard.cumulative(self.row, self.age)
            bends = [ceil(hazard.inverse(self.row, base + x)) for x in link.EDGES[1:].tolist()]
            points = np.unique([*points, *(bend for bend in bends if bend > start)])
            last = link.last_factor(self.curve)
        if self.max_length is not None:
            points = np.append(points[points < self.max_length], self.max_length)
        at = np.concatenate([[start], points]).astype(np.float64)
        steps = self._hazards(at) - self._hazard(start)
        wide = np.flatnonzero(np.diff(steps) > _MUCH)
        if wide.size:
            parts = np.linspace(at[wide], at[wide + 1], _PARTS)
            at = np.unique(np.concatenate([at, np.rint(parts).ravel()]))
            steps = self._hazards(at) - self._hazard(start)
        alive = np.exp(-steps)
        # Sum of S(n) over the integers of each step, S geometric inside a step. A step in which
        # much ends was cut above, since there S may be straight.
        # The points are distinct whole numbers; above 2**53 two of them may be one float.
        widths = np.maximum(np.diff(at), 1.0)
        ratio = np.exp(-np.maximum(np.diff(steps), 0.0) / widths)
        drop = alive[:-1] - alive[1:]
        total = float(
            np.where(
                1 - ratio > 1e-12, drop / np.maximum(1 - ratio, 1e-12), alive[:-1] * widths
            ).sum()
        )
        if self.max_length is None:
            total += float(alive[-1]) / max(-expm1(-TAIL_HAZARD * last), _LEAST_HAZARD)
        return total

    def within(self, point: int, tolerance: float = TOLERANCE) -> float:
        """Return ``P(|T - L| <= tolerance * L)`` for the total ``T`` = age so far + ``point``.

        This is the raw ``confidence`` when ``point`` is the median. Raise :class:`RequestError` if
        ``point`` is not a whole number of 0 or more, or ``tolerance`` not from 0 to below 1.
        """
        start = self.age + self.shift
        low, high = tolerance_band(start + values.as_token_count(point, "point"), tolerance)
        return self.survival(low - 1 - start) - self.survival(high - start)

    def _hazard(self, total: float) -> float:
        """Return the calibrated cumulative hazard between ``age`` and ``total``."""
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
    """Return the median of the remaining length and its raw confidence, for the hot path.

    Equal to ``quantile(0.5)`` and ``within(median)`` of the distribution with these fields.
    """
    if max_length is not None and age >= max_length:
        return 0, 1.0
    base = hazard.cumulative(row, age) if age else 0.0
    n = hazard.first_reaching(row, base, link.threshold(curve, 0.5), age)
    if max_length is not None and age + n > max_length:
        n = max_length - age
    total = age + n
    low, high = -(-10 * total // 11), 10 * total // 9
    above = 1.0
    if low - 1 > age:
        above = exp(-link.forward(curve, hazard.cumulative(row, low - 1) - base))
    if max_length is not None and high >= max_length:
        return n, above
    return n, above - exp(-link.forward(curve, hazard.cumulative(row, high) - base))


def tolerance_band(total: int, tolerance: float = TOLERANCE) -> tuple[int, int]:
    """Return the lengths ``low..high`` (included) for which ``total`` is within the tolerance.

    In whole numbers, so that an error of exactly 10 % counts however long the sequence is. Raise
    :class:`RequestError` if ``tolerance`` is not from 0 to below 1.
    """
    below, above, parts = tolerance_parts(tolerance)
    return -(-parts * total // above), parts * total // below


def tolerance_parts(tolerance: Any) -> tuple[int, int, int]:
    """Return ``(1 - tolerance, 1 + tolerance, 1)`` times the denominator of the tolerance.

    A tolerance is taken as the decimal that it is written as, to a millionth: 0.1 is a tenth.
    """
    return _parts(values.as_tolerance(tolerance))


@lru_cache(maxsize=64)
def _parts(tolerance: float) -> tuple[int, int, int]:
    share = Fraction(repr(tolerance)).limit_denominator(_FINEST)
    if share == 1:  # the nearest fraction below 1
        share = Fraction(_FINEST - 1, _FINEST)
    parts, whole = share.numerator, share.denominator
    return whole - parts, whole + parts, whole
