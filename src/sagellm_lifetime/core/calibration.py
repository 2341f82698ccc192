"""Calibration by age: intervals with their nominal coverage, and confidences that are hit rates.

Each band of ages has two maps, both learned from completions with slow forgetting:

* a :mod:`link <sagellm_lifetime.core.link>`, which is applied to the conditioned distribution. It
  is learned from the predicted hazard at which outcomes ended and the hazard that they survived;
* a correction of the raw confidence ``P(|T - L| <= 10 % L)`` towards the observed hit rate.

A band with little data is shrunk towards all ages together, and those towards the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.core.distribution import point_and_confidence, tolerance_band
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.core.grid import EDGES, MAX_LENGTH, bins_of

AGE_EDGES: Final[np.ndarray] = np.array([1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
BANDS: Final = len(AGE_EDGES) + 1
_AGE_EDGE_LIST: Final = [int(a) for a in AGE_EDGES]
_PRIOR: Final = 60.0
"""Weight of the prior of a band, observations."""
_TAIL_PRIOR: Final = 3.0
"""Weight of the prior of a segment in the tail: the observations of ``_PRIOR`` that are expected
above the level 0.95."""
_MEMORY: Final = 6000.0
"""Effective number of observations of a band; older ones fade, so that drift is followed."""
_MOST: Final = 1e15
"""Upper limit of a count in a state."""
_STEPS: Final = 10
"""Intervals of a confidence map, which has ``_STEPS + 1`` knots."""
_SHARED: Final = 4096
"""Maximum number of rows whose answer at age 0 is cached."""
_WIDTHS: Final = {
    "counts": 1,
    "pit": link.SEGMENTS,
    "exposed": link.SEGMENTS,
    "hits": _STEPS + 1,
    "said": _STEPS + 1,
    "seen": _STEPS + 1,
}
"""Names and numbers of columns of the learned arrays, each of ``BANDS`` rows."""


def band_of(age: int) -> int:
    """Return the band of an age in tokens."""
    band = 0
    for edge in _AGE_EDGE_LIST:
        if age < edge:
            break
        band += 1
    return band


def bands_of(ages: np.ndarray) -> np.ndarray:
    """Return the bands of ages in tokens; int64, shape of ``ages``."""
    return np.searchsorted(AGE_EDGES, ages, side="right")


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of ``N`` predictions.

    Attributes:
        lengths: total lengths in tokens, shape ``(N,)``.
        censored: True where the length is only a lower bound, shape ``(N,)``.
    """

    lengths: np.ndarray
    censored: np.ndarray


