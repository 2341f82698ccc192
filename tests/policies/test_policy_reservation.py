"""The peak of memory: exact where lengths are known, kept with the probability it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import (
    PROPERTY,
    any_outlook,
    exponential,
    known,
    log_logistic,
    log_normal,
    predicted,
)

from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.policies.reservation import Peak, prefetch_blocks, reserved_blocks
from sagellm_lifetime.policies.state import HORIZON, Outlook

SEEDS = st.integers(0, 2**32 - 1)
BLOCK = 16


def peak_of(blocks, outlook, probability=0.95, total=1000) -> Peak:
    peak = Peak(total, BLOCK, probability)
    for mean, variance in zip(*peak.terms(np.asarray(blocks), outlook), strict=True):
        peak.add(mean, variance)
    return peak


@PROPERTY
@given(SEEDS, st.integers(1, 15))
def test_adding_and_removing_equals_computing_anew(seed, count):
    rng = np.random.default_rng(seed)
    blocks, outlook = rng.integers(1, 200, count), any_outlook(rng, count)
    peak = Peak(1000, BLOCK, 0.9)
    terms = list(zip(*peak.terms(blocks, outlook), strict=True))
    inside: set[int] = set()
    for i in rng.integers(0, count, 4 * count).tolist():
        (peak.remove if i in inside else peak.add)(*terms[i])
        inside ^= {i}
    left = sorted(inside)
    fresh = peak_of(blocks[left], outlook.take(np.array(left, dtype=int)), 0.9)
    assert peak.level() == pytest.approx(fresh.level(), rel=1e-9, abs=1e-3)
    assert np.allclose(peak.mean, fresh.mean, rtol=1e-9, atol=1e-6)


@PROPERTY
@given(SEEDS, st.integers(1, 15))
def test_surer_takes_more(seed, count):
    rng = np.random.default_rng(seed)
    blocks, outlook = rng.integers(1, 200, count), any_outlook(rng, count)
    levels = [peak_of(blocks, outlook, p).level() for p in (0.5, 0.8, 0.9, 0.99, 0.999)]
    assert levels == sorted(levels)
    assert levels[0] >= blocks.sum()


@PROPERTY
@given(SEEDS, st.integers(1, 15))
def test_one_more_never_takes_less(seed, count):
    rng = np.random.default_rng(seed)
    blocks, outlook = rng.integers(1, 200, count), any_outlook(rng, count)
    peak = Peak(1000, BLOCK)
    levels = [0.0]
    for mean, variance in zip(*peak.terms(blocks, outlook), strict=True):
        peak.add(mean, variance)
        levels.append(peak.level())
    assert levels == sorted(levels)


@PROPERTY
@given(SEEDS, st.integers(1, 15), st.floats(0, 50))
def test_it_fits_if_the_level_with_the_newcomer_does(seed, count, shared):
    rng = np.random.default_rng(seed)
    blocks, outlook = rng.integers(1, 200, count), any_outlook(rng, count)
    with_all = peak_of(blocks, outlook)
    needed = with_all.level() - shared
    for total, answer in ((int(np.ceil(needed)) + 1, True), (int(np.floor(needed)) - 1, False)):
        peak = Peak(total, BLOCK)
        *others, last = zip(*peak.terms(blocks, outlook), strict=True)
        for mean, variance in others:
            peak.add(mean, variance)
        assert peak.fits(*last, shared) is answer


@PROPERTY
@given(SEEDS, st.integers(1, 30))
def test_known_lengths_give_the_exact_peak_within_a_gap(seed, count):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(1, 200, count)
    remaining = np.ceil(np.exp(rng.uniform(0, 8.5, count)))
    steps = np.arange(int(remaining.max()))
    held = (remaining[:, None] > steps) * (blocks[:, None] + steps / BLOCK)
    used = held.sum(axis=0)
    level = peak_of(blocks, known(remaining), 0.5).level()
    at = steps[used.argmax()]
    # Memory grows by one block per sequence and BLOCK steps, inside the gap as everywhere.
    gap = np.diff(HORIZON, prepend=0.0)[np.searchsorted(HORIZON, at, side="right")]
    wider = np.diff(HORIZON, prepend=0.0)[np.searchsorted(HORIZON, remaining.max())]
    assert used.max() - count * gap / BLOCK - 1e-6 <= level <= used.max() + count * wider / BLOCK


def test_sequences_that_end_at_different_times_share_memory():
    # Two that hold 100 blocks each now; one ends at once, the other grows by 100 blocks.
    level = peak_of([100, 100], known([1, 1600]), 0.5).level()
    assert 200 <= level < 100 + 100 + 100


LAWS = {
    "exponential": (exponential, lambda rng, means: rng.exponential(means)),
    "log-normal 0.5": (
        lambda median: log_normal(median, 0.5),
        lambda rng, medians: medians * np.exp(0.5 * rng.standard_normal(medians.shape)),
    ),
    "log-normal 1.0": (
        lambda median: log_normal(median, 1.0),
        lambda rng, medians: medians * np.exp(1.0 * rng.standard_normal(medians.shape)),
    ),
}


@pytest.mark.parametrize("count", [50, 200])
@pytest.mark.parametrize("law", sorted(LAWS))
def test_the_level_is_exceeded_as_rarely_as_promised(law, count):
    make, draw = LAWS[law]
    rng = np.random.default_rng(count)
    medians, blocks = np.exp(rng.uniform(4, 6.5, count)), rng.integers(1, 125, count)
    outlook = predicted([make(each) for each in medians.tolist()])
    remaining = np.ceil(draw(rng, np.broadcast_to(medians, (3000, count))))
    steps = np.unique(np.round(np.geomspace(1, 30_000, 150))) - 1.0
    used = np.stack(
        [((remaining > step) * (blocks + step / BLOCK)).sum(axis=1) for step in steps], axis=1
    )
    for probability in (0.9, 0.95, 0.99):
        level = peak_of(blocks, outlook, probability).level()
        at_one_time = (used > level).mean(axis=0).max()
        assert at_one_time <= (1.0 - probability) * 1.2 + 0.005
        # And the peak over all time, which the level does not promise, is not much more.
        assert (used.max(axis=1) > level).mean() <= (1.0 - probability) * 1.5 + 0.005
        # It does not set aside what nobody needs.
        assert level <= np.quantile(used.max(axis=1), probability) * 1.03


@PROPERTY
@given(SEEDS, st.sampled_from([0.5, 0.9, 0.99]))
def test_reserved_blocks_cover_the_share_and_hardly_more(seed, level):
    rng = np.random.default_rng(seed)
    rows = [log_logistic(np.exp(rng.uniform(0, 8)), rng.uniform(0.1, 1.2)) for _ in range(6)]
    tokens = rng.integers(1, 3000, 6)
    batch = LengthDistributionBatch(
        np.stack(rows), np.arange(6), np.zeros(6, dtype=np.int64), np.full(6, UNCAPPED)
    )
    room = reserved_blocks(batch.quantile(level), tokens, BLOCK) * BLOCK - tokens
    assert (batch.survival(room) <= 1.0 - level + 1e-6).all()
    # One block less would not have been enough.
    assert (batch.survival(room - BLOCK) > 1.0 - level - 1e-6).all()


@PROPERTY
@given(SEEDS, st.integers(1, 12), st.integers(0, 200_000), st.integers(-5, 400))
def test_prefetch_never_exceeds_what_is_free_or_wanted(seed, count, ahead, free):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3000, count)
    blocks = prefetch_blocks(any_outlook(rng, count), tokens, BLOCK, ahead=ahead, free=free)
    wanted = (tokens + ahead + BLOCK - 1) // BLOCK - (tokens + BLOCK - 1) // BLOCK
    assert (blocks >= 0).all()
    assert (blocks <= wanted).all()
    assert blocks.sum() == min(wanted.sum(), max(free, 0))


def test_the_surest_get_their_blocks_first():
    outlook = known([5, 500, 500])
    found = prefetch_blocks(outlook, np.array([16, 16, 16]), BLOCK, ahead=32, free=3)
    assert found.tolist() == [0, 2, 1]


def _edges() -> np.ndarray:
    from sagellm_lifetime.core.grid import EDGES

    return EDGES


@pytest.mark.parametrize("lengths", [[37], [100, 1000, 7], [65_000]])
def test_known_lengths_have_no_variance(lengths):
    outlook = Outlook.exact(np.array(lengths))
    _, variance = Peak(1000, BLOCK, 0.99).terms(np.full(len(lengths), 10), outlook)
    assert not variance.any()
    sure, median = (
        peak_of([10] * len(lengths), outlook, probability).level() for probability in (0.99, 0.5)
    )
    assert sure == median
