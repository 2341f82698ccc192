"""Calibration by age: intervals that cover what they say, a confidence that is a frequency.

Two maps for each band of ages, both learned from completions and both forgetting slowly:

* a :mod:`link <sagellm_lifetime.core.link>` from the histogram of the probability integral
  transform (Kuleshov et al. 2018), laid over the conditioned distribution;
* a correction of the raw confidence ``P(|T - L| <= 10 % L)`` towards the observed hit rate.

A band with little data borrows from all ages together, and those from the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sagellm_lifetime.core import link
from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch

AGE_EDGES: Final[np.ndarray] = np.array([1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
BANDS: Final = len(AGE_EDGES) + 1
_AGE_EDGE_LIST: Final = [int(a) for a in AGE_EDGES]
_PRIOR: Final = 60.0
"""Pseudo-observations with which a band starts."""
_MEMORY: Final = 6000.0
"""Observations a band remembers: older ones fade, so that drift is followed."""
_STEPS: Final = 10
_MEDIAN_CUTS: Final = 1e-6


def band_of(age: int) -> int:
    """Band of one age."""
    band = 0
    for edge in _AGE_EDGE_LIST:
        if age < edge:
            break
        band += 1
    return band


def bands_of(ages: np.ndarray) -> np.ndarray:
    """Bands of many ages."""
    return np.searchsorted(AGE_EDGES, ages, side="right")


@dataclass(frozen=True)
class Outcomes:
    """What became of ``N`` predictions: final lengths, and whether they are only lower bounds."""

    lengths: np.ndarray
    censored: np.ndarray


class Calibration:
    """Links and confidence maps for every band; start as the identity."""

    def __init__(self) -> None:
        self._pit = np.zeros((BANDS, link.LEVELS))
        self._hits = np.zeros((BANDS, _STEPS + 1))
        self._said = np.zeros((BANDS, _STEPS + 1))
        self._seen = np.zeros((BANDS, _STEPS + 1))
        self._refresh()

    def confidence(self, band: int, raw: float) -> float:
        """Calibrated confidence of one prediction."""
        position = raw * _STEPS
        k = min(int(position), _STEPS - 1)
        low = self.maps.item(band, k)
        return low + (self.maps.item(band, k + 1) - low) * (position - k)

    def confidences(self, bands: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Calibrated confidences, shape ``(N,)``."""
        position = raw * _STEPS
        k = np.minimum(position.astype(np.int64), _STEPS - 1)
        low = self.maps[bands, k]
        return np.asarray(low + (self.maps[bands, k + 1] - low) * (position - k))

    def learn(self, predicted: LengthDistributionBatch, outcomes: Outcomes) -> None:
        """Learn from predictions (as they were before calibration) and what became of them.

        Args:
            predicted: uncalibrated distributions at ages that do not depend on the outcome.
            outcomes: total lengths, shape ``(N,)``, all above the ages.
        """
        if len(predicted) == 0:
            return
        bands = bands_of(predicted.ages)
        self._learn_levels(predicted, bands, outcomes)
        self._refresh_curves()
        calibrated = LengthDistributionBatch(
            predicted.rows, predicted.index, predicted.ages, predicted.caps, self.curves, bands
        )
        self._learn_confidence(calibrated, bands, outcomes)
        self._refresh()

    def _learn_levels(
        self, predicted: LengthDistributionBatch, bands: np.ndarray, outcomes: Outcomes
    ) -> None:
        remaining = outcomes.lengths - predicted.ages
        open_ended = LengthDistributionBatch(
            predicted.rows,
            predicted.index,
            predicted.ages,
            np.full(len(predicted), UNCAPPED),
        )
        # A length is an integer: its level is the whole step of the distribution there.
        low = 1.0 - open_ended.survival(remaining - 1)
        high = 1.0 - open_ended.survival(remaining)
        low = np.where(outcomes.censored, high, low)
        high = np.where(outcomes.censored, 1.0, high)
        low = np.minimum(low, high - _MEDIAN_CUTS)
        edges = link.KNOTS
        overlap = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
        mass = np.maximum(overlap, 0.0)
        # A censored outcome lies somewhere above: spread it as the outcomes seen so far are.
        density = np.diff(self.curves, axis=1)[bands] * link.LEVELS
        mass = np.where(outcomes.censored[:, None], mass * density, mass)
        total = mass.sum(axis=1, keepdims=True)
        mass = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
        fresh = np.zeros_like(self._pit)
        np.add.at(fresh, bands, mass)
        self._pit = _faded(self._pit, fresh.sum(axis=1, keepdims=True)) + fresh

    def _learn_confidence(
        self, predicted: LengthDistributionBatch, bands: np.ndarray, outcomes: Outcomes
    ) -> None:
        points = predicted.median()
        raw = predicted.within(points)
        totals = predicted.ages + points
        actual = np.minimum(outcomes.lengths, predicted.caps)
        # Capped sequences end at a known length; an abort says nothing about a hit.
        known = ~outcomes.censored | (outcomes.lengths >= predicted.caps)
        hits = (np.abs(totals - actual) <= 0.10 * actual)[known]
        raw, bands = raw[known], bands[known]
        position = raw * _STEPS
        left = np.minimum(position.astype(np.int64), _STEPS - 1)
        right_share = position - left
        fresh = np.zeros((3, *self._seen.shape))
        for knot, weight in ((left, 1.0 - right_share), (left + 1, right_share)):
            np.add.at(fresh[0], (bands, knot), weight * hits)
            np.add.at(fresh[1], (bands, knot), weight * raw)
            np.add.at(fresh[2], (bands, knot), weight)
        new = fresh[2].sum(axis=1, keepdims=True)
        old = self._seen.sum(axis=1, keepdims=True)
        keep = np.clip((_MEMORY - new) / np.maximum(old, 1e-9), 0.0, 1.0)
        self._hits = self._hits * keep + fresh[0]
        self._said = self._said * keep + fresh[1]
        self._seen = self._seen * keep + fresh[2]

    def _refresh_curves(self) -> None:
        uniform = np.full(link.LEVELS, 1.0 / link.LEVELS)
        every = self._pit.sum(axis=0)
        pooled = (every + _PRIOR * uniform) / (every.sum() + _PRIOR)
        counts = self._pit.sum(axis=1, keepdims=True)
        density = (self._pit + _PRIOR * pooled) / (counts + _PRIOR)
        # The prior keeps every level above zero, so the links stay strictly increasing.
        self.curves = np.zeros((BANDS, link.LEVELS + 1))
        np.cumsum(density, axis=1, out=self.curves[:, 1:])
        self.curves /= self.curves[:, -1:]

    def _refresh(self) -> None:
        self._refresh_curves()
        knots = np.linspace(0.0, 1.0, _STEPS + 1)
        every = (self._hits - self._said).sum(axis=0)
        pooled = every / (self._seen.sum(axis=0) + _PRIOR)
        shift = (self._hits - self._said + _PRIOR / 3 * pooled) / (self._seen + _PRIOR / 3)
        self.maps = np.maximum.accumulate(np.clip(knots + shift, 0.0, 1.0), axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """What was learned, as arrays."""
        return {"pit": self._pit, "hits": self._hits, "said": self._said, "seen": self._seen}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was learned with a :meth:`state`."""
        self._pit = np.array(state["pit"], dtype=np.float64)
        self._hits = np.array(state["hits"], dtype=np.float64)
        self._said = np.array(state["said"], dtype=np.float64)
        self._seen = np.array(state["seen"], dtype=np.float64)
        for learned, width in (
            (self._pit, link.LEVELS),
            (self._hits, _STEPS + 1),
            (self._said, _STEPS + 1),
            (self._seen, _STEPS + 1),
        ):
            if learned.shape != (BANDS, width) or not np.isfinite(learned).all():
                raise ValueError(f"calibration of shape {learned.shape}, not {(BANDS, width)}")
        self._refresh()


def _faded(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    count = old.sum(axis=1, keepdims=True)
    return old * np.clip((_MEMORY - new) / np.maximum(count, 1e-9), 0.0, 1.0)
