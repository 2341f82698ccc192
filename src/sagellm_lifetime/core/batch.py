"""The vectorised twin of :class:`LengthDistribution`: thousands of sequences, no Python loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.distribution import _ROUNDING, TOLERANCE, LengthDistribution

UNCAPPED = np.iinfo(np.int64).max // 4


@dataclass(frozen=True, slots=True, eq=False)
class LengthDistributionBatch:
    """Remaining lengths of ``N`` sequences.

    Attributes:
        rows: cumulative hazards, shape ``(M, BINS + 1)``.
        index: which row each sequence uses, shape ``(N,)``; sequences may share rows.
        ages: tokens generated so far, shape ``(N,)``.
        caps: cap on the total length, shape ``(N,)``; ``UNCAPPED`` for none.
        curves: calibration links, shape ``(B, LEVELS + 1)``, or ``None``.
        bands: which link each sequence uses, shape ``(N,)``.
    """

    rows: np.ndarray
    index: np.ndarray
    ages: np.ndarray
    caps: np.ndarray
    curves: np.ndarray | None = None
    bands: np.ndarray | None = None

    @classmethod
    def stack(cls, items: Sequence[LengthDistribution]) -> LengthDistributionBatch:
        """Batch of distributions that have not been shifted since they were calibrated."""
        if any(d.shift for d in items):
            raise ValueError("stack() takes distributions as predicted, before given()")
        curves = np.stack([link.IDENTITY if d.curve is None else d.curve for d in items])
        caps = [UNCAPPED if d.max_length is None else d.max_length for d in items]
        count = np.arange(len(items))
        return cls(
            rows=np.stack([d.row for d in items]),
            index=count,
            ages=np.array([d.age for d in items], dtype=np.int64),
            caps=np.array(caps, dtype=np.int64),
            curves=curves,
            bands=count,
        )

    def __len__(self) -> int:
        return len(self.ages)

    def survival(self, n: np.ndarray | float) -> np.ndarray:
        """``P(R > n[i])``, shape ``(N,)``."""
        n = np.broadcast_to(np.asarray(n, dtype=np.float64), self.ages.shape)
        return self._survival(n, self._base())

    def uncapped(self, times: np.ndarray) -> np.ndarray:
        """``P(R > times[j])`` of every sequence if it had no cap, shape ``(N, T)``.

        Args:
            times: tokens from now, ascending, the first 0; shape ``(T,)``.
        """
        index = self.index[:, None]
        step = hazard.cumulative_many(self.rows, index, self.ages[:, None] + times)
        step -= step[:, :1].copy()
        if self.curves is not None and self.bands is not None:
            step = link.forward_many(self.curves, self.bands[:, None], step)
        return np.asarray(np.exp(-step))

    def _survival(self, n: np.ndarray, base: np.ndarray) -> np.ndarray:
        total = self.ages + np.maximum(n, 0.0)
        step = hazard.cumulative_many(self.rows, self.index, total) - base
        if self.curves is not None and self.bands is not None:
            step = link.forward_many(self.curves, self.bands, step)
        alive = np.where(total >= self.caps, 0.0, np.exp(-step))
        return np.asarray(np.where(n < 0, 1.0, alive))

    def quantile(self, q: float | np.ndarray) -> np.ndarray:
        """Integer quantiles: shape ``(N,)`` for one level, ``(N, Q)`` for a vector of levels."""
        levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
        base = self._base()
        room = np.maximum(self.caps - self.ages, 0)
        out = np.empty((len(self), len(levels)), dtype=np.int64)
        for j, level in enumerate(levels):
            step: float | np.ndarray = -float(np.log1p(-min(float(level), 1.0 - 1e-15)))
            if self.curves is not None and self.bands is not None:
                step = link.backward_level(self.curves, float(step))[self.bands]
            total = hazard.inverse_many(self.rows, self.index, base + step)
            n = np.ceil(total - self.ages - _ROUNDING).astype(np.int64)
            out[:, j] = np.minimum(np.maximum(n, 1), room)
        return out[:, 0] if np.ndim(q) == 0 else out

    def median(self) -> np.ndarray:
        """Point estimates, shape ``(N,)``."""
        return self.quantile(0.5)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Ends, both included, of the central intervals; two arrays of shape ``(N,)``."""
        tail = (1.0 - level) / 2.0
        return self.quantile(tail), self.quantile(1.0 - tail)

    def within(self, points: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
        """Raw confidence that the totals ``ages + points`` are within the tolerance."""
        totals = self.ages + points
        low = np.ceil(totals / (1.0 + tolerance) - 1e-9)
        high = np.floor(totals / (1.0 - tolerance) + 1e-9)
        base = self._base()
        above = self._survival(low - 1 - self.ages, base)
        return np.asarray(above - self._survival(high - self.ages, base))

    def mean(self) -> np.ndarray:
        """``E[R]`` in tokens, shape ``(N,)``."""
        return np.array([self[i].mean() for i in range(len(self))])

    def __getitem__(self, i: int) -> LengthDistribution:
        cap = int(self.caps[i])
        curve = None
        if self.curves is not None and self.bands is not None:
            curve = self.curves[self.bands[i]]
        return LengthDistribution(
            row=self.rows[self.index[i]],
            age=int(self.ages[i]),
            max_length=None if cap >= UNCAPPED else cap,
            curve=curve,
        )

    def _base(self) -> np.ndarray:
        return hazard.cumulative_many(self.rows, self.index, self.ages)
