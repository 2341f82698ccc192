"""Uniform numbers that are correlated within a session, marginally uniform over all sessions."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from sagellm_lifetime.workloads.joint import Floats, Ints


def correlated(
    rng: np.random.Generator, sizes: Ints, persistent: float, recent: float = 0.0, decay: float = 0
) -> Floats:
    """One uniform for each turn of each session, sessions one after the other (Gaussian copula).

    The normal scores of turns ``k`` apart correlate by ``persistent + recent * decay ** k``.
    """
    total = int(sizes.sum())
    first = np.cumsum(sizes) - sizes
    score = np.sqrt(persistent) * np.repeat(rng.standard_normal(len(sizes)), sizes)
    score += np.sqrt(1.0 - persistent - recent) * rng.standard_normal(total)
    if recent > 0:
        shock = rng.standard_normal(total)
        wave = shock.copy()
        for turn in range(1, int(sizes.max(initial=1))):
            at = first[sizes > turn] + turn
            wave[at] = decay * wave[at - 1] + np.sqrt(1.0 - decay**2) * shock[at]
        score += np.sqrt(recent) * wave
    cdf = NormalDist().cdf
    return np.fromiter((cdf(value) for value in score.tolist()), dtype=np.float64, count=total)


def turns(sizes: Ints) -> Ints:
    """0, 1, … within each session, sessions one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
