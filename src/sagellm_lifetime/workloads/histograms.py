"""Histograms that workloads are drawn from: lengths jointly, sizes and gaps separately.

The joint one is sampled by its inverse distribution functions. Drawing from uniforms that the
caller supplies (instead of from a generator) allows correlated uniforms within a session
while the marginals stay exactly those of the histogram.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cells = Iterable[Sequence[int]]


class Joint:
    """Histogram of prompt and output length; cell ``i`` holds ``edges[i] <= n < edges[i + 1]``.

    Within a cell, lengths are log-uniform integers.

    Args:
        prompt_edges: ascending edges of the prompt cells, tokens, shape ``(P + 1,)``.
        output_edges: the same for outputs, shape ``(O + 1,)``.
        weights: weight of each cell, shape ``(P, O)``; any positive sum.
    """

    def __init__(self, prompt_edges: Ints, output_edges: Ints, weights: Floats) -> None:
        self.prompt_edges = prompt_edges
        self.output_edges = output_edges
        self.weights = weights / weights.sum()
        self._prompt_cumulative = np.cumsum(self.weights.sum(axis=1))
        marginal = self.weights.sum(axis=0)
        rows = self.weights.sum(axis=1, keepdims=True)
        conditional = np.where(rows > 0, self.weights / np.where(rows > 0, rows, 1.0), marginal)
        self._output_cumulative = np.cumsum(conditional, axis=1)

    @classmethod
    def from_cells(
        cls,
        prompt_edges: Ints,
        output_edges: Ints,
        cells: Cells,
        prompt: Cells,
        output: Cells,
    ) -> Joint:
        """Return a histogram of rectangles ``[prompt from, to, output from, to, weight]``.

        Ends are cell numbers, inclusive. A rectangle of more than one cell (its rows were too few
        to be resolved) spreads its weight as if prompt and output were independent in it, with
        the marginals ``prompt`` and ``output``: runs ``[from, to, weight]`` of the same kind.
        """
        across, down = _marginal(prompt_edges, prompt), _marginal(output_edges, output)
        weights = np.zeros((len(across), len(down)))
        for p0, p1, o0, o1, weight in cells:
            area = np.outer(across[p0 : p1 + 1], down[o0 : o1 + 1])
            weights[p0 : p1 + 1, o0 : o1 + 1] += weight * area / area.sum()
        return cls(prompt_edges, output_edges, weights)

    def prompts(self, uniform: Floats) -> Ints:
        """Return prompt lengths at points from 0 to 1 of the prompt marginal, same shape."""
        cumulative = self._prompt_cumulative
        point = uniform * cumulative[-1]
        cell = np.minimum(np.searchsorted(cumulative, point, side="right"), len(cumulative) - 1)
        return _within(self.prompt_edges, cell, point, cumulative[cell], cumulative[cell - 1])

    def outputs(self, prompts: Ints, uniform: Floats) -> Ints:
        """Return output lengths at points of the distribution given each prompt length.

        A prompt cell without weight stands for the output marginal.

        Args:
            prompts: prompt tokens, shape ``(N,)``.
            uniform: points from 0 to 1, shape ``(N,)``.
        """
        row = np.searchsorted(self.prompt_edges, prompts, side="right") - 1
        row = np.clip(row, 0, len(self.prompt_edges) - 2)
        cumulative = self._output_cumulative[row]
        point = uniform * cumulative[:, -1]
        cell = (cumulative <= point[:, None]).sum(axis=1)
        cell = np.minimum(cell, cumulative.shape[1] - 1)
        index = np.arange(len(cell))
        upper, lower = cumulative[index, cell], cumulative[index, cell - 1]
        return _within(self.output_edges, cell, point, upper, lower)


def _marginal(edges: Ints, runs: Cells) -> Floats:
    """Return the weights of one axis; a run of cells is spread by their logarithmic width."""
    width = np.diff(np.log(edges))
    weights = np.zeros(len(width))
    for low, high, weight in runs:
        weights[low : high + 1] += weight * width[low : high + 1] / width[low : high + 1].sum()
    return weights


def _within(edges: Ints, cell: Ints, point: Floats, upper: Floats, lower: Floats) -> Ints:
    """Return the log-uniform integer of ``cell`` at ``point`` of the cumulative weights."""
    lower = np.where(cell > 0, lower, 0.0)
    width = upper - lower
    share = np.clip((point - lower) / np.where(width > 0, width, 1.0), 0.0, 1.0)
    low, high = edges[cell], edges[cell + 1]
    length = np.floor(np.exp(np.log(low) + share * np.log(high / low)) + 1e-9).astype(np.int64)
    return np.clip(length, low, high - 1)


def pooled(joints: Sequence[Joint], shares: Sequence[float]) -> Joint:
    """Return the mixture of histograms on the same edges, weighted by ``shares``."""
    weights = np.zeros_like(joints[0].weights)
    for joint, share in zip(joints, shares, strict=True):
        weights += share * joint.weights
    return Joint(joints[0].prompt_edges, joints[0].output_edges, weights)


@dataclass(frozen=True)
class Spread:
    """Histogram of one quantity; cell ``i`` holds ``edges[i] <= x < edges[i + 1]``.

    Session sizes in turns, or gaps between turns in seconds.
    """

    edges: Sequence[float]
    weights: Sequence[float]

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return ``n`` values: uniform in a cell that begins at zero, else log-uniform."""
        weights = np.asarray(self.weights, dtype=np.float64)
        edges = np.asarray(self.edges, dtype=np.float64)
        cell = rng.choice(len(weights), size=n, p=weights / weights.sum())
        low, high, share = edges[cell], edges[cell + 1], rng.random(n)
        safe = np.where(low > 0, low, 1.0)
        return np.where(low > 0, safe * (high / safe) ** share, share * high)

    def draw_integers(self, rng: np.random.Generator, n: int) -> Ints:
        """Return ``n`` values rounded down, at least 1."""
        return np.maximum(np.floor(self.draw(rng, n) + 1e-9).astype(np.int64), 1)
