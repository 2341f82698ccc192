"""Vectorised form of :class:`LengthDistribution` for thousands of sequences at once.

Its answers equal those of the scalar form to the last bit, because the operations are the same, in
the same order. Exponentials are therefore computed one by one: those of NumPy differ from the
scalar one, by machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from sagellm_lifetime.core import hazard, link, values
from sagellm_lifetime.core.distribution import TOLERANCE, LengthDistribution, tolerance_parts
from sagellm_lifetime.core.errors import RequestError, shown

UNCAPPED = np.iinfo(np.int64).max // 4


@dataclass(frozen=True, slots=True, eq=False)
class LengthDistributionBatch:
    """Remaining lengths of ``N`` sequences.

    Attributes:
        rows: cumulative hazards, shape ``(M, BINS + 1)``, or wide ones, ``(M, WIDE)``.
        index: which row each sequence uses, shape ``(N,)``; sequences may share rows.
        ages: tokens generated so far, shape ``(N,)``.
        caps: cap on the total length, shape ``(N,)``; ``UNCAPPED`` for none.
        curves: calibration links, shape ``(B, LEVELS + 1)``, or ``None``.
        bands: which link each sequence uses, shape ``(N,)``; -1 for none.

    >>> import numpy as np
    >>> from sagellm_lifetime import LengthDistribution
    >>> from sagellm_lifetime.core.hazard import log_logistic
    >>> short, long = (LengthDistribution(log_logistic(m, 0.5)) for m in (100.0, 1000.0))
    >>> batch = LengthDistributionBatch.stack([short, long])
    >>> batch.median().tolist()
    [100, 1000]
    >>> batch.quantile(np.array([0.1, 0.9])).shape
    (2, 2)
    """

    rows: np.ndarray
    index: np.ndarray
    ages: np.ndarray
    caps: np.ndarray
    curves: np.ndarray | None = None
    bands: np.ndarray | None = None

    @classmethod
    def stack(cls, items: Sequence[LengthDistribution]) -> LengthDistributionBatch:
        """Return a batch of distributions that were not shifted since they were calibrated.

        Raise :class:`RequestError` for others.
        """
        if any(d.shift for d in items):
            raise RequestError("stack() takes distributions as predicted, before given()")
        index = np.arange(len(items))
        if not items:
            return cls(np.zeros((0, hazard.ROW), dtype=np.float32), index, index, index)
        # Many sequences share few links.
        links = {id(d.curve): d.curve for d in items if d.curve is not None}
        band_of = {key: band for band, key in enumerate(links)}
        caps = [UNCAPPED if d.max_length is None else min(d.max_length, UNCAPPED) for d in items]
        return cls(
            rows=hazard.stacked([d.row for d in items]),
            index=index,
            ages=np.array([d.age for d in items], dtype=np.int64),
            caps=np.array(caps, dtype=np.int64),
            curves=np.stack(list(links.values())) if links else None,
            bands=np.array([band_of.get(id(d.curve), -1) for d in items]),
        )

    def __len__(self) -> int:
        return len(self.ages)

    def survival(self, n: np.ndarray | float) -> np.ndarray:
        """Return ``P(R > n[i])``, shape ``(N,)``.

        Args:
            n: one number for all, or one for each sequence, shape ``(N,)``.

        Raises:
            RequestError: NaN, or another shape.
        """
        # Infinity has no place on the grid; no sequence is as long as 1e300.
        return self._survival(np.minimum(self._per_sequence(n, "n"), 1e300), self._base())

    def uncapped(self, times: np.ndarray) -> np.ndarray:
        """Return ``P(R > times[j])`` of every sequence if it had no cap, shape ``(N, T)``.

        Resolved to the bins of the grid: recurring values inside a bin are left out, for the cost.

        Args:
            times: tokens from now, ascending, the first 0; shape ``(T,)``.
        """
        index = self.index[:, None]
        rows = self.rows[:, : hazard.ROW]
        step = hazard.cumulative_many(rows, index, self.ages[:, None] + times)
        step -= step[:, :1].copy()
        return np.asarray(np.exp(-self._calibrated(step)))

    def _survival(self, n: np.ndarray, base: np.ndarray) -> np.ndarray:
        total = self.ages + np.maximum(n, 0.0)
        step = hazard.cumulative_many(self.rows, self.index, total) - base
        step = self._calibrated(step)
        alive = np.fromiter(map(exp, (-step).tolist()), np.float64, len(step))
        alive[total >= self.caps] = 0.0
        alive[n < 0] = 1.0
        return alive

    def quantile(self, q: float | np.ndarray) -> np.ndarray:
        """Return quantiles as the scalar form does, int64.

        Args:
            q: one level, or a vector of ``Q`` levels.

        Returns:
            Shape ``(N,)`` for one level, ``(N, Q)`` for a vector.

        Raises:
            RequestError: levels that are NaN or outside 0 to 1, or in more than one dimension.
        """
        levels = values.as_reals(q, "quantile levels")
        if levels.ndim > 1:
            raise RequestError(f"levels must be one number or a vector, got {shown(q)}")
        if not ((levels >= 0.0) & (levels <= 1.0)).all():
            raise RequestError("quantile levels must lie between 0 and 1")
        base = self._base()
        room = np.maximum(self.caps - self.ages, 0)
        quantiles = np.empty((len(self), levels.size), dtype=np.int64)
        for j, level in enumerate(levels.ravel().tolist()):
            quantiles[:, j] = np.minimum(self._first_reaching(level, base), room)
        return quantiles if levels.ndim else quantiles[:, 0]

    def _first_reaching(self, level: float, base: np.ndarray) -> np.ndarray:
        if level == 0.0:
            return np.ones(len(self), dtype=np.int64)
        steps = np.full(len(self), link.threshold(None, level))
        if self.curves is not None and self.bands is not None:
            calibrated = link.thresholds(self.curves, level).take(self.bands, mode="wrap")
            steps = np.where(self.bands < 0, steps, calibrated)
        return hazard.first_reaching_many(self.rows, self.index, base, steps, self.ages)

    def median(self) -> np.ndarray:
        """Return the point estimates, shape ``(N,)``."""
        return self.quantile(0.5)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends, both included, of the central intervals; two arrays of shape ``(N,)``.

        Raise :class:`RequestError` if ``level`` is not one number between 0 and 1.
        """
        tail = (1.0 - values.as_level(level, "the level of an interval")) / 2.0
        return self.quantile(tail), self.quantile(1.0 - tail)

    def within(self, points: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
        """Return the raw confidence that the totals ``ages + points`` are within the tolerance.

        Raise :class:`RequestError` if a point is not a whole number of 0 or more, or ``tolerance``
        not from 0 to below 1.
        """
        whole = points
        if not _are_counts(points) or points.shape != self.ages.shape:
            numbers = self._per_sequence(points, "points")
            whole = np.clip(numbers, -1, values.LARGEST_AGE).astype(np.int64)
            if (whole != numbers).any():
                raise RequestError(f"points must be whole numbers up to {values.LARGEST_AGE}")
        if (whole < 0).any():
            raise RequestError("points must be 0 or more")
        below, above, parts = tolerance_parts(tolerance)
        totals = (self.ages + whole) * parts
        base = self._base()
        alive = self._survival((-(-totals // above) - 1 - self.ages).astype(np.float64), base)
        return np.asarray(
            alive - self._survival((totals // below - self.ages).astype(np.float64), base)
        )

    def mean(self) -> np.ndarray:
        """Return ``E[R]`` in tokens, shape ``(N,)``."""
        return np.array([self[i].mean() for i in range(len(self))])

    def __getitem__(self, i: int) -> LengthDistribution:
        cap = int(self.caps[i])
        curve = None
        if self.curves is not None and self.bands is not None and self.bands[i] >= 0:
            curve = self.curves[self.bands[i]]
        return LengthDistribution(
            row=self.rows[self.index[i]],
            age=int(self.ages[i]),
            max_length=None if cap >= UNCAPPED else cap,
            curve=curve,
        )

    def _calibrated(self, steps: np.ndarray) -> np.ndarray:
        """Return calibrated cumulative hazards, shape ``(N,)`` or ``(N, T)``."""
        if self.curves is None or self.bands is None:
            return steps
        bands = self.bands if steps.ndim == 1 else self.bands[:, None]
        return np.where(bands < 0, steps, link.forward_many(self.curves, bands, steps))

    def _per_sequence(self, given: np.ndarray | float, name: str) -> np.ndarray:
        """Return one number for each sequence, float64, shape ``(N,)``."""
        numbers = values.as_reals(given, name)
        if numbers.ndim and numbers.shape != self.ages.shape:
            raise RequestError(
                f"{name} must be one number or {len(self)} of them, got {shown(numbers)}"
            )
        return np.broadcast_to(numbers, self.ages.shape)

    def _base(self) -> np.ndarray:
        return hazard.cumulative_many(self.rows, self.index, self.ages)


def _are_counts(points: Any) -> bool:
    return isinstance(points, np.ndarray) and points.dtype.kind in "iu"
