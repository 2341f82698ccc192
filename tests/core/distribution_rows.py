"""Rows of cumulative hazards and calibration curves of every shape, by a seed."""

import numpy as np

from sagellm_lifetime.core import hazard, link
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.grid import BINS, EDGES, bin_of


def row(rng: np.random.Generator) -> np.ndarray:
    """Return a row that is smooth, ragged, empty in places, or all on one length."""
    kind = rng.integers(4)
    if kind == 0:
        return hazard.log_logistic(np.exp(rng.uniform(0, 9)), rng.uniform(0.05, 2.5))
    hazards = rng.beta(0.3, 3.0, BINS)
    if kind == 1:
        hazards[rng.random(BINS) < 0.7] = 0.0
    if kind == 2:
        hazards[:] = 1e-6
        hazards[bin_of(int(rng.integers(1, 5000)))] = 1.0
    return hazard.from_hazards(hazards)


def curve(rng: np.random.Generator) -> np.ndarray | None:
    """Return a calibration link, or none."""
    if rng.random() < 0.3:
        return None
    steps = rng.dirichlet(np.full(link.LEVELS, rng.uniform(0.5, 5))) + 1e-4
    return np.concatenate([[0.0], np.cumsum(steps) / steps.sum()])


def with_atoms(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Return the row with values that recur: in one bin, in neighbours, at edges, in all."""
    first = int(rng.integers(17, 3000))
    lengths = {
        first,
        first + 1,
        *rng.integers(17, 131_073, 2).tolist(),
        1024,
        *EDGES[40:42].tolist(),
    }
    lengths = sorted(rng.permutation(sorted(lengths))[: int(rng.integers(1, 9))].tolist())
    shares = rng.dirichlet(np.ones(len(lengths) + 1)) * rng.uniform(0.1, 1.0)
    shares[0] = rng.choice([shares[0], 1.0 - shares[1:].sum()])
    return hazard.with_atoms(values, tuple(zip(lengths, shares.tolist(), strict=False)))


def distribution(rng: np.random.Generator) -> LengthDistribution:
    """Return any distribution that a predictor could answer with."""
    age = int(rng.choice([0, 1, rng.integers(3000), 131_072, 10**6]))
    cap = None if rng.random() < 0.4 else age + int(rng.integers(0, 5000))
    values, bent = row(rng), curve(rng)
    if rng.random() < 0.4:
        values = with_atoms(rng, values)
    return LengthDistribution(values, age, 0, cap, bent)
