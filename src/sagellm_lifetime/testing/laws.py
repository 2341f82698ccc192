"""Checks of the distributions in answers, with examples searched by hypothesis."""

from __future__ import annotations

from itertools import pairwise
from math import isclose

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.testing.common import (
    EXAMPLES,
    LEVELS,
    Make,
    make_request,
    trained,
    what_is_known,
)

_ages = st.one_of(st.integers(0, 40), st.integers(0, 3000), st.just(10**6))
_rooms = st.one_of(st.none(), st.integers(1, 50), st.integers(1, 5000), st.just(10**7))
_clients = st.sampled_from(["c0", "c3", "unknown"])


def _distribution(
    predictor: Predictor, age: int, room: int | None, client: str
) -> LengthDistribution:
    cap = None if room is None else age + room
    result = predictor.predict(make_request(f"{age} {cap}", age, cap, client_id=client))
    predictor.discard(f"{age} {cap}")
    assert result.distribution is not None
    return result.distribution


def check_survival_falls_from_one_to_zero(make: Make) -> None:
    """Check that ``P(R > n)`` is 1 at the start, never rises and ends at 0."""
    predictor = trained(make)

    @EXAMPLES
    @given(_ages, _rooms, _clients)
    def law(age: int, room: int | None, client: str) -> None:
        d = _distribution(predictor, age, room, client)
        points = np.unique(np.concatenate([np.arange(60), np.geomspace(60, 10**8, 60)]))
        alive = [d.survival(float(n)) for n in points]
        assert alive[0] == 1.0 == d.survival(-1), "P(R > 0) is 1"
        assert all(0.0 <= s <= 1.0 for s in alive), "a probability outside 0..1"
        assert all(b <= a + 1e-9 for a, b in pairwise(alive)), "it rises"
        assert alive[-1] < 1e-6, "a length without end"
        if room is not None:
            assert d.survival(room) == 0.0, "alive at the cap"

    law()


def check_quantile_is_inverse_of_survival(make: Make) -> None:
    """Check that quantiles never fall and are the smallest lengths that reach their levels."""
    predictor = trained(make)

    @EXAMPLES
    @given(_ages, _rooms, _clients, st.floats(0.0, 1.0))
    def law(age: int, room: int | None, client: str, level: float) -> None:
        d = _distribution(predictor, age, room, client)
        n = d.quantile(level)
        assert n >= 1
        assert 1.0 - d.survival(n) >= level, f"{n} is too small"
        assert n == 1 or 1.0 - d.survival(n - 1) < level, f"{n} is too large"
        levels = sorted({*LEVELS, level})
        quantiles = [d.quantile(level) for level in levels]
        assert quantiles == sorted(quantiles), "a quantile falls"
        assert d.quantile(0.5) == d.median()

    law()


def check_conditioning(make: Make) -> None:
    """Check that ``given(a).given(b)`` is ``given(a + b)``, and the conditional distribution."""
    predictor = trained(make)

    @EXAMPLES
    @given(_ages, _rooms, _clients, st.integers(0, 2000), st.integers(0, 2000))
    def law(age: int, room: int | None, client: str, a: int, b: int) -> None:
        d = _distribution(predictor, age, room, client)
        twice, once = d.given(a).given(b), d.given(a + b)
        for n in (0, 1, 10, 500):
            assert isclose(twice.survival(n), once.survival(n), rel_tol=1e-9, abs_tol=1e-12)
            if d.survival(a) > 1e-9:
                conditional = d.survival(a + n) / d.survival(a)
                assert isclose(d.given(a).survival(n), conditional, rel_tol=1e-6, abs_tol=1e-9)
        assert [twice.quantile(q) for q in LEVELS] == [once.quantile(q) for q in LEVELS]
        if room is not None:
            assert d.given(room).quantile(0.9) == 0, "something remains at the cap"

    law()


def check_intervals_are_nested(make: Make) -> None:
    """Check that a wider interval contains the narrower one, and both the median."""
    predictor = trained(make)

    @EXAMPLES
    @given(_ages, _rooms, _clients, st.floats(0, 1), st.floats(0, 1))
    def law(age: int, room: int | None, client: str, one: float, other: float) -> None:
        d = _distribution(predictor, age, room, client)
        narrow, wide = sorted((one, other))
        (a, b), (c, e) = d.interval(narrow), d.interval(wide)
        assert c <= a <= d.median() <= b <= e, f"{(a, b)} at {narrow}, {(c, e)} at {wide}"

    law()


def check_mean_is_sum_of_survival(make: Make) -> None:
    """Check that ``E[R] = Σ P(R > n)``, bounded by the cap."""
    predictor = trained(make)

    @EXAMPLES
    @given(_ages, _rooms, _clients)
    def law(age: int, room: int | None, client: str) -> None:
        d = _distribution(predictor, age, room, client)
        mean = d.mean()
        assert mean >= 1.0 - 1e-6, f"mean {mean}: at least one token is to come"
        assert room is None or mean <= room * (1 + 1e-6), f"mean {mean} beyond the cap {room}"
        for n in (1, 10, 100, 1000):
            assert mean >= n * d.survival(n) * 0.98, "less than Markov's bound"
        if room is not None and room <= 5000:
            total = sum(d.survival(n) for n in range(room))
            assert isclose(mean, total, rel_tol=0.03, abs_tol=0.5), f"mean {mean}, sum {total}"

    law()


def check_far_tails_are_sound(make: Make) -> None:
    """Check answers at ages far beyond anything seen, where survival underflows."""
    predictor = trained(make)
    before = what_is_known(predictor)
    for age in (10**4, 131_071, 131_072, 10**6, 10**8):
        d = _distribution(predictor, age, None, "c0")
        quantiles = [d.quantile(q) for q in LEVELS]
        assert quantiles == sorted(quantiles)
        assert 1 <= d.median() <= 10**6, f"median {d.median()} at age {age}"
        assert 1.0 <= d.mean() <= 10**6, f"mean {d.mean()} at age {age}"
        assert d.survival(1) > 0.0
    assert what_is_known(predictor) == before


CHECKS = [
    check_survival_falls_from_one_to_zero,
    check_quantile_is_inverse_of_survival,
    check_conditioning,
    check_intervals_are_nested,
    check_mean_is_sum_of_survival,
    check_far_tails_are_sound,
]
