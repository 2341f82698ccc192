"""Rules that merges of learned states share; the result depends on the set of states only.

Sums are associative and commutative but for rounding; a choice of the largest is so exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

MOST_JOINED: Final = 64
"""Maximum number of windows of recent values that are joined to one; of more an even sample."""
_GOLDEN: Final = 0.6180339887498949
"""Inverse of the golden ratio: its multiples are spread evenly over the unit interval."""


def evenly_mixed(values: Iterable[float]) -> np.ndarray:
    """Return values in an order that is a function of the multiset, shape ``(N,)``.

    Every stretch of it is an even sample of all values, so a window of the newest that goes on
    after a merge forgets short and long ones alike.

    >>> evenly_mixed([3, 1, 2, 4]).tolist() == evenly_mixed([4, 3, 2, 1]).tolist()
    True
    """
    ordered = np.sort(np.asarray(list(values)))
    mixed: np.ndarray = ordered[np.argsort(np.arange(len(ordered)) * _GOLDEN % 1.0, kind="stable")]
    return mixed


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most ``most`` of sorted values, evenly spaced by rank.

    >>> thinned(np.arange(10), 3).tolist()
    [1, 5, 8]
    """
    count = len(values)
    if count <= most:
        return values
    return values[((np.arange(most) + 0.5) * count / most).astype(np.int64)]


def largest_by_key(tables: Sequence[Mapping[int, tuple[Any, ...]]]) -> dict[int, tuple[Any, ...]]:
    """Return the largest row of each key, in the order of the keys.

    >>> largest_by_key([{1: (2, 5)}, {1: (3, 0), 0: (1, 1)}])
    {0: (1, 1), 1: (3, 0)}
    """
    merged: dict[int, tuple[Any, ...]] = {}
    for table in tables:
        for key, row in table.items():
            if key not in merged or row > merged[key]:
                merged[key] = row
    return dict(sorted(merged.items()))


def sums_by_key(
    tables: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys, and the sums of their rows in float64.

    Args:
        tables: keys without repetition, shape ``(K,)``, and rows, shape ``(K, ...)``.

    >>> sums_by_key([(np.array([7, 3]), np.array([1.0, 2.0])), (np.array([3]), np.array([5.0]))])
    (array([3, 7]), array([7., 1.]))
    """
    keys = np.unique(np.concatenate([keys for keys, _ in tables]))
    total = np.zeros((len(keys), *tables[0][1].shape[1:]))
    for own, rows in tables:
        total[np.searchsorted(keys, own)] += rows
    return keys, total


def heaviest(weights: np.ndarray, keys: np.ndarray, most: int) -> np.ndarray:
    """Return the indices of the ``most`` heaviest keys, the lightest first, shape ``(N,)``.

    >>> heaviest(np.array([5, 1, 5]), np.array([8, 9, 7]), 2).tolist()
    [2, 0]
    """
    return np.lexsort((keys, weights))[-most:] if most else np.zeros(0, dtype=np.int64)
