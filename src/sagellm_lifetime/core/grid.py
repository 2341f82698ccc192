"""Length grid of all distributions.

Edges are the integers up to 16 and then 12 per octave (a ratio of 1.06, so that "within 10 %" is
resolved) up to 131,072 tokens. Bin ``k`` holds the lengths ``EDGES[k] < L <= EDGES[k + 1]``.
Beyond the last edge the hazard is constant, so every age has a defined answer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

import numpy as np

_DENSE = 16
_PER_OCTAVE = 12
MAX_LENGTH: Final = 131_072


def _edges() -> np.ndarray:
    octaves = int(np.log2(MAX_LENGTH / _DENSE))
    steps = np.arange(1, octaves * _PER_OCTAVE + 1) / _PER_OCTAVE
    spaced = np.rint(_DENSE * 2.0**steps).astype(np.int64)
    return np.unique(np.concatenate([np.arange(_DENSE + 1), spaced]))


EDGES: Final[np.ndarray] = _edges()
EDGES.flags.writeable = False
WIDTHS: Final[np.ndarray] = np.diff(EDGES)
BINS: Final = len(WIDTHS)
EDGE_LIST: Final[list[int]] = [int(e) for e in EDGES]
TAIL_HAZARD: Final = 4.0 / MAX_LENGTH
"""Hazard per token beyond the last edge: a mean of 32,768 more tokens."""


def bin_of(length: int) -> int:
    """Return the bin of ``length`` tokens (1 or more); the last bin holds all longer ones."""
    return min(max(bisect_left(EDGE_LIST, length) - 1, 0), BINS - 1)


def bins_of(lengths: np.ndarray) -> np.ndarray:
    """Return :func:`bin_of` of each length, int64, shape of ``lengths``."""
    bins = np.searchsorted(EDGES, lengths, side="left") - 1
    return np.clip(bins, 0, BINS - 1)
