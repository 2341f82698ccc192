"""An forecast says what the distributions say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_help import (
    PROPERTY,
    exponential,
    known,
    log_logistic,
    log_normal,
    predicted,
)

from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.policies.state import HORIZON, Memory, SurvivalForecast, gap_of

LENGTHS = st.lists(st.integers(1, int(HORIZON[-1])), min_size=1, max_size=20)


@PROPERTY
@given(LENGTHS)
def test_expected_of_a_known_length_is_the_length(lengths):
    assert known(lengths).expected() == pytest.approx(lengths, rel=1e-9)


@PROPERTY
@given(LENGTHS, st.integers(0, 5000))
def test_area_of_a_known_length_is_that_of_the_triangle(lengths, tokens):
    exact = np.array(lengths) * (tokens + np.array(lengths) / 2.0)
    # The gap that holds the end is a third of the length wide; the area in it is rounded.
    assert known(lengths).area(np.full(len(lengths), tokens)) == pytest.approx(exact, rel=0.03)


@PROPERTY
@given(LENGTHS)
def test_survival_never_rises_and_stays_between_0_and_1(lengths):
    survival = known(lengths).survival
    assert (np.diff(survival, axis=1) <= 0).all()
    assert survival.min() >= 0.0
    assert survival.max() <= 1.0


@pytest.mark.parametrize("make", [log_logistic, log_normal])
@pytest.mark.parametrize("median", [2, 5, 20, 100, 300, 1000])
@pytest.mark.parametrize("log_sd", [0.1, 0.3, 0.8])
@pytest.mark.parametrize("age", [0, 1, 2])
def test_expected_is_the_mean_of_the_distribution(make, median, log_sd, age):
    row = make(median, log_sd)
    mean = LengthDistribution(row, age * median).mean()
    assert predicted([row], [age * median]).expected()[0] == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("log_sd", [0.1, 0.3, 0.8])
def test_at_worst_is_the_mean_of_the_longest(share, log_sd):
    row = log_normal(300, log_sd)
    levels = 1.0 - share * (np.arange(2000) + 0.5) / 2000
    longest = [LengthDistribution(row, 100).quantile(level) for level in levels]
    forecast = predicted([row], [100])
    # A distribution that lies within one gap of the horizon, a third of the length, is that gap.
    assert forecast.at_worst(share)[0] == pytest.approx(np.mean(longest), rel=0.2)


def test_at_worst_of_known_lengths_is_the_length():
    forecast = SurvivalForecast.exact(np.array([3, 700, 701]))
    assert forecast.at_worst(0.1) == pytest.approx([3, 700, 701])


@pytest.mark.parametrize("cap", [1, 3, 31, 39, 40, 41, 250, 1000])
@pytest.mark.parametrize("median", [20, 400])
def test_expected_of_a_capped_length(median, cap):
    # Nobody outlives the cap, wherever in a gap of the horizon it falls.
    row = log_logistic(median, 0.8)
    mean = LengthDistribution(row, 0, 0, cap).mean()
    forecast = predicted([row], caps=[cap])
    assert forecast.expected()[0] == pytest.approx(mean, rel=0.05)
    assert (forecast.survival[0, gap_of(cap) + 1 :] == 0.0).all()


def test_nothing_is_expected_at_the_cap():
    assert predicted([log_logistic(100, 0.5)], [64], [64]).expected()[0] == pytest.approx(0, abs=1)
    assert known([0]).expected()[0] == 0.0


def test_lengths_beyond_the_horizon_count_as_the_horizon():
    assert known([10**9]).expected()[0] == HORIZON[-1]
    assert gap_of(10**9) == len(HORIZON) - 1


@PROPERTY
@given(st.floats(0, 65_536))
def test_gap_of(ahead):
    gap = gap_of(ahead)
    assert HORIZON[gap] >= ahead
    assert gap == 0 or HORIZON[gap - 1] < ahead


@pytest.mark.parametrize("mean", [20, 300, 4000])
def test_gittins_of_a_memoryless_length_does_not_change_with_age(mean):
    ages = [0, 1, mean // 2, mean, 3 * mean]
    found = predicted([exponential(mean)] * len(ages), ages).gittins()
    assert found == pytest.approx(np.full(len(ages), 1.0 / mean), rel=0.04)


@pytest.mark.parametrize(("median", "log_sd"), [(5, 0.5), (100, 1.2), (300, 0.3), (1000, 1.5)])
def test_gittins_is_the_best_ratio_over_all_stops(median, log_sd):
    row = log_logistic(median, log_sd)
    survival = np.exp(-np.interp(np.arange(60_001), _edges(), row))
    exact = ((1.0 - survival[1:]) / np.cumsum(survival[:-1])).max()
    assert predicted([row]).gittins()[0] == pytest.approx(exact, rel=0.03)


def test_gittins_falls_with_age_where_the_hazard_does():
    found = predicted([log_logistic(100, 1.2)] * 4, [0, 200, 800, 3200]).gittins()
    assert (np.diff(found) < 0).all()


def test_take():
    forecast = known([10, 20, 30], [0.1, 0.2, 0.3]).take(np.array([2, 0]))
    assert forecast.expected().tolist() == [30, 10]
    assert forecast.confidence.tolist() == [0.3, 0.1]
    assert isinstance(forecast, SurvivalForecast)


def test_blocks_of_tokens():
    tokens = np.array([0, 1, 16, 17, 32])
    assert Memory(10, 10, 16).blocks(tokens).tolist() == [0, 1, 1, 2, 2]


def _edges() -> np.ndarray:
    from sagellm_lifetime.core.grid import EDGES

    return EDGES
