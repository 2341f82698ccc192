"""Metrics of order: whether the predictor knows which sequence ends first."""

from __future__ import annotations

import numpy as np

C_INDEX_CAP = 3000
"""Largest number of points whose pairs Harrell's index compares (a seeded subsample)."""


def _pairs(weights: np.ndarray, groups: np.ndarray) -> float:
    """Return the total weight ``w_i w_j`` of pairs in one group; ``groups`` are codes 0..G-1."""
    sums = np.bincount(groups, weights)
    squares = np.bincount(groups, weights**2)
    return float((sums**2 - squares).sum() / 2.0)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _discordant(ranks: np.ndarray, weights: np.ndarray) -> float:
    """Return the weight of the pairs ``i < j`` with ``ranks[i] > ranks[j]``.

    A bottom-up merge sort; each level is one vectorised pass over all of its blocks.
    """
    n = len(ranks)
    span = int(ranks.max(initial=0)) + 2
    position = np.arange(n)
    total, width = 0.0, 1
    while width < n:
        block = position // (2 * width)
        left = (position // width) % 2 == 0
        keys = block * span + ranks  # ascending inside each half, so over all left halves
        mass = np.concatenate([[0.0], np.cumsum(weights[left])])
        not_above = np.searchsorted(keys[left], keys[~left], side="right")
        block_end = np.searchsorted(keys[left], (block[~left] + 1) * span - 1, side="right")
        total += float((weights[~left] * (mass[block_end] - mass[not_above])).sum())
        order = np.argsort(keys, kind="stable")
        ranks, weights = ranks[order], weights[order]
        width *= 2
    return total


def kendall_tau(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return Kendall's tau-b between two arrays, with correction for ties.

    Kendall 1945; Knight 1966 for counting the inversions by sorting. Pairs weigh ``w_i w_j``. NaN
    if one side is constant.

    >>> round(kendall_tau(np.array([1, 2, 3]), np.array([10, 30, 20])), 3)
    0.333
    """
    if len(x) < 2:
        return float("nan")
    weight = np.ones(len(x)) if weights is None else weights / weights.mean()
    a, b = _codes(x), _codes(y)
    order = np.lexsort((b, a))
    every = _pairs(weight, np.zeros(len(x), dtype=np.int64))
    tied_a, tied_b = _pairs(weight, a), _pairs(weight, b)
    tied_both = _pairs(weight, _codes(a * (int(b.max()) + 1) + b))
    discordant = _discordant(b[order], weight[order])
    concordant = every - tied_a - tied_b + tied_both - discordant
    scale = np.sqrt(max(every - tied_a, 0.0)) * np.sqrt(max(every - tied_b, 0.0))
    if scale <= every * 1e-12:
        return float("nan")
    return float((concordant - discordant) / scale)


def c_index(
    predicted: np.ndarray,
    observed: np.ndarray,
    event: np.ndarray,
    weights: np.ndarray | None = None,
    cap: int = C_INDEX_CAP,
) -> float:
    """Return Harrell's concordance on censored data (Harrell et al. 1982), between 0 and 1.

    A pair counts when it is known who ended first: the smaller ``observed`` is an ``event`` (not
    censored), or both are equal and only one is. It is concordant when the smaller prediction
    belongs to the one that ended first; equal predictions count one half. More than ``cap``
    points are subsampled without replacement from a fixed seed.

    Args:
        predicted: predicted remaining tokens.
        observed: remaining tokens until the end or until the censoring.
        event: True where the end was seen.
    """
    weight = np.ones(len(predicted)) if weights is None else weights
    if len(predicted) > cap:
        keep = np.sort(np.random.default_rng(0).choice(len(predicted), cap, replace=False))
        predicted, observed, event, weight = (
            predicted[keep],
            observed[keep],
            event[keep],
            weight[keep],
        )
    first = np.flatnonzero(event)
    agree = total = 0.0
    for part in np.array_split(first, max(1, len(first) // 256)):
        earlier = observed[part, None] < observed[None, :]
        earlier |= (observed[part, None] == observed[None, :]) & ~event[None, :]
        pair = np.where(earlier, weight[part, None] * weight[None, :], 0.0)
        gap = predicted[None, :] - predicted[part, None]
        agree += float((pair * ((gap > 0) + 0.5 * (gap == 0))).sum())
        total += float(pair.sum())
    return agree / total if total > 0 else float("nan")