class Calibration:
    """Links and confidence maps of all bands; the identity before the first outcome."""

    def __init__(self) -> None:
        self._counts = np.zeros((BANDS, 1))
        self._pit = np.zeros((BANDS, link.SEGMENTS))
        self._exposed = np.zeros((BANDS, link.SEGMENTS))
        self._hits = np.zeros((BANDS, _STEPS + 1))
        self._said = np.zeros((BANDS, _STEPS + 1))
        self._seen = np.zeros((BANDS, _STEPS + 1))
        self._refresh()

    def confidence(self, band: int, raw: float) -> float:
        """Return the calibrated confidence of one prediction in a band."""
        position = raw * _STEPS
        k = min(int(position), _STEPS - 1)
        low = self.maps.item(band, k)
        return low + (self.maps.item(band, k + 1) - low) * (position - k)

    def at_start(self, row: np.ndarray, cap: int | None) -> tuple[int, float]:
        """Return the point estimate in tokens and its calibrated confidence at age 0.

        The answer is cached by row, since many sequences share one.

        Args:
            row: cumulative hazards, never written to again.
            cap: ``max_length``, or ``None``.
        """
        cached = self._starts.get(id(row))
        if cached is None or cached[0] is not row:
            n, raw = point_and_confidence(row, 0, None, self.views[0])
            cached = row, n, tolerance_band(n)[1], self.confidence(0, raw)
            if len(self._starts) >= _SHARED:
                self._starts.clear()
            self._starts[id(row)] = cached
        _, n, high, confidence = cached
        if cap is None or cap > high:
            return n, confidence
        n, raw = point_and_confidence(row, 0, cap, self.views[0])
        return n, self.confidence(0, raw)

    def confidences(
        self, bands: np.ndarray, raw: np.ndarray, maps: np.ndarray | None = None
    ) -> np.ndarray:
        """Return calibrated confidences, shape ``(N,)``.

        Args:
            bands: band of each prediction, shape ``(N,)``.
            raw: raw confidences, shape ``(N,)``.
            maps: confidence maps, shape ``(B, _STEPS + 1)``; ``None`` for those of this object.
        """
        maps = self.maps if maps is None else maps
        position = raw * _STEPS
        k = np.minimum(position.astype(np.int64), _STEPS - 1)
        low = maps[bands, k]
        return np.asarray(low + (maps[bands, k + 1] - low) * (position - k))

    def fade(self, weight: float) -> None:
        """Scale the learned counts down to at most ``weight`` observations a band."""
        kept_share = np.minimum(weight / np.maximum(self._counts, 1e-9), 1.0)
        for name in _WIDTHS:
            setattr(self, f"_{name}", getattr(self, f"_{name}") * kept_share)
        self._refresh()

    def learn(self, predicted: LengthDistributionBatch, outcomes: Outcomes) -> None:
        """Learn from ``N`` uncalibrated predictions and their outcomes.

        Args:
            predicted: distributions at ages that were chosen without looking at the outcome.
            outcomes: total lengths, all above the ages.

        Raises:
            LifetimeError: a row is not finite. Then nothing is learned.
        """
        if len(predicted) == 0:
            return
        if not np.isfinite(predicted.rows[:, : hazard.ROW]).all():
            raise LifetimeError("a calibration cannot learn from hazards that are not finite")
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
        def at(totals: np.ndarray) -> np.ndarray:
            lengths = np.maximum(totals, predicted.ages)
            return hazard.cumulative_many(predicted.rows, predicted.index, lengths) - base

        base = hazard.cumulative_many(predicted.rows, predicted.index, predicted.ages)
        lengths, k = outcomes.lengths, bins_of(outcomes.lengths)
        outside = lengths > MAX_LENGTH
        bins = np.where(outside, lengths - 1, EDGES[k]), np.where(outside, lengths, EDGES[k + 1])
        ended, exposed = link.lived(
            (at(lengths - 1), at(lengths)), (at(bins[0]), at(bins[1])), outcomes.censored
        )
        counts = np.bincount(bands, minlength=BANDS)[:, None]
        kept_share = _kept_share(self._counts, counts)
        self._counts = self._counts * kept_share + counts
        self._pit = self._pit * kept_share
        self._exposed = self._exposed * kept_share
        np.add.at(self._pit, bands, ended)
        np.add.at(self._exposed, bands, exposed)

    def _learn_confidence(
        self, predicted: LengthDistributionBatch, bands: np.ndarray, outcomes: Outcomes
    ) -> None:
        points = predicted.median()
        raw = predicted.within(points)
        totals = predicted.ages + points
        actual = np.minimum(outcomes.lengths, predicted.caps)
        # A capped sequence has a known total, the cap; after an abort the total is unknown.
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
        old, new = (counts.sum(axis=1, keepdims=True) for counts in (self._seen, fresh[2]))
        kept_share = _kept_share(old, new)
        self._hits = self._hits * kept_share + fresh[0]
        self._said = self._said * kept_share + fresh[1]
        self._seen = self._seen * kept_share + fresh[2]

    def _refresh_curves(self) -> None:
        ended = self._pit.sum(axis=0) + _PRIOR * link.EXPECTED
        exposed = self._exposed.sum(axis=0) + _PRIOR * link.EXPECTED
        prior_share = _PRIOR / (self._counts.sum() + _PRIOR)
        pooled = ended / exposed
        factors = (self._pit + prior_share * ended) / (self._exposed + prior_share * exposed)
        # The tail has few outcomes, so each segment is shrunk towards the one before it. Only
        # factors below 1, which lengthen the tail, are carried on to later segments.
        before = 1.0
        for k in range(link.TAIL, link.SEGMENTS):
            pooled[k] = _shrunk(self._pit[:, k].sum(), self._exposed[:, k].sum(), before)
            factors[:, k] = _shrunk(self._pit[:, k], self._exposed[:, k], pooled[k])
            before = min(pooled[k], 1.0)
        # The prior keeps every factor above zero, so the links stay strictly increasing.
        self.curves = link.from_factors(factors)
        self.curves.flags.writeable = False  # results are cached by curve
        self.views = list(self.curves)
        self._starts: dict[int, tuple[np.ndarray, int, int, float]] = {}

    def _refresh(self) -> None:
        self._refresh_curves()
        knots = np.linspace(0.0, 1.0, _STEPS + 1)
        surplus = (self._hits - self._said).sum(axis=0)
        pooled = surplus / (self._seen.sum(axis=0) + _PRIOR)
        shift = (self._hits - self._said + _PRIOR / 3 * pooled) / (self._seen + _PRIOR / 3)
        self.maps = np.maximum.accumulate(np.clip(knots + shift, 0.0, 1.0), axis=1)

    def merge(self, *others: Calibration) -> None:
        """Add the counts of other calibrations."""
        for name in _WIDTHS:
            total = sum((getattr(each, f"_{name}") for each in others), getattr(self, f"_{name}"))
            setattr(self, f"_{name}", np.minimum(total, _MOST))
        self._refresh()

    def state(self) -> dict[str, np.ndarray]:
        """Return the learned counts as arrays for :meth:`restore`."""
        return {name: np.minimum(getattr(self, f"_{name}"), _MOST) for name in _WIDTHS}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace the learned counts with a :meth:`state`.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible counts.
        """
        for name, width in _WIDTHS.items():
            learned = checked(state, name, np.float64, (BANDS, width), 0.0, _MOST)
            setattr(self, f"_{name}", learned.copy())
        self._refresh()


def _shrunk(ended: np.ndarray, exposed: np.ndarray, towards: float) -> np.ndarray:
    """Return factors of a tail segment, shrunk to ``towards`` with weight ``_TAIL_PRIOR``.

    Args:
        ended: outcomes that ended in the segment.
        exposed: predicted hazard that outcomes survived there.
        towards: factor of the prior.
    """
    return (ended + _TAIL_PRIOR) / (exposed + _TAIL_PRIOR / towards)


def _kept_share(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the share of ``old`` outcomes to keep beside ``new`` ones, ``_MEMORY`` in all."""
    return np.clip((_MEMORY - new) / np.maximum(old, 1e-9), 0.0, 1.0)
