"""Calibration by age: intervals that cover what they say, a confidence that is a frequency.

Two maps for each band of ages, both learned from completions and both forgetting slowly:

* a :mod:`link <sagellm_lifetime.core.link>` from where in the predicted hazard the outcomes ended
  and how much of it they lived through, laid over the conditioned distribution;
* a correction of the raw confidence ``P(|T - L| <= 10 % L)`` towards the observed hit rate.

A band with little data borrows from all ages together, and those from the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.core.distribution import point_and_confidence, tolerance_band
from sagellm_lifetime.core.grid import EDGES, MAX_LENGTH, bins_of

AGE_EDGES: Final[np.ndarray] = np.array([1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
BANDS: Final = len(AGE_EDGES) + 1
_AGE_EDGE_LIST: Final = [int(a) for a in AGE_EDGES]
_PRIOR: Final = 60.0
"""Pseudo-observations with which a band starts."""
_TAIL_PRIOR: Final = 3.0
"""Of these, how many end in a segment of the tail: those expected above the level 0.95."""
_MEMORY: Final = 6000.0
"""Observations a band remembers: older ones fade, so that drift is followed."""
_MOST: Final = 1e15
"""More than can ever be counted."""
_STEPS: Final = 10
_SHARED: Final = 4096
"""Rows whose first answers are kept, at most."""
_WIDTHS: Final = {
    "counts": 1,
    "pit": link.SEGMENTS,
    "exposed": link.SEGMENTS,
    "hits": _STEPS + 1,
    "said": _STEPS + 1,
    "seen": _STEPS + 1,
}
"""What is learned, and its width; the length is ``BANDS``."""


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
        self._counts = np.zeros((BANDS, 1))
        self._pit = np.zeros((BANDS, link.SEGMENTS))
        self._exposed = np.zeros((BANDS, link.SEGMENTS))
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

    def at_start(self, row: np.ndarray, cap: int | None) -> tuple[int, float]:
        """Point and calibrated confidence at age 0; kept, for rows that many sequences share."""
        known = self._starts.get(id(row))
        if known is None or known[0] is not row:
            n, raw = point_and_confidence(row, 0, None, self.views[0])
            known = row, n, tolerance_band(n)[1], self.confidence(0, raw)
            if len(self._starts) >= _SHARED:
                self._starts.clear()
            self._starts[id(row)] = known
        _, n, high, confidence = known
        if cap is None or cap > high:
            return n, confidence
        n, raw = point_and_confidence(row, 0, cap, self.views[0])
        return n, self.confidence(0, raw)

    def confidences(
        self, bands: np.ndarray, raw: np.ndarray, maps: np.ndarray | None = None
    ) -> np.ndarray:
        """Calibrated confidences, shape ``(N,)``, by these maps or by those given."""
        maps = self.maps if maps is None else maps
        position = raw * _STEPS
        k = np.minimum(position.astype(np.int64), _STEPS - 1)
        low = maps[bands, k]
        return np.asarray(low + (maps[bands, k + 1] - low) * (position - k))

    def fade(self, weight: float) -> None:
        """Keep what was learned for at most so many observations a band."""
        keep = np.minimum(weight / np.maximum(self._counts, 1e-9), 1.0)
        for name in _WIDTHS:
            setattr(self, f"_{name}", getattr(self, f"_{name}") * keep)
        self._refresh()

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
        keep = _kept(self._counts, counts)
        self._counts = self._counts * keep + counts
        self._pit = self._pit * keep
        self._exposed = self._exposed * keep
        np.add.at(self._pit, bands, ended)
        np.add.at(self._exposed, bands, exposed)

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
        keep = _kept(self._seen.sum(axis=1, keepdims=True), fresh[2].sum(axis=1, keepdims=True))
        self._hits = self._hits * keep + fresh[0]
        self._said = self._said * keep + fresh[1]
        self._seen = self._seen * keep + fresh[2]

    def _refresh_curves(self) -> None:
        ended = self._pit.sum(axis=0) + _PRIOR * link.EXPECTED
        exposed = self._exposed.sum(axis=0) + _PRIOR * link.EXPECTED
        each = _PRIOR / (self._counts.sum() + _PRIOR)
        pooled = ended / exposed
        factors = (self._pit + each * ended) / (self._exposed + each * exposed)
        # In the tail few are left to tell. There each segment leans on the one before, so that a
        # tail seen to be longer is taken to go on so; a shorter one is believed where it is seen.
        before = 1.0
        for k in range(link.TAIL, link.SEGMENTS):
            pooled[k] = _shrunk(self._pit[:, k].sum(), self._exposed[:, k].sum(), before)
            factors[:, k] = _shrunk(self._pit[:, k], self._exposed[:, k], pooled[k])
            before = min(pooled[k], 1.0)
        # The prior keeps every factor above zero, so the links stay strictly increasing.
        self.curves = link.from_factors(factors)
        self.curves.flags.writeable = False  # so that what follows from them can be kept
        self.views = list(self.curves)
        self._starts: dict[int, tuple[np.ndarray, int, int, float]] = {}

    def _refresh(self) -> None:
        self._refresh_curves()
        knots = np.linspace(0.0, 1.0, _STEPS + 1)
        every = (self._hits - self._said).sum(axis=0)
        pooled = every / (self._seen.sum(axis=0) + _PRIOR)
        shift = (self._hits - self._said + _PRIOR / 3 * pooled) / (self._seen + _PRIOR / 3)
        self.maps = np.maximum.accumulate(np.clip(knots + shift, 0.0, 1.0), axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """What was learned, as arrays that :meth:`restore` takes."""
        return {name: np.minimum(getattr(self, f"_{name}"), _MOST) for name in _WIDTHS}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was learned with a :meth:`state`.

        Raises:
            ValueError: arrays that do not fit, or hold what cannot be counts.
        """
        for name, width in _WIDTHS.items():
            learned = checked(state, name, np.float64, (BANDS, width), 0.0, _MOST)
            setattr(self, f"_{name}", learned.copy())
        self._refresh()


def _shrunk(ended: np.ndarray, exposed: np.ndarray, towards: float) -> np.ndarray:
    """Factors of a segment in the tail, as if ``_TAIL_PRIOR`` outcomes had ended there before."""
    return (ended + _TAIL_PRIOR) / (exposed + _TAIL_PRIOR / towards)


def _kept(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Share of what was learned from ``old`` outcomes that is kept beside ``new`` ones."""
    return np.clip((_MEMORY - new) / np.maximum(old, 1e-9), 0.0, 1.0)
