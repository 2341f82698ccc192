"""Values that recur: a bounded count of the most frequent lengths, exact for those that matter.

The grid resolves lengths to 6 %, but servers cut at 256 exactly, and some clients always ask for
the same number of tokens. Beside its bins a group therefore counts single lengths, in a few places
that new lengths must win from those that have not come for long (the frequent algorithm of Misra &
Gries 1982, with a clock hand in the place of a pass over all counters). A length with a share of
more than one over the number of places keeps its place, and its count is exact from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Final

import numpy as np

from sagellm_lifetime.core.grid import WIDTHS, bin_of
from sagellm_lifetime.core.hazard import MOST_ATOMS, Atoms

_WIDTHS: Final[list[int]] = WIDTHS.tolist()
_LEAST_HITS: Final = 3
_CHANCE: Final = 3.0
"""Standard deviations by which a length must exceed an even share of its bin."""
_ONCE: Final = 0.5
"""Of the completions of a length, how many are taken for chance."""
_PRIOR: Final = 1.0
"""Completions for which the group above speaks, in each bin."""
_LEAST_SHARE: Final = 0.15
_OVER_EVEN: Final = 1.5
"""A length is exact if its share of its bin is that much, and so many times an even share."""
Place = tuple[int, int, int]
"""A length, its completions, and its credit: how many others it takes to lose the place."""


class Habits:
    """Counts of single lengths.

    Args:
        size: lengths counted at most.
        places: counts to begin with, the next to be tested first.
    """

    __slots__ = ("_credits", "_hand", "_hits", "_lengths", "_places", "_size")

    def __init__(self, size: int, places: Iterable[Place] = ()) -> None:
        self._size = size
        self._hand = 0
        self._places: dict[int, int] = {}
        self._lengths: list[int] = []
        self._hits: list[int] = []
        self._credits: list[int] = []
        for length, hits, credit in places:
            self._places[length] = len(self._lengths)
            self._lengths.append(length)
            self._hits.append(hits)
            self._credits.append(credit)

    def count(self, length: int) -> None:
        """Count one completion."""
        place = self._places.get(length)
        if place is not None:
            self._hits[place] += 1
            self._credits[place] += 1
            return
        if len(self._lengths) < self._size:
            self._places[length] = len(self._lengths)
            self._lengths.append(length)
            self._hits.append(1)
            self._credits.append(0)
            return
        place = self._hand
        self._hand = place + 1 if place + 1 < self._size else 0
        if self._credits[place] > 0:
            self._credits[place] -= 1
            return
        del self._places[self._lengths[place]]
        self._places[length] = place
        self._lengths[place], self._hits[place] = length, 1

    def places(self) -> list[Place]:
        """Return the counts, as ``__init__`` takes them."""
        found = list(zip(self._lengths, self._hits, self._credits, strict=True))
        return found[self._hand :] + found[: self._hand]

    def recurring(self) -> list[tuple[int, int]]:
        """Return the lengths that came several times, with their completions."""
        return [
            (length, hits)
            for length, hits in zip(self._lengths, self._hits, strict=True)
            if hits >= _LEAST_HITS
        ]


def atoms_of(above: Atoms, recurring: list[tuple[int, int]], ended: np.ndarray) -> Atoms:
    """Return the lengths that are exact in a group.

    Args:
        above: those of the group above, which counts as one completion in each bin.
        recurring: lengths that came several times in the group.
        ended: completions of the group, shape ``(BINS,)``.
    """
    shares = dict(above)
    found: list[tuple[float, int, float]] = []
    for length, hits in recurring:
        k = bin_of(length)
        count, width = ended.item(k), _WIDTHS[k]
        even = count / width
        if width == 1 or hits < even + _CHANCE * sqrt(even) + _LEAST_HITS - 1.5:
            continue
        share = (hits - _ONCE + _PRIOR * shares.pop(length, 0.0)) / (count + _PRIOR)
        if share >= max(_LEAST_SHARE, _OVER_EVEN / width):
            found.append((count * share, length, min(share, 1.0)))
    for length, share in shares.items():
        k = bin_of(length)
        count = ended.item(k)
        left = share * _PRIOR / (count + _PRIOR)
        if left >= max(_LEAST_SHARE, _OVER_EVEN / _WIDTHS[k]):
            found.append((count * left, length, left))
    found.sort(reverse=True)
    return tuple(sorted((length, share) for _, length, share in found[:MOST_ATOMS]))
