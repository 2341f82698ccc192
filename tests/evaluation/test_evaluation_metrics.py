"""Metrics against values computed by hand or by brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.evaluation import metrics
from sagellm_lifetime.evaluation.point_forecasts import INNER, LEVELS, cdf, column, from_quantiles

pairs = st.lists(
    st.tuples(
        st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.25, 1.0, 3.0]), st.booleans()
    ),
    min_size=2,
    max_size=40,
)


def columns_of(rows):
    x, y, w, e = zip(*rows, strict=True)
    return np.array(x), np.array(y), np.array(w), np.array(e)


@given(pairs)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_kendall_tau_is_the_sum_over_all_pairs(rows):
    x, y, w, _ = columns_of(rows)
    agree = left_x = left_y = 0.0
    for i, j in combinations(range(len(x)), 2):
        pair = w[i] * w[j]
        agree += pair * np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
        left_x += pair * (x[i] != x[j])
        left_y += pair * (y[i] != y[j])
    found = metrics.kendall_tau(x, y, w)
    if left_x * left_y == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(agree / np.sqrt(left_x * left_y), abs=1e-9)


def test_kendall_tau_counts_inversions_beyond_one_block():
    rng = np.random.default_rng(1)
    x = rng.permutation(1000)
    y = x + rng.integers(-200, 200, 1000)
    sign = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    ties = (y[:, None] == y).sum() - 1000
    every = 1000 * 999
    assert metrics.kendall_tau(x, y) == pytest.approx(
        sign.sum() / np.sqrt(every * (every - ties)), abs=1e-12
    )
    assert metrics.kendall_tau(x, x) == pytest.approx(1.0)
    assert metrics.kendall_tau(x, -x) == pytest.approx(-1.0)


@given(pairs)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_c_index_is_the_share_of_comparable_pairs(rows):
    p, t, w, event = columns_of(rows)
    agree = total = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            first = event[i] and (t[i] < t[j] or (t[i] == t[j] and not event[j]))
            if i != j and first:
                total += w[i] * w[j]
                agree += w[i] * w[j] * (1.0 if p[i] < p[j] else 0.5 if p[i] == p[j] else 0.0)
    found = metrics.c_index(p, t, event, w)
    if total == 0:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(agree / total)


def test_c_index_subsamples_the_same_way_every_time():
    rng = np.random.default_rng(0)
    t = rng.exponential(100, 5000)
    p = t * rng.lognormal(0, 0.5, 5000)
    event = rng.random(5000) < 0.8
    first = metrics.c_index(p, t, event, cap=800)
    assert first == metrics.c_index(p, t, event, cap=800)
    assert first == pytest.approx(metrics.c_index(p, t, event, cap=5000), abs=0.02)


def test_point_metrics_by_hand():
    actual = np.array([10, 100, 100, 1000])
    total = np.array([11, 89, 110, 1101])
    assert metrics.mae(total, actual) == (1 + 11 + 10 + 101) / 4
    assert metrics.median_ae(total, actual) == 10
    assert metrics.within_10pct(total, actual) == 0.5  # 1 of 10 and 10 of 100, both exactly 10 %
    assert metrics.within_10_tokens(total, actual) == 0.5
    weights = np.array([0.0, 0.0, 1.0, 3.0])
    assert metrics.mae(total, actual, weights) == (10 + 3 * 101) / 4
    assert metrics.within_10pct(total, actual, weights) == 0.25
    assert metrics.median_ae(total, actual, weights) == 101


def test_nothing_to_score_is_nan():
    none = np.array([], dtype=np.int64)
    for metric in (metrics.mae, metrics.median_ae, metrics.within_10pct, metrics.kendall_tau):
        assert np.isnan(metric(none, none))
    assert np.isnan(metrics.confidence_ece(none, none))


def test_coverage_includes_both_ends():
    low, high = np.array([5, 5, 5, 5]), np.array([9, 9, 9, 9])
    assert metrics.coverage(low, high, np.array([4, 5, 9, 10])) == 0.5


def test_pinball_by_hand():
    q = np.array([[10.0, 20.0]])
    levels = np.array([0.1, 0.9])
    # actual 25: 0.1 * 15 and 0.9 * 5; actual 5: 0.9 * 5 and 0.1 * 15
    assert metrics.pinball(q, np.array([25.0]), levels) == pytest.approx((1.5 + 4.5) / 2)
    assert metrics.pinball(q, np.array([5.0]), levels) == pytest.approx((4.5 + 1.5) / 2)


def test_crps_is_near_the_closed_form_of_a_uniform_forecast():
    levels = LEVELS[INNER]
    actual = np.random.default_rng(0).random(2000) * 1000
    found = metrics.crps(np.tile(levels * 1000, (2000, 1)), actual, levels)
    y = actual / 1000
    exact = 1000 * np.mean(y**3 / 3 + (1 - y) ** 3 / 3)  # integral of (F - 1{y <= x}) ** 2
    assert found == pytest.approx(exact, rel=0.06)


def test_crps_of_a_point_mass_is_the_absolute_error():
    actual = np.array([3.0, 50.0])
    levels = LEVELS[INNER]
    assert metrics.crps(np.full((2, len(levels)), 20.0), actual, levels) == pytest.approx(23.5)


def test_confidence_ece_by_hand():
    confidence = np.array([0.05, 0.05, 0.95, 0.95])
    hits = np.array([False, True, True, True])
    assert metrics.confidence_ece(confidence, hits) == pytest.approx((0.45 + 0.05) / 2)
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    assert metrics.confidence_ece(confidence, hits, weights) == pytest.approx(0.05)
    assert metrics.confidence_ece(np.ones(3), np.ones(3, dtype=bool)) == 0.0


def test_quantiles_become_a_forecast():
    remaining = np.tile(LEVELS * 200.0, (3, 1))
    ages, caps = np.array([0, 100, 100]), np.array([10**9, 10**9, 150])
    found = from_quantiles(remaining, ages, caps)
    assert found.point.tolist() == [100, 100, 50]
    assert found.quantiles[2].max() == 50
    assert (np.diff(found.quantiles, axis=1) >= 0).all()
    # Totals within 10 % of 100: 91..111, that is 21 of 200 equally likely lengths.
    assert found.confidence[0] == pytest.approx(21 / 200, abs=0.005)
    # Totals within 10 % of 200 are remaining lengths 82..122.
    assert found.confidence[1] == pytest.approx(41 / 200, abs=0.005)


def test_cdf_inverts_the_quantiles():
    table = np.tile(LEVELS * 200.0, (4, 1))
    at = np.array([0.0, 50.0, 199.0, 10_000.0])
    assert cdf(table, at) == pytest.approx([0.0, 0.25, 0.99, 1.0], abs=0.01)
    assert LEVELS[column(0.9)] == pytest.approx(0.9)
