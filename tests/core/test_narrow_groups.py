"""A narrow group of lengths: the bins of the grid are wide beside it."""

import numpy as np
import pytest

from sagellm_lifetime import LengthDistribution
from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.grid import BINS, EDGES


def of_lengths(lengths: np.ndarray) -> LengthDistribution:
    """Return the distribution whose hazards per bin are those of these lengths."""
    above = (lengths[:, None] > EDGES[None, :]).sum(axis=0)
    discrete = np.divide(
        above[:-1] - above[1:], above[:-1], out=np.zeros(BINS), where=above[:-1] > 0
    )
    return LengthDistribution(hazard.from_hazards(discrete))


@pytest.mark.parametrize(("low", "high"), [(280, 320), (505, 560), (1000, 1100), (70, 80)])
def test_the_interval_of_an_even_group_holds_its_share(low, high):
    lengths = np.arange(low, high + 1)
    first, last = of_lengths(lengths).interval(0.9)
    share = ((lengths >= first) & (lengths <= last)).mean()
    # An end in the bin that the group shares with others lies up to a bin outside it.
    assert share >= 0.86
    assert low - 0.06 * low <= first < last <= high + 0.06 * high


def test_inside_a_bin_in_which_all_end_the_lengths_are_spread_evenly():
    row = hazard.from_hazards((EDGES[:-1] == 287).astype(float))  # all in 288..304
    d = LengthDistribution(row)
    assert d.median() == pytest.approx(296, abs=1)
    assert d.survival(300) == pytest.approx(4 / 17, abs=1e-4)
    assert d.mean() == pytest.approx(296, abs=0.1)


def test_a_memoryless_tail_stays_memoryless_where_bins_are_wide():
    d = LengthDistribution((0.1 * EDGES).astype(np.float32))
    assert d.given(5000).median() == 7


def test_many_at_once_are_the_same_to_the_last_bit():
    rng = np.random.default_rng(3)
    ages = rng.integers(0, 330, 200)
    groups = [of_lengths(rng.integers(280, rng.integers(281, 500), 400)) for _ in ages]
    items = [LengthDistribution(g.row, int(age)) for g, age in zip(groups, ages, strict=True)]
    batch = LengthDistributionBatch.stack(items)
    for q in (0.05, 0.5, 0.95):
        assert batch.quantile(q).tolist() == [d.quantile(q) for d in items]
    ahead = rng.uniform(0, 60, len(items))
    assert batch.survival(ahead).tolist() == [
        d.survival(n) for d, n in zip(items, ahead.tolist(), strict=True)
    ]
