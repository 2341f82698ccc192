"""One level of the tree: against the formulas written out, its limits, its padding."""

import numpy as np
import pytest

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.models.residual_life import prior_hazards
from sagellm_lifetime.models.shrinkage import (
    INSIDE,
    OPTIONS,
    TRUST,
    Hazards,
    alive_of,
    corrected,
    effect_losses,
    laid_over,
    losses,
    padded,
    weight,
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


def test_an_effect_laid_over_what_it_came_from_gives_what_it_is_of():
    above, ended, left = example(8, 2.0)
    over = Hazards(padded(np.maximum(above, 1e-4)))
    piece = corrected(over, padded(ended), padded(left), 4.0, 20.0)
    whole = laid_over(over, piece.effect(over))
    assert np.allclose(whole.padded, piece.padded, atol=1e-6)
    assert np.allclose(whole.steps, np.log1p(-whole.padded[INSIDE]))
    assert not whole.padded[: INSIDE.start].any()
    none = laid_over(over, 0.0 * piece.effect(over))
    assert np.allclose(none.padded, over.padded, atol=1e-12)
    other = Hazards(padded(np.full(BINS, 0.01)))
    half = laid_over(other, 0.5 * piece.effect(over))
    ratio = np.sqrt(piece.steps / over.steps)
    assert np.allclose(half.steps, other.steps * ratio, rtol=1e-3)
    assert piece.effect(other) is not piece.effect(over), "kept for what it was asked for"


def test_the_weight_of_an_effect_falls_with_what_is_known():
    assert [weight(trust, 0) for trust in TRUST] == [0.0, 1.0, 1.0, 1.0]
    assert [weight(trust, 30) for trust in TRUST] == [0.0, 0.5, 300 / 330, 1.0]


@pytest.mark.parametrize("censored", [False, True])
def test_losses_of_an_effect_are_likelihoods(censored):
    above, ended, left = example(9, 2.0)
    over = Hazards(padded(np.maximum(above, 1e-4)))
    effect = corrected(over, padded(ended), padded(left), 4.0, 20.0).effect(over)
    for k in (0, 7, 100):
        found = effect_losses(over, effect, 40, k, censored=censored)
        for trust, loss in zip(TRUST, found, strict=True):
            hazards = laid_over(over, effect * weight(trust, 40)).padded[INSIDE]
            wanted = -np.log1p(-hazards[:k]).sum() - (0 if censored else np.log(hazards[k]))
            assert loss == pytest.approx(wanted)
