"""The peak of memory: exact where lengths are known, kept with the probability it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import (
    PROPERTY,
    any_forecast,
    exponential,
    known,
    log_logistic,
    log_normal,
    predicted,
)

from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.policies.reservation import (
    FARTHEST,
    Peak,
    prefetch_blocks,
    reserved_blocks,
)
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast

SEEDS = st.integers(0, 2**32 - 1)
BLOCK = 16


def peak_of(blocks, forecast, probability=0.95, horizon=FARTHEST) -> Peak:
    peak = Peak(BLOCK, probability, horizon)
    for terms in peak.terms(np.asarray(blocks), forecast):
        peak.add(terms)
    return peak


def level(*args, **options) -> float:
    """Blocks at the peak."""
    return peak_of(*args, **options).growth() + float(np.sum(args[0]))


@PROPERTY
@given(SEEDS, st.integers(1, 15), st.floats(0.0, 1.0))
def test_for_those_that_are_not_believed_nothing_is_kept(seed, count, threshold):
    rng = np.random.default_rng(seed)
    blocks, believed = rng.integers(1, 200, count), rng.random(count) >= threshold
    asked = any_forecast(rng, count)
    forecast = SurvivalForecast(asked.survival, np.where(believed, 0.8, 0.2))
    peak = Peak(BLOCK, 0.9)
    for terms in peak.terms(blocks, forecast, 0.5):
        peak.add(terms)
    without = Peak(BLOCK, 0.9)
    for terms in without.terms(blocks[believed], forecast.take(np.flatnonzero(believed))):
        without.add(terms)
    assert peak.growth() == pytest.approx(without.growth())
    assert peak.fits(np.zeros_like(peak.sums), peak.growth() + 1e-6)


@PROPERTY
@given(SEEDS, st.integers(1, 15))
def test_adding_and_removing_equals_computing_anew(seed, count):
    rng = np.random.default_rng(seed)
    blocks, forecast = rng.integers(1, 200, count), any_forecast(rng, count)
    peak = Peak(BLOCK, 0.9)
    terms = peak.terms(blocks, forecast)
    inside: set[int] = set()
    for i in rng.integers(0, count, 4 * count).tolist():
        (peak.remove if i in inside else peak.add)(terms[i])
        inside ^= {i}
    left = sorted(inside)
    fresh = peak_of(blocks[left], forecast.take(np.array(left, dtype=int)), 0.9)
    assert peak.growth() == pytest.approx(fresh.growth(), rel=1e-9, abs=1e-3)
    assert np.allclose(peak.sums, fresh.sums, rtol=1e-9, atol=1e-3)


@PROPERTY
@given(SEEDS, st.integers(1, 15), st.integers(1, 4000))
def test_surer_and_farther_takes_more(seed, count, horizon):
    rng = np.random.default_rng(seed)
    blocks, forecast = rng.integers(1, 200, count), any_forecast(rng, count)
    surer = [peak_of(blocks, forecast, p, horizon).growth() for p in (0.5, 0.8, 0.9, 0.99, 0.999)]
    assert surer == sorted(surer)
    assert surer[0] >= 0
    farther = [peak_of(blocks, forecast, 0.9, far).growth() for far in HORIZON[::5]]
    assert farther == sorted(farther)


@PROPERTY
@given(SEEDS, st.integers(1, 15), st.integers(1, 4000), st.sampled_from([0.9, 0.9999]))
def test_never_more_than_if_nobody_ended(seed, count, horizon, probability):
    rng = np.random.default_rng(seed)
    blocks, forecast = rng.integers(1, 200, count), any_forecast(rng, count)
    assert peak_of(blocks, forecast, probability, horizon).growth() <= (
        count * horizon / BLOCK + 1e-6
    )


@PROPERTY
@given(SEEDS, st.integers(1, 15))
def test_one_more_never_takes_less(seed, count):
    rng = np.random.default_rng(seed)
    blocks, forecast = rng.integers(1, 200, count), any_forecast(rng, count)
    levels = [
        level(blocks[:n], forecast.take(np.arange(n)), 0.95, FARTHEST) for n in range(count + 1)
    ]
    assert np.all(np.diff(levels) >= -1e-9)


@PROPERTY
@given(SEEDS, st.integers(1, 15))
def test_it_fits_if_the_level_with_the_newcomer_does(seed, count):
    rng = np.random.default_rng(seed)
    blocks, forecast = rng.integers(1, 200, count), any_forecast(rng, count)
    needed = level(blocks, forecast) - int(blocks[:-1].sum())
    peak = Peak(BLOCK)
    *others, last = peak.terms(blocks, forecast)
    for terms in others:
        peak.add(terms)
    assert peak.fits(last, int(np.ceil(needed)) + 1)
    assert not peak.fits(last, int(np.floor(needed)) - 1)


@PROPERTY
@given(SEEDS, st.integers(1, 30))
def test_known_lengths_give_the_exact_peak_within_a_gap(seed, count):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(1, 200, count)
    remaining = np.ceil(np.exp(rng.uniform(0, 8.5, count)))
    steps = np.arange(int(remaining.max()))
    held = (remaining[:, None] > steps) * (blocks[:, None] + steps / BLOCK)
    used = held.sum(axis=0)
    found = level(blocks, known(remaining), 0.5)
    at = steps[used.argmax()]
    # Memory grows by one block per sequence and BLOCK steps, inside the gap as everywhere.
    gap = np.diff(HORIZON, prepend=0.0)[np.searchsorted(HORIZON, at, side="right")]
    wider = np.diff(HORIZON, prepend=0.0)[np.searchsorted(HORIZON, remaining.max())]
    assert used.max() - count * gap / BLOCK - 1e-6 <= found <= used.max() + count * wider / BLOCK


def test_sequences_that_end_at_different_times_share_memory():
    # Two that hold 100 blocks each now; one ends at once, the other grows by 100 blocks.
    assert 0 <= peak_of([100, 100], known([1, 1600]), 0.5).growth() < 100


def test_what_lies_behind_the_horizon_does_not_count():
    sure = SurvivalForecast.exact(np.array([1600]))
    found = [peak_of([10], sure, 0.5, far).growth() for far in (16, 500, 1600, FARTHEST)]
    assert found == pytest.approx([1, 500 / 16, 100, 100])


@pytest.mark.parametrize("law", ["exponential", "log-normal 1.0"])
def test_a_few_large_ones_are_no_more_in_doubt_than_they_can_grow(law):
    """Ten of 95 blocks: mean + z sd alone would keep three times what is ever needed."""
    make, draw = LAWS[law]
    rng = np.random.default_rng(5)
    blocks, medians = np.full(10, 95), np.full((20_000, 10), 120.0)
    steps = np.arange(400)
    remaining = np.ceil(draw(rng, medians))
    used = np.stack([((remaining > t) * (blocks + t / BLOCK)).sum(axis=1) for t in steps[::5]])
    needed = np.quantile(used.max(axis=0), 0.95) - blocks.sum()
    peak = peak_of(blocks, predicted([make(120.0)] * 10), 0.95)
    assert 0.5 * needed <= peak.growth() <= 1.3 * needed
    mean, variance, _ = peak.sums
    assert (mean + 1.645 * np.sqrt(variance)).max() - blocks.sum() > 2 * needed


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
    forecast = predicted([make(each) for each in medians.tolist()])
    remaining = np.ceil(draw(rng, np.broadcast_to(medians, (3000, count))))
    steps = np.unique(np.round(np.geomspace(1, 30_000, 150))) - 1.0
    used = np.stack(
        [((remaining > step) * (blocks + step / BLOCK)).sum(axis=1) for step in steps], axis=1
    )
    for probability in (0.9, 0.95, 0.99):
        promised = level(blocks, forecast, probability)
        at_one_time = (used > promised).mean(axis=0).max()
        assert at_one_time <= (1.0 - probability) * 1.3 + 0.005
        # And the peak over all time, which the level does not promise, is not much more.
        assert (used.max(axis=1) > promised).mean() <= (1.0 - probability) * 1.5 + 0.005
        # It does not set aside what nobody needs.
        assert promised <= np.quantile(used.max(axis=1), probability) * 1.03


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
    blocks = prefetch_blocks(any_forecast(rng, count), tokens, BLOCK, ahead=ahead, free=free)
    wanted = (tokens + ahead + BLOCK - 1) // BLOCK - (tokens + BLOCK - 1) // BLOCK
    assert (blocks >= 0).all()
    assert (blocks <= wanted).all()
    assert blocks.sum() == min(wanted.sum(), max(free, 0))


def test_the_surest_get_their_blocks_first():
    forecast = known([5, 500, 500])
    found = prefetch_blocks(forecast, np.array([16, 16, 16]), BLOCK, ahead=32, free=3)
    assert found.tolist() == [0, 2, 1]
    doubted = SurvivalForecast(forecast.survival, np.array([0.9, 0.1, 0.9]), certain=True)
    tokens = np.array([16, 16, 16])
    found = prefetch_blocks(doubted, tokens, BLOCK, ahead=32, free=3, min_confidence=0.5)
    assert found.tolist() == [1, 0, 2]


def _edges() -> np.ndarray:
    from sagellm_lifetime.core.grid import EDGES

    return EDGES


@pytest.mark.parametrize("lengths", [[37], [100, 1000, 7], [65_000]])
def test_known_lengths_have_no_variance(lengths):
    forecast = SurvivalForecast.exact(np.array(lengths))
    terms = Peak(BLOCK, 0.99).terms(np.full(len(lengths), 10), forecast)
    assert not terms[:, 1].any()
    sure, median = (
        peak_of([10] * len(lengths), forecast, probability).growth() for probability in (0.99, 0.5)
    )
    assert sure == median
