"""One distribution: known laws recovered, conditioning, tails, and what a point is worth."""

from dataclasses import replace
from math import isclose, log

import numpy as np
import pytest
from distribution_rows import distribution, row
from hypothesis import settings

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.distribution import LengthDistribution, tolerance_band
from sagellm_lifetime.core.grid import BINS, EDGES, MAX_LENGTH, TAIL_HAZARD, bin_of, bins_of

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True)
LEVELS = np.linspace(0.0, 1.0, 21)


def geometric(p: float, **kwargs) -> LengthDistribution:
    """Return a memoryless row: every token is the last with probability ``p``."""
    steps = np.diff(EDGES) * -np.log1p(-p)
    return LengthDistribution(hazard.from_steps(steps), **kwargs)


def test_grid_resolves_ten_percent_and_reaches_beyond_131072():
    assert EDGES[0] == 0
    assert EDGES[-1] == MAX_LENGTH >= 131_072
    assert (np.diff(EDGES) > 0).all()
    assert (EDGES[17:] / EDGES[16:-1]).max() < 1.10
    assert EDGES[:17].tolist() == list(range(17))


def test_every_length_is_in_its_bin():
    lengths = np.concatenate([np.arange(1, 5000), [MAX_LENGTH, MAX_LENGTH + 1, 10**9]])
    found = bins_of(lengths)
    assert found.tolist() == [bin_of(int(n)) for n in lengths]
    inside = lengths <= MAX_LENGTH
    assert (EDGES[found[inside]] < lengths[inside]).all()
    assert (lengths[inside] <= EDGES[found[inside] + 1]).all()
    assert (found[~inside] == BINS - 1).all()


@pytest.mark.parametrize("median", [3.0, 40.0, 777.0, 20_000.0])
@pytest.mark.parametrize("log_sd", [0.1, 0.8, 2.0])
def test_log_logistic_round_trip(median, log_sd):
    d = LengthDistribution(hazard.log_logistic(median, log_sd))
    assert isclose(d.median(), median, rel_tol=0.05, abs_tol=1.0)
    beta = np.pi / (np.sqrt(3) * log_sd)
    for n in EDGES[1::9].tolist():
        exact = 1.0 / (1.0 + (n / median) ** beta)
        assert isclose(d.survival(n), exact, rel_tol=1e-3, abs_tol=1e-6)
    q = np.array([d.quantile(p) for p in (0.25, 0.75)])
    exact = median * (np.array([1 / 3, 3.0]) ** (1 / beta))
    # Between two edges, 6 % apart, the hazard is constant.
    assert np.allclose(q, exact, rtol=0.05, atol=1.01)


def test_hazards_round_trip():
    rng = np.random.default_rng(0)
    hazards = rng.beta(0.5, 8, BINS)
    row = hazard.from_hazards(hazards)
    assert row[0] == 0.0
    assert np.allclose(1 - np.exp(-np.diff(row.astype(float))), hazards, atol=1e-4)


def test_inverse_undoes_cumulative():
    rng = np.random.default_rng(1)
    row = hazard.from_steps(rng.exponential(0.05, BINS))
    for length in [0.5, 1, 17, 333.25, 9999, 131_072, 10**6]:
        assert isclose(hazard.inverse(row, hazard.cumulative(row, length)), length, rel_tol=1e-5)


def test_memoryless_stays_memoryless():
    d = geometric(0.01)
    assert isclose(d.mean(), 100.0, rel_tol=1e-3)
    assert d.median() == 69
    for age in (1, 50, 700, 10_000):
        assert isclose(d.given(age).mean(), 100.0, rel_tol=1e-2)
        assert d.given(age).median() in (69, 70)
        assert isclose(d.given(age).survival(30), 0.99**30, rel_tol=1e-3)


def test_beyond_the_grid_the_hazard_is_constant():
    d = geometric(0.001, age=10**6)
    assert isclose(d.mean(), 1 / TAIL_HAZARD, rel_tol=1e-3)
    assert isclose(d.median(), log(2) / TAIL_HAZARD, rel_tol=1e-3)


def test_conditioning_where_survival_underflows():
    d = geometric(0.1)
    assert d.survival(5000) < 1e-200
    assert d.given(5000).median() == 7
    assert isclose(d.given(5000).survival(3), 0.9**3, rel_tol=1e-3)
    assert isclose(d.given(5000).mean(), 10.0, rel_tol=1e-2)
    assert d.given(100_000).survival(10**5) == 0.0
    far = LengthDistribution(np.full(BINS + 1, 1e4, dtype=np.float32) * (np.arange(BINS + 1) > 0))
    assert far.median() == 1
    assert far.given(3).median() > 1


def test_cap_ends_everything():
    d = geometric(0.001, max_length=300)
    assert d.survival(299) > 0.0 == d.survival(300)
    assert d.quantile(0.9999) == 300
    assert d.mean() <= 300
    assert d.given(299).median() == 1 == d.given(299).quantile(1.0)
    for age in (300, 301, 10**6):
        assert d.given(age).median() == 0 == d.given(age).mean()
        assert d.given(age).survival(0) == 0.0


