"""Calibration links: exact inverses, one at a time and many at once, sound in the tails."""

from math import isclose, log

import numpy as np
import pytest
from distribution_rows import curve

from sagellm_lifetime.core import link

STEPS = [0.0, 1e-12, 1e-6, 0.01, 0.5, log(2), 1.0, 2.9, log(link.LEVELS), 3.1, 10.0, 460.0, 1e5]


def curves(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [curve(rng) for _ in range(3 * count)]
    return [link.IDENTITY, *[c for c in found if c is not None][:count]]


@pytest.mark.parametrize("index", range(12))
def test_backward_undoes_forward(index):
    c = curves(12)[index]
    for step in STEPS:
        there = link.forward(c, step)
        assert there >= 0.0
        assert isclose(link.backward(c, there), step, rel_tol=1e-9, abs_tol=1e-9)


def test_identity_changes_nothing():
    for step in STEPS:
        assert isclose(link.forward(link.IDENTITY, step), step, rel_tol=1e-12, abs_tol=1e-15)


def test_forward_is_monotone_and_continuous_at_the_last_segment():
    for c in curves(12):
        there = [link.forward(c, s) for s in np.linspace(0, 8, 400)]
        assert (np.diff(there) > 0).all()
        edge = log(link.LEVELS)
        assert isclose(link.forward(c, edge - 1e-9), link.forward(c, edge + 1e-9), abs_tol=1e-7)


def test_forward_says_how_often_the_outcome_fell_below():
    c = np.linspace(0, 1, link.LEVELS + 1) ** 2
    u = 0.55
    assert isclose(-np.expm1(-link.forward(c, -np.log1p(-u))), 0.55**2, abs_tol=1e-12)


def test_many_equals_one():
    found = curves(8)
    stacked = np.stack(found)
    index = np.repeat(np.arange(len(found)), len(STEPS))
    steps = np.tile(STEPS, len(found))
    alone = [link.forward(stacked[i], s) for i, s in zip(index, steps.tolist(), strict=True)]
    assert np.allclose(link.forward_many(stacked, index, steps), alone, rtol=1e-9, atol=1e-9)
    for step in STEPS:
        assert link.backward_level(stacked, step).tolist() == [
            link.backward(c, step) for c in found
        ]
