"""Values that recur lie exactly where they are, in all that a distribution answers."""

from dataclasses import replace
from math import isclose

import numpy as np
import pytest
from distribution_rows import distribution, row, with_atoms

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.distribution import LengthDistribution, point_and_confidence
from sagellm_lifetime.core.grid import BINS, EDGES, bin_of
from sagellm_lifetime.core.tracking import Tracker


def all_in(length: int) -> np.ndarray:
    """Return a row whose mass lies in the bin of one length."""
    hazards = np.full(BINS, 1e-9)
    hazards[bin_of(length)] = 1.0 - 1e-7
    return hazard.from_hazards(hazards)


@pytest.mark.parametrize("value", [18, 255, 256, 257, 1000, 1024, 4096, 65_536, 131_072])
def test_a_constant_is_its_own_interval(value):
    d = LengthDistribution(hazard.with_atoms(all_in(value), ((value, 1.0),)))
    assert d.interval(0.9) == d.interval(0.999) == (value, value)
    assert d.median() == value
    assert d.survival(value - 1) > 0.999999
    assert d.survival(value) < 1e-5
    assert isclose(d.mean(), value, rel_tol=1e-3)
    assert d.within(value) > 0.999
    assert point_and_confidence(d.row, 0, None, link.IDENTITY)[0] == value
    for age in (1, value // 2, value - 1):
        assert d.given(age).interval(0.9) == (value - age, value - age)


def test_each_atom_takes_its_share_and_the_others_are_even():
    values = all_in(1000)  # the bin holds 967 to 1024
    low, high = EDGES[bin_of(1000)], EDGES[bin_of(1000) + 1]
    d = LengthDistribution(hazard.with_atoms(values, ((980, 0.3), (981, 0.2), (int(high), 0.1))))
    even = 0.4 / (high - low)
    for first, last, exact in ((968, 979, 0), (980, 980, 0.3), (981, 981, 0.2), (982, high - 1, 0)):
        share = d.survival(first - 1) - d.survival(last)
        assert share == pytest.approx(exact + even * (last - first + 1), abs=1e-5)
    assert d.survival(high - 1) == pytest.approx(even + 0.1, abs=1e-5)
    assert d.survival(high) < 1e-5


@pytest.mark.parametrize("seed", range(30))
def test_the_edges_stay_where_they_are_and_nothing_falls(seed):
    rng = np.random.default_rng(seed)
    plain = row(rng)
    wide = with_atoms(rng, plain)
    assert wide.shape == (hazard.WIDE,)
    for edge in EDGES.tolist():
        assert hazard.cumulative(wide, edge) == hazard.cumulative(plain, edge)
    lengths = np.arange(1, 4000)
    there = hazard.cumulative_many(wide[None], np.zeros(len(lengths), dtype=int), lengths)
    assert (np.diff(there) >= 0.0).all()
    assert there.tolist() == [hazard.cumulative(wide, n) for n in lengths.tolist()]


@pytest.mark.parametrize("seed", range(10))
def test_mean_is_the_sum_of_survivals(seed):
    rng = np.random.default_rng(seed)
    d = replace(distribution(rng), age=int(rng.integers(0, 60)), max_length=3000)
    d = replace(d, row=with_atoms(rng, row(rng)))
    total = sum(d.survival(n) for n in range(3000 - d.age))
    assert isclose(d.mean(), total, rel_tol=0.03, abs_tol=1.0)


def test_rows_with_and_without_atoms_side_by_side():
    rng = np.random.default_rng(1)
    plain, wide = row(rng), hazard.with_atoms(all_in(700), ((700, 1.0),))
    both = LengthDistributionBatch.stack(
        [LengthDistribution(plain, 3), LengthDistribution(wide, 5)]
    )
    assert both.rows.shape == (2, hazard.WIDE)
    assert both.median().tolist() == [LengthDistribution(plain, 3).median(), 695]
    assert both.uncapped(np.array([0.0, 10.0, 5000.0])).shape == (2, 3)
    # What the grid can tell stays what it was.
    edges = both.uncapped(np.array([0.0, float(EDGES[-1]) - 3]))
    assert edges[0, 1] == pytest.approx(LengthDistribution(plain, 3).survival(EDGES[-1] - 3))


def test_the_tracker_keeps_both_kinds():
    rng = np.random.default_rng(2)
    tracker = Tracker(100, 1e9)
    rows = [row(rng), hazard.with_atoms(row(rng), ((40, 0.5),)), row(rng)]
    items = [tracker.admit(i, None, 0, None) for i in range(3)]
    tracker.set_row(items[0], rows[0])
    assert tracker.rows.shape[1] == hazard.ROW, "nobody pays for what does not occur"
    for item, values in zip(items, rows, strict=True):
        tracker.set_row(item, values)
    batch = LengthDistributionBatch(
        tracker.rows, tracker.slots([0, 1, 2]), np.zeros(3, dtype=np.int64), tracker.caps[:3]
    )
    assert batch.quantile([0.1, 0.5, 0.9]).tolist() == [
        [LengthDistribution(values).quantile(q) for q in (0.1, 0.5, 0.9)] for values in rows
    ]
    # A slot that held atoms and holds none now.
    tracker.take(1)
    again = tracker.admit(9, None, 0, None)
    tracker.set_row(again, rows[0])
    assert not np.isfinite(tracker.rows[again.slot, hazard.ROW :]).any()
    for i in range(200, 290):
        tracker.admit(i, None, 0, None)
    assert tracker.rows.shape[1] == hazard.WIDE