@pytest.mark.parametrize("cap", [131_073, 10**6, 10**8, 10**12, 2**63 - 1])
def test_mean_under_a_cap_far_away(cap):
    free = geometric(1e-6)
    capped = geometric(1e-6, max_length=cap)
    assert capped.mean() <= free.mean() * (1 + 1e-9)
    if cap >= 10**8:
        assert isclose(capped.mean(), free.mean(), rel_tol=1e-6)


def test_tolerance_band_is_exact():
    for total in [*range(1, 3000), *(11 * 10**k for k in range(4, 15)), 10**12 + 7]:
        low, high = tolerance_band(total)
        hits = [n for n in (low - 1, low, high, high + 1) if abs(total - n) * 10 <= n]
        assert hits == [low, high], total


def test_confidence_is_the_share_within_ten_percent():
    rng = np.random.default_rng(2)
    d = LengthDistribution(hazard.log_logistic(200.0, 0.4), max_length=800)
    levels = rng.random(4000)
    lengths = np.array([d.quantile(float(u)) for u in levels])
    point = d.median()
    share = np.mean(np.abs(point - lengths) <= 0.1 * lengths)
    assert abs(d.within(point) - share) < 0.02


@pytest.mark.parametrize(
    "seeds",
    [range(300), pytest.param(range(300, 3000), marks=pytest.mark.slow)],
    ids=["first", "others"],
)
def test_laws(seeds):
    for seed in seeds:
        check_laws(np.random.default_rng(seed))


def check_laws(rng):
    d = distribution(rng)
    found = [d.quantile(float(q)) for q in LEVELS]
    assert found == sorted(found)
    room = None if d.max_length is None else max(d.max_length - d.age, 0)
    assert min(found) >= (1 if room is None else min(1, room))
    points = np.unique(np.concatenate([[0], np.geomspace(1, 10**6, 40).astype(int)])).tolist()
    alive = [d.survival(n) for n in points]
    assert all(0.0 <= s <= 1.0 for s in alive)
    assert (np.diff(alive) <= 1e-9).all()
    for q, n in zip(LEVELS.tolist(), found, strict=True):
        assert n == room or 1.0 - d.survival(n) >= q
        assert n <= 1 or 1.0 - d.survival(n - 1) < q
    a, b = (int(x) for x in rng.integers(0, 500, 2))
    assert [d.given(a).given(b).quantile(float(q)) for q in LEVELS] == [
        d.given(a + b).quantile(float(q)) for q in LEVELS
    ]
    if d.survival(a) > 1e-9:
        law = d.survival(a + b) / d.survival(a)
        assert isclose(d.given(a).survival(b), law, rel_tol=1e-6, abs_tol=1e-9)
    if room is not None and room <= 3000:
        total = sum(d.survival(n) for n in range(room))
        assert isclose(d.mean(), total, rel_tol=0.05, abs_tol=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_mean_under_a_link_that_bends_inside_bins_and_beyond_the_grid(seed):
    rng = np.random.default_rng(seed)
    curve = link.from_factors(np.exp(rng.normal(0.0, 1.2, link.SEGMENTS)))
    age = int(rng.choice([0, 1, 700, MAX_LENGTH, 10**6]))
    d = LengthDistribution(row(rng), age, int(rng.choice([0, 90])), None, curve)
    start = d.age + d.shift
    hazards = d._hazards(start + np.arange(2_000_000.0)) - d._hazard(start)
    alive = np.exp(-hazards)
    assert alive[-1] < 1e-6
    assert isclose(d.mean(), alive.sum(), rel_tol=0.05, abs_tol=1.0)
    capped = replace(d, max_length=start + 500)
    assert isclose(capped.mean(), alive[:500].sum(), rel_tol=0.05, abs_tol=1.0)


def test_a_mean_where_two_points_are_one_float():
    """Above 2**53 the cap and the age may be the same float."""
    start = 2**53 - 1
    with np.errstate(all="raise"):
        last = geometric(0.5, age=start, max_length=start + 2).given(1)
        assert last.mean() == 1.0


@pytest.mark.parametrize("ended", [1e15, 1e12, 0.0])
@pytest.mark.parametrize("segment", [0, link.TAIL, link.TAIL + 1, link.SEGMENTS - 2])
def test_a_last_segment_lost_beside_a_huge_sum(segment, ended):
    factors = np.full(link.SEGMENTS, 1e-12)
    factors[segment] = ended
    curve = link.from_factors(factors)
    assert link.last_factor(curve) > 0.0
    with np.errstate(all="raise", under="ignore"):
        for age in (0, 300, MAX_LENGTH + 5):
            dist = geometric(0.01, age=age, curve=curve)
            for each in (dist, dist.given(10**6)):
                assert 0.0 <= each.mean() < float("inf")
                assert each.quantile(0.5) >= 1


def test_a_mean_under_a_link_that_stays_level_is_bounded():
    curve = link.IDENTITY.copy()
    knots = np.flatnonzero(np.diff(curve) < 0)[0]  # the last knot; the shares of decades follow
    curve[1 : knots + 1] = 1e-3
    assert link.last_factor(curve) == 0.0
    assert 2.0**52 < geometric(0.01, curve=curve).mean() < 2.0**54
