"""Calibration links: exact inverses, one at a time and many at once, sound in the tails."""

from math import exp, isclose, log, nextafter

import numpy as np
import pytest
from distribution_rows import curve
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.core import link

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
STEPS = [
    *[0.0, 1e-30, 1e-21, 1e-12, 1e-6, 1e-3, 0.04],
    *[0.06, 0.5, log(2), 1.0, 2.9, log(20), 3.1, 10.0, 67.0, 460.0, 1e5],
]
EDGES = link.EDGES.tolist()

factors = st.lists(
    st.floats(-2.0, 2.0).map(lambda exponent: 10.0**exponent),
    min_size=link.SEGMENTS,
    max_size=link.SEGMENTS,
)
steps = st.one_of(
    st.floats(-26.0, 5.0).map(lambda exponent: 10.0**exponent),
    st.floats(0.0, 80.0),
    st.sampled_from(EDGES),
)


def curves(count: int) -> list[np.ndarray]:
    """Return the identity, links of ragged factors, and valid links that were not learned."""
    rng = np.random.default_rng(0)
    learned = link.from_factors(rng.lognormal(0.0, 2.0, (count, link.SEGMENTS)))
    any_ = [curve(rng) for _ in range(3 * count)]
    return [link.IDENTITY, *learned, *[c for c in any_ if c is not None][:count]]


@pytest.mark.parametrize("index", range(25))
def test_backward_undoes_forward(index):
    c = curves(12)[index]
    for step in STEPS:
        there = link.forward(c, step)
        assert there >= 0.0
        assert isclose(link.backward(c, there), step, rel_tol=1e-9, abs_tol=1e-9)


@PROPERTY
@given(factors, steps)
def test_each_undoes_the_other(found, step):
    c = link.from_factors(np.array(found))
    assert isclose(link.backward(c, link.forward(c, step)), step, rel_tol=1e-9, abs_tol=1e-9)
    assert isclose(link.forward(c, link.backward(c, step)), step, rel_tol=1e-9, abs_tol=1e-9)
    assert link.forward(c, 0.0) == link.backward(c, 0.0) == 0.0


@PROPERTY
@given(factors, steps, st.floats(1.0 + 1e-6, 10.0))
def test_strictly_increasing(found, step, more):
    c = link.from_factors(np.array(found))
    assert link.forward(c, step) < link.forward(c, step * more + 1e-300)
    assert link.backward(c, step) < link.backward(c, step * more + 1e-300)


@PROPERTY
@given(factors, st.lists(steps, min_size=1, max_size=30))
def test_many_equals_one_for_any_factors(found, several):
    c = np.stack([link.IDENTITY, link.from_factors(np.array(found))])
    for i in range(2):
        index = np.full(len(several), i)
        many = link.forward_many(c, index, np.array(several))
        alone = [link.forward(c[i], step) for step in several]
        assert many.tolist() == alone


@PROPERTY
@given(factors)
def test_hazard_in_a_segment_is_multiplied(found):
    c = link.from_factors(np.array(found))
    there = np.array([link.forward(c, edge) for edge in EDGES])
    assert np.allclose(there, np.cumsum([0.0, *found * np.diff(EDGES)]), rtol=1e-12)
    # Behind the last edge the last factor goes on, however far.
    for far in (1e3, 1e6, 1e12):
        assert isclose(link.forward(c, EDGES[-1] + far), there[-1] + found[-1] * far, rel_tol=1e-12)


def test_identity_changes_nothing():
    for step in STEPS:
        assert isclose(link.forward(link.IDENTITY, step), step, rel_tol=1e-12, abs_tol=0.0)
        assert isclose(link.backward(link.IDENTITY, step), step, rel_tol=1e-12, abs_tol=0.0)
    assert len(link.IDENTITY) == link.LEVELS + 1


def test_below_zero_by_rounding_is_zero():
    factors = np.ones(link.SEGMENTS)
    factors[0] = 1e22
    c = link.from_factors(factors)
    for step in (0.0, -1e-16, -1e-9):
        assert link.forward(c, step) == link.backward(c, step) == 0.0
        assert link.forward_many(c[None], np.array([0]), np.array([step])).tolist() == [0.0]


def test_continuous_at_every_edge():
    for c in curves(12):
        for edge in EDGES[1:]:
            there = [link.forward(c, edge * (1.0 + side)) for side in (-1e-12, 0.0, 1e-12)]
            assert there == sorted(there)
            assert isclose(there[0], there[2], rel_tol=1e-6)


def test_forward_says_how_often_the_outcome_fell_below():
    """A predictor whose levels are the squares of the true ones."""
    alive = np.exp(-link.EDGES)
    true = -np.log1p(-np.sqrt(-np.expm1(-link.EDGES[alive > 1e-9])))
    found = np.ones(link.SEGMENTS)
    found[: len(true) - 1] = np.diff(true) / np.diff(link.EDGES)[: len(true) - 1]
    c = link.from_factors(found)
    for level in (1e-10, 0.01, 0.05, 0.55, 0.95):
        assert isclose(-np.expm1(-link.forward(c, -np.log1p(-level))), np.sqrt(level), rel_tol=1e-9)


