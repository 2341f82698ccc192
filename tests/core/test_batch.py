"""The vectorised twin says what the scalar one says."""

import numpy as np
import pytest
from distribution_rows import distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.core.distribution import LengthDistribution

LEVELS = np.array([0.0, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_batch_equals_scalar(seed, count):
    rng = np.random.default_rng(seed)
    items = [distribution(rng) for _ in range(count)]
    batch = LengthDistributionBatch.stack(items)
    assert len(batch) == count
    assert batch.quantile(LEVELS).tolist() == [
        [d.quantile(float(q)) for q in LEVELS] for d in items
    ]
    assert batch.median().tolist() == [d.median() for d in items]
    low, high = batch.interval(0.8)
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == [d.interval(0.8) for d in items]
    n = rng.integers(0, 3000, count)
    assert batch.survival(n).tolist() == [d.survival(int(k)) for d, k in zip(items, n, strict=True)]
    assert batch.survival(-1).tolist() == [1.0] * count
    points = batch.median()
    for tolerance in (0.1, 0.0, 0.25, 1 / 3):
        assert batch.within(points, tolerance).tolist() == [
            d.within(int(k), tolerance) for d, k in zip(items, points, strict=True)
        ]
    assert np.allclose(batch.mean(), [d.mean() for d in items])
    for i, d in enumerate(items):
        assert batch[i].quantile(0.3) == d.quantile(0.3)
        assert batch[i].max_length == d.max_length


def test_sequences_may_share_rows():
    rng = np.random.default_rng(0)
    rows = np.stack([distribution(rng).row for _ in range(3)])
    index, ages = rng.integers(0, 3, 50), rng.integers(0, 400, 50)
    batch = LengthDistributionBatch(rows, index, ages, np.full(50, UNCAPPED))
    alone = [LengthDistribution(rows[i], int(a)).median() for i, a in zip(index, ages, strict=True)]
    assert batch.median().tolist() == alone


def test_empty_batch():
    none = np.zeros(0, dtype=np.int64)
    batch = LengthDistributionBatch(np.zeros((0, 174)), none, none, none)
    assert len(batch) == 0
    assert batch.quantile(LEVELS).shape == (0, len(LEVELS))
    assert batch.median().shape == (0,)
    nothing = LengthDistributionBatch.stack([])
    assert len(nothing) == 0
    assert nothing.survival(3).shape == nothing.median().shape == (0,)


def test_stack_refuses_what_was_shifted_under_a_curve():
    rng = np.random.default_rng(0)
    d = next(d for d in iter(lambda: distribution(rng), None) if d.curve is not None)
    with pytest.raises(ValueError, match="before given"):
        LengthDistributionBatch.stack([d.given(3)])
