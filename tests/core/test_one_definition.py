"""Survival, quantile, median, interval and confidence are one definition, scalar and in batches."""

from dataclasses import replace
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from distribution_rows import curve, distribution, row, with_atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.batch import UNCAPPED, LengthDistributionBatch
from sagellm_lifetime.core.distribution import LengthDistribution, point_and_confidence
from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.grid import EDGES, MAX_LENGTH

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
LEVELS = (0.0, 1e-17, 1e-6, 0.025, 0.05, 0.5, 0.95, 0.975, 1 - 1e-12, 1.0)


def a_curve(rng):
    """Return no link or a ragged one, as a learned one may be."""
    kind = rng.integers(3)
    if kind == 0:
        return curve(rng)
    return link.from_factors(np.exp(rng.normal(0.0, 1.5 * kind, link.SEGMENTS)))


def edge_row(rng):
    """Return a row with all mass on a few lengths: its survival is flat or falls at once."""
    hazards = np.zeros(len(EDGES) - 1)
    hazards[rng.integers(0, 110, 3)] = [1.0, 0.5, 1e-7]
    return hazard.from_hazards(hazards)


@pytest.mark.parametrize("seed", range(9))
def test_all_ages_under_all_caps(seed):
    """Check every age up to 60 under every cap up to 70 and none against a search by survival."""
    rng = np.random.default_rng(seed)
    values = edge_row(rng) if seed % 3 == 0 else row(rng)
    if seed % 2:
        values = hazard.with_atoms(values, ((40, 0.5), (41, 0.2), (64, 0.9), (100, 1.0)))
    bent = a_curve(rng)
    if bent is not None:
        bent.flags.writeable = False  # as those of a predictor are
    kept, wanted, points, sure = [], [], [], []
    for age in range(61):
        free = LengthDistribution(values, age, 0, None, bent)
        ended = np.array([1.0 - free.survival(n) for n in range(400)])
        assert (np.diff(ended) >= 0.0).all()
        first = [max(1, int(np.argmax(ended >= q))) if ended[-1] >= q else None for q in LEVELS]
        assert [f for f in first if f is not None] == [
            free.quantile(q) for q, f in zip(LEVELS, first, strict=True) if f is not None
        ]
        of_free = [free.quantile(q) for q in LEVELS]
        for cap in (None, *range(age, 71)):
            d = replace(free, max_length=cap)
            room = UNCAPPED if cap is None else cap - age
            kept.append(d)
            wanted.append([min(n, room) for n in of_free])
            points.append(d.median())
            sure.append(d.within(d.median()))
            assert d.interval(0.9) == (d.quantile(0.05), d.quantile(0.95))
            link_ = link.IDENTITY if bent is None else bent
            if bent is not None:
                assert point_and_confidence(values, age, cap, link_) == (points[-1], sure[-1])
    assert [[d.quantile(q) for q in LEVELS] for d in kept] == wanted
    batch = LengthDistributionBatch.stack(kept)
    assert batch.quantile(np.array(LEVELS)).tolist() == wanted
    assert batch.within(np.array(points)).tolist() == sure


def check_first(d, q, n):
    """Check that ``n`` is the smallest length at which a share ``q`` has ended by the survival."""
    room = inf if d.max_length is None else d.max_length - d.age - d.shift
    assert n >= min(1, room)
    assert 1.0 - d.survival(n) >= q
    assert n <= 1 or 1.0 - d.survival(n - 1) < q


@PROPERTY
@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.integers(0, 5000))
def test_a_quantile_is_where_the_survival_says(seed, q, later):
    rng = np.random.default_rng(seed)
    d = distribution(rng)
    if seed % 2:
        values = edge_row(rng)
        values = with_atoms(rng, values) if seed % 4 == 1 else values
        d = replace(d, row=values, curve=a_curve(rng))
    for each in (d, d.given(later)):
        check_first(each, q, each.quantile(q))
        # Asked for exactly what the survival says at some length: no later than there.
        n = int(rng.integers(1, 4000))
        said = 1.0 - each.survival(n)
        assert each.quantile(said) <= n
        check_first(each, said, each.quantile(said))


@PROPERTY
@given(st.integers(0, 10**6), st.floats(0.0, 1.0))
def test_batches_agree_to_the_last_bit(seed, q):
    rng = np.random.default_rng(seed)
    items = [
        replace(distribution(rng), curve=a_curve(rng), **({"row": edge_row(rng)} if k % 2 else {}))
        for k in range(8)
    ]
    batch = LengthDistributionBatch.stack(items)
    n = rng.integers(-1, 6000, len(items))
    pairs = list(zip(items, n.tolist(), strict=True))
    assert batch.quantile(q).tolist() == [d.quantile(q) for d in items]
    assert batch.survival(n).tolist() == [d.survival(k) for d, k in pairs]
    assert batch.survival(n + 0.3).tolist() == [d.survival(k + 0.3) for d, k in pairs]
    assert batch.within(np.abs(n)).tolist() == [d.within(abs(k)) for d, k in pairs]
    low, high = batch.interval(q)
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == [d.interval(q) for d in items]
    assert all(batch[i].quantile(q) == d.quantile(q) for i, d in enumerate(items))


