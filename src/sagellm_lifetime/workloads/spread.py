"""A one-dimensional histogram (session sizes, gaps between turns), log-uniform within its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sagellm_lifetime.workloads.joint import Floats, Ints


@dataclass(frozen=True)
class Spread:
    """Cell ``i`` holds ``edges[i] <= x < edges[i + 1]`` with ``weights[i]``."""

    edges: Sequence[float]
    weights: Sequence[float]

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """``n`` values; a cell that begins at zero is uniform, every other one log-uniform."""
        weights = np.asarray(self.weights, dtype=np.float64)
        edges = np.asarray(self.edges, dtype=np.float64)
        cell = rng.choice(len(weights), size=n, p=weights / weights.sum())
        low, high, share = edges[cell], edges[cell + 1], rng.random(n)
        safe = np.where(low > 0, low, 1.0)
        return np.where(low > 0, safe * (high / safe) ** share, share * high)

    def draw_integers(self, rng: np.random.Generator, n: int) -> Ints:
        """``n`` values rounded down, at least 1."""
        return np.maximum(np.floor(self.draw(rng, n) + 1e-9).astype(np.int64), 1)