def test_many_equals_one():
    found = curves(8)
    stacked = np.stack(found)
    index = np.repeat(np.arange(len(found)), len(STEPS))
    tiled = np.tile(STEPS, len(found))
    alone = [link.forward(stacked[i], s) for i, s in zip(index, tiled.tolist(), strict=True)]
    assert link.forward_many(stacked, index, tiled).tolist() == alone
    for q in (1e-15, 0.05, 0.5, 0.9, 1.0):
        assert link.thresholds(stacked, q).tolist() == [link.threshold(c, q) for c in found]


@PROPERTY
@given(factors, st.floats(1e-15, 1.0), st.sampled_from([0.0, 1e-9, 0.3, 20.0]))
def test_threshold_is_the_first_step_at_which_the_share_has_ended(found, q, lived):
    c = link.from_factors(np.array(found))
    for curve_or_none in (c, None):

        def ended(step, curve_or_none=curve_or_none):
            total = step if curve_or_none is None else link.forward(curve_or_none, step)
            return 1.0 - exp(lived - total)

        step = link.threshold(curve_or_none, q, lived)
        assert ended(step) >= q
        assert ended(nextafter(step, 0.0)) < q


def test_a_threshold_follows_a_link_that_is_written_to():
    c = link.IDENTITY.copy()
    before = link.threshold(c, 0.5)
    c[: link.LEVELS // 2] *= 0.5
    assert link.threshold(c, 0.5) != before
    assert link.thresholds(c[None], 0.5)[0] == link.threshold(c, 0.5)


@PROPERTY
@given(factors, st.integers(1, link.SEGMENTS - 1))
def test_no_fall_by_rounding_where_segments_meet(found, k):
    c = link.from_factors(np.array(found))
    steps = [EDGES[k]]
    for _ in range(20):
        steps = [nextafter(steps[0], 0.0), *steps, nextafter(steps[-1], 1e9)]
    there = [link.forward(c, step) for step in steps]
    assert there == sorted(there)


@PROPERTY
@given(st.integers(0, 10**6))
def test_what_a_calibrated_prediction_lives_is_what_is_expected(seed):
    """Every outcome of a prediction, as often as predicted: all factors are 1."""
    rng = np.random.default_rng(seed)
    edges = np.cumsum(rng.lognormal(rng.uniform(-6, 0), 2.0, 300))
    edges = np.concatenate([[0.0], 10.0 ** rng.uniform(-30, -3, 5), edges[edges < 300.0], [400.0]])
    edges.sort()
    probability = np.exp(-edges[:-1]) * -np.expm1(-np.diff(edges))
    step = edges[:-1], edges[1:]
    ended, hazard = link.lived(step, step, np.zeros(len(probability), dtype=bool))
    assert np.allclose(ended.sum(axis=1), 1.0)
    assert (ended >= 0.0).all()
    assert (hazard >= 0.0).all()
    # What lies together in one step is spread over it to a millionth.
    assert np.allclose(probability @ ended, link.EXPECTED, rtol=1e-5, atol=1e-12)
    assert np.allclose(probability @ hazard, link.EXPECTED, rtol=1e-5, atol=1e-12)


def test_censored_outcomes_only_lived():
    at = np.array([0.0, 1e-7, 0.4, 5.5, 1e9])
    step = np.maximum(at - 0.1, 0.0), at
    ended, hazard = link.lived(step, step, np.ones(5, dtype=bool))
    assert not ended.any()
    assert np.allclose(hazard.sum(axis=1)[:4], at[:4], rtol=1e-12, atol=1e-29)
    full = np.diff(link.EDGES)
    for each in hazard:
        through = max(int((each > 0.0).sum()) - 1, 0)
        assert np.allclose(each[:through], full[:through])
    # Bounded: one outcome far out does not outweigh all others.
    assert hazard[4].sum() < 300.0


def test_outcomes_where_nothing_was_predicted():
    """No hazard before and none at the outcome, or so much that nobody could be alive."""
    low = np.array([0.0, 0.7, 5e4])
    ended, hazard = link.lived((low, low), (low, low), np.zeros(3, dtype=bool))
    assert ended.sum(axis=1) == pytest.approx(1.0)
    assert ended.argmax(axis=1).tolist() == [
        0,
        int(np.searchsorted(link.EDGES, 0.7)) - 1,
        link.SEGMENTS - 1,
    ]
    assert hazard.sum(axis=1)[:2] == pytest.approx([0.0, 0.7], abs=1e-5)
    assert np.isfinite(hazard).all()


def test_the_place_in_a_bin_makes_no_tail():
    """Nearly everything is predicted in one bin, and the outcome is always its last length."""
    bins = np.array([0.1]), np.array([60.0])
    ended, hazard = link.lived((np.array([50.0]), np.array([60.0])), bins, np.array([False]))
    assert ended[0, link.TAIL :].sum() == pytest.approx(1.0)
    # The whole tail has passed in the bin, so that the outcome is what was predicted there.
    assert ended[0, link.TAIL :] == pytest.approx(hazard[0, link.TAIL :], abs=1e-12)
    assert hazard[0, : link.TAIL].sum() == pytest.approx(link.EDGES[link.TAIL])
    # Below the tail it counts, or intervals would miss outcomes that are all alike.
    ended, _ = link.lived((np.array([0.9]), np.array([0.91])), bins, np.array([False]))
    assert ended[0].max() == pytest.approx(1.0)
