"""One level of the tree: against the formulas written out, its limits, its padding."""

import numpy as np
import pytest

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.learning.residual_life import prior_hazards
from sagellm_lifetime.learning.shrinkage import (
    INSIDE,
    OPTIONS,
    Hazards,
    alive_of,
    corrected,
    losses,
    padded,
)


def example(seed: int, density: float = 0.5):
    """Hazards above, sequences that ended, and that were last seen alive, by bin."""
    rng = np.random.default_rng(seed)
    above = rng.beta(0.5, 8.0, BINS)
    ended = rng.poisson(density, BINS).astype(np.float32)
    left = rng.poisson(density / 3.0, BINS).astype(np.float32)
    return above, ended, left


def written_out(above, ended, left, k1, k2):
    """The formulas of the module, bin by bin."""
    found = np.empty(BINS)
    alive = np.array([ended[k:].sum() + left[k + 1 :].sum() for k in range(BINS)], dtype=float)
    for k in range(BINS):
        near = slice(max(0, k - 8), k + 9)
        hazard = above[k]
        if np.isfinite(k1):
            ratio = (ended[near].sum() + k1) / ((alive * above)[near].sum() + k1)
            hazard = 1.0 - (1.0 - hazard) ** ratio
        if np.isfinite(k2):
            hazard = (ended[k] + k2 * hazard) / (alive[k] + k2)
        found[k] = hazard
    return alive, found


@pytest.mark.parametrize("density", [0.01, 3.0])
@pytest.mark.parametrize("cut", [False, True])
def test_it_is_the_formulas(density, cut):
    above, ended, left = example(1, density)
    left = left if cut else np.zeros_like(left)
    counts = padded(ended), padded(left) if cut else None
    for k1, k2 in OPTIONS:
        alive, hazards = written_out(above, ended, left, k1, k2)
        assert np.allclose(alive_of(*counts), alive)
        found = corrected(Hazards(padded(above)), *counts, k1, k2)
        assert np.allclose(found.padded[INSIDE], hazards, atol=1e-12), (k1, k2)
        assert not found.padded[: INSIDE.start].any()
        assert not found.padded[INSIDE.stop :].any()


@pytest.mark.parametrize("k", [0, 1, 7, 100, BINS - 1])
def test_losses_are_likelihoods_under_the_corrected_hazards(k):
    above, ended, left = example(2)
    for cut in (left, None):
        counts = padded(ended), None if cut is None else padded(cut)
        found = {c: losses(Hazards(padded(above)), *counts, k, censored=c) for c in (False, True)}
        for i, (k1, k2) in enumerate(OPTIONS):
            hazards = corrected(Hazards(padded(above)), *counts, k1, k2).padded[INSIDE]
            survived = -np.log1p(-hazards[:k]).sum()
            assert found[True][i] == pytest.approx(survived)
            assert found[False][i] == pytest.approx(survived - np.log(hazards[k]))


def test_losses_of_the_impossible_are_finite():
    above, ended = np.zeros(BINS), np.zeros(BINS, dtype=np.float32)
    above[3] = 1.0
    for k in (0, 2, 3, 4, BINS - 1):
        for censored in (False, True):
            found = losses(Hazards(padded(above)), padded(ended), None, k, censored=censored)
            assert np.isfinite(found).all()


def test_no_shrinkage_is_the_raw_estimate_and_infinite_is_the_level_above():
    rng = np.random.default_rng(0)
    ended = rng.integers(0, 5, BINS).astype(np.float32)
    alive = np.cumsum(ended[::-1])[::-1]
    above = Hazards(padded(prior_hazards()))
    raw = corrected(above, padded(ended), None, np.inf, 1e-9).padded[INSIDE]
    assert np.allclose(raw[alive > 0], (ended / np.maximum(alive, 1))[alive > 0], atol=1e-6)
    assert corrected(above, padded(ended), None, np.inf, np.inf) is above


def test_hazards_stay_probabilities():
    for seed, density in ((3, 0.01), (4, 0.5), (5, 30.0)):
        above, ended, left = example(seed, density)
        above[::7], above[3::7] = 1.0, 0.0
        for k1, k2 in OPTIONS:
            found = corrected(Hazards(padded(above)), padded(ended), padded(left), k1, k2).padded
            assert ((found >= 0.0) & (found <= 1.0)).all()


def test_steps_are_those_of_the_hazards():
    above, _, _ = example(6)
    above[5] = 1.0
    hazards = Hazards(padded(above))
    assert np.isfinite(hazards.steps).all()
    assert np.allclose(np.delete(hazards.steps, 5), np.log1p(-np.delete(above, 5)))
    assert hazards.steps is hazards.steps, "kept"
