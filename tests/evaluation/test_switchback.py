"""Switchback: the coverage that it claims under an autocorrelated load, and effects that exist."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.evaluation.switchback import (
    FEWEST_PAIRS,
    Block,
    Design,
    effects,
    estimate,
)


def wandering(rng, blocks, memory=0.9):
    """A load with a daily wave and an autocorrelation, as a value a block."""
    noise = rng.standard_normal(blocks)
    values = np.zeros(blocks)
    for i in range(1, blocks):
        values[i] = memory * values[i - 1] + noise[i]
    return values + 3.0 * np.sin(2.0 * np.pi * np.arange(blocks) / 144.0)


def experiment(rng, pairs, effect=0.0):
    """The estimate of one experiment on such a load, with heavy tails on top."""
    values = wandering(rng, 2 * pairs) + 0.3 * rng.standard_t(3, 2 * pairs)
    first, second = values[::2], values[1::2]
    acts_first = rng.integers(0, 2, pairs).astype(bool)
    off, act = np.where(acts_first, second, first), np.where(acts_first, first, second)
    return estimate(off, act + effect)


@pytest.mark.parametrize("pairs", [8, 30])
def test_the_interval_covers_as_often_as_it_says(pairs):
    rng = np.random.default_rng(1)
    found = [experiment(rng, pairs, effect=0.7) for _ in range(400)]
    covered = np.mean([each.low <= 0.7 <= each.high for each in found])
    # Two standard errors of 400 experiments are 2.2 points; 8 pairs can only be above 95 %.
    assert 0.928 <= covered <= 0.98


def test_without_an_effect_one_in_twenty_is_significant():
    rng = np.random.default_rng(2)
    found = [experiment(rng, 12).p_value for _ in range(600)]
    assert 0.03 <= np.mean(np.array(found) <= 0.05) <= 0.07


def test_an_effect_that_is_there_is_found():
    rng = np.random.default_rng(3)
    found = [experiment(rng, 40, effect=-2.0) for _ in range(50)]
    assert np.mean([each.high < 0.0 for each in found]) > 0.95


def by_search(off, act, level=0.95):
    """The interval by definition: all true differences that the test does not refuse."""
    differences = act - off
    signs = np.array(list(itertools.product([1.0, -1.0], repeat=len(off))))
    kept = []
    for x in np.linspace(differences.min() - 5, differences.max() + 5, 4001):
        means = np.abs(signs @ (differences - x))
        if (means >= abs((differences - x).sum()) - 1e-9).mean() > 1.0 - level:
            kept.append(x)
    return min(kept), max(kept)


def test_the_interval_is_what_the_test_does_not_refuse():
    rng = np.random.default_rng(4)
    for _ in range(3):
        off, act = rng.standard_normal((2, 7))
        effect = estimate(off, act)
        low, high = by_search(off, act)
        assert effect.low == pytest.approx(low, abs=0.02)
        assert effect.high == pytest.approx(high, abs=0.02)


def test_too_few_pairs_have_no_interval():
    for pairs in range(1, 9):
        effect = estimate(np.zeros(pairs), np.ones(pairs) + np.arange(pairs))
        assert (effect.low is None) == (effect.high is None) == (pairs < FEWEST_PAIRS)
    assert estimate(np.zeros(1), np.ones(1)).p_value == 1.0


def test_blocks_that_do_not_differ_at_all():
    effect = estimate(np.ones(8), np.ones(8))
    assert (effect.difference, effect.low, effect.high, effect.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("shapes", [((0,), (0,)), ((2,), (3,)), ((2, 2), (2, 2))], ids=str)
def test_values_that_are_no_pairs(shapes):
    with pytest.raises(RequestError, match="values of pairs"):
        estimate(*(np.zeros(shape) for shape in shapes))


def test_each_pair_has_both_rules_and_the_coins_are_fair():
    design = Design()
    firsts = [design.acts(2 * pair) for pair in range(2000)]
    assert all(design.acts(2 * pair) != design.acts(2 * pair + 1) for pair in range(2000))
    assert 920 < sum(firsts) < 1080
    runs = sum(a == b for a, b in itertools.pairwise(firsts))
    assert 920 < runs < 1080  # a coin knows nothing of the one before


def test_washout_and_tail():
    design = Design(100.0, washout=0.2, tail=0.1)
    assert [design.is_measured(at) for at in (300.0, 319.0, 320.0, 399.9)] == [False, False, True,
                                                                             True]  # fmt: skip
    assert [design.counts_arrival(at) for at in (319.0, 321.0, 389.0, 391.0)] == [False, True, True,
                                                                               False]  # fmt: skip
    for wrong in ({"period_s": 0.0}, {"washout": 0.95}, {"tail": -0.1}, {"period_s": float("nan")}):
        with pytest.raises(RequestError):
            Design(**{"period_s": 100.0, **wrong})


def test_effects_of_blocks():
    design = Design(60.0)
    blocks = []
    for number in range(16):
        latency = 2.0 if design.acts(number) else 3.0
        blocks.append(Block(number, 48.0, 10, 10 * latency + number // 2, 5, 5.0, 480, 8))
    blocks.append(Block(16, 48.0, 10, 1000.0))  # half a pair
    blocks += [Block(18, 48.0, 0, 0.0), Block(19, 48.0, 4, 8.0)]  # without a latency
    found = effects(blocks, design)
    assert found["latency"]["difference"] == pytest.approx(-1.0)
    assert found["latency"]["pairs"] == 8
    assert found["latency"]["high"] < 0.0
    assert found["throughput"]["pairs"] == 9
    assert found["preemptions"]["off"] == pytest.approx(10.0 * 8 / 9)
    assert effects([], design) == {}


def test_a_block_as_numbers():
    block = Block(3, 4.0, 5, 6.0, 7, 8.0, 9, 10)
    assert asdict(Block.of(block.numbers())) == asdict(block)
    more = Block(3, 4.0, 1, 1.0, 1, 1.0, 1, 1)
    more.add(block)
    assert more.numbers() == [3, 4.0, 6, 7.0, 8, 9.0, 10, 11]
    for wrong in ([], [1] * 7, [True] * 8, ["1"] * 8, [float("nan")] * 8, [1e300] * 8):
        with pytest.raises(ValueError, match="no numbers"):
            Block.of(wrong)