def test_far_out_where_floats_have_gaps():
    for age in (MAX_LENGTH - 1, MAX_LENGTH, 10**9, 10**13, 2**53):
        d = LengthDistribution(hazard.log_logistic(100.0, 1.0), age)
        for q in LEVELS:
            check_first(d, q, d.quantile(q))
        assert LengthDistributionBatch.stack([d]).quantile(0.5)[0] == d.median()


D = LengthDistribution(hazard.log_logistic(200.0, 0.5), 10, 0, 4096, link.IDENTITY)
NO_NUMBERS = [nan, np.float32(nan), None, "1", True, np.bool_(True), 1j, [1], np.ones(2), object()]
NO_LEVELS = [*NO_NUMBERS, -0.1, 1.1, 2, inf, -inf, 10**400]


def refused(call, *arguments):
    with pytest.raises(RequestError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("bad", NO_LEVELS, ids=lambda bad: type(bad).__name__)
def test_no_levels(bad):
    refused(D.quantile, bad)
    refused(D.interval, bad)
    batch = LengthDistributionBatch.stack([D, D, D])
    refused(batch.interval, bad)
    if not isinstance(bad, list | np.ndarray):
        refused(batch.quantile, bad)


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=lambda bad: type(bad).__name__)
def test_no_numbers(bad):
    refused(D.survival, bad)
    refused(D.given, bad)
    refused(D.within, bad)
    refused(D.within, 5, bad)
    batch = LengthDistributionBatch.stack([D, D, D])
    refused(batch.survival, bad if not isinstance(bad, list) else [1, 2])
    refused(batch.within, bad if not isinstance(bad, list) else [1, 2])
    refused(batch.within, np.array([5, 5, 5]), bad)


def test_no_counts():
    for bad in (-1, -0.5, 2.5, inf, 10**400, 2**53 + 1, np.int64(-3)):
        refused(D.given, bad)
        refused(D.within, bad)
    for bad in (-0.1, 1.0, 2, inf):
        refused(D.within, 5, bad)
    batch = LengthDistributionBatch.stack([D, D])
    for bad in (np.array([1.0, nan]), np.ones(3), np.ones((2, 2)), [[1], [1, 2]], ["a", "b"]):
        refused(batch.survival, bad)
        refused(batch.within, bad)
    for bad in (np.array([1.5, 2.0]), np.array([-1, 2]), np.array([inf, 1.0])):
        refused(batch.within, bad)
    for bad in (np.array([0.5, nan]), np.array([0.5, 1.5]), np.full((2, 2), 0.5), ["half"]):
        refused(batch.quantile, bad)


def test_defined_answers_at_the_ends():
    batch = LengthDistributionBatch.stack([D])
    for n, wanted in ((-1, 1.0), (-inf, 1.0), (0, 1.0), (inf, 0.0), (10**400, 0.0), (4086, 0.0)):
        assert D.survival(n) == wanted
        if abs(n) < 10**300 or n in (inf, -inf):
            assert batch.survival(n).tolist() == [wanted]
    free = replace(D, max_length=None)
    assert free.survival(inf) == free.survival(10**400) == free.survival(1e308) == 0.0
    assert LengthDistributionBatch.stack([free]).survival(inf).tolist() == [0.0]
    assert D.quantile(0) == D.quantile(0.0) == 1
    assert D.quantile(1) == D.quantile(1.0) <= 4086
    assert batch.quantile(np.zeros(0)).shape == (1, 0)
    assert D.within(5, 0) == D.survival(4) - D.survival(5)


def test_numbers_of_other_kinds_are_taken():
    assert D.quantile(np.float64(0.5)) == D.quantile(np.array(0.5)) == D.median()
    assert D.quantile(Fraction(1, 2)) == D.quantile(np.float16(0.5)) == D.median()
    assert (
        D.survival(np.int32(40)) == D.survival(40.0) == D.survival(np.array(40)) == D.survival(40)
    )
    for age in (np.int64(7), np.uint8(7), 7.0, np.array(7)):
        later = D.given(age)
        assert later.survival(3) == D.given(7).survival(3)
        assert type(later.shift) is int
    assert type(D.quantile(np.float32(0.9))) is int
    assert D.within(np.int64(90), np.float64(0.1)) == D.within(90)
    batch = LengthDistributionBatch.stack([D, D])
    assert batch.quantile([0.5, 0.9]).tolist() == [[D.median(), D.quantile(0.9)]] * 2
    assert batch.survival([1, 2]).tolist() == [D.survival(1), D.survival(2)]
    assert batch.within([90, 91.0]).tolist() == [D.within(90), D.within(91)]
