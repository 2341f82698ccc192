"""Recurring lengths: a bounded count of the most frequent single lengths of a group.

The grid resolves lengths to 6 %, but servers cut at 256 exactly, and the answers of some clients
always have the same number of tokens. Beside its bins a group therefore counts single lengths in a
few places, and a new length replaces one that was not counted for long (the frequent
algorithm of Misra & Gries 1982, with a clock hand instead of a pass over all counters). A length
with a share of more than one over the number of places keeps its place, and its count is exact from
then on.
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
"""Completions of a length from which on it may be exact."""
_CHANCE: Final = 3.0
"""Standard deviations by which a length must exceed an even share of its bin."""
_ONCE: Final = 0.5
"""Completions of a length that are attributed to chance."""
_PRIOR: Final = 1.0
"""Weight of the group above in each bin, completions."""
_LEAST_SHARE: Final = 0.15
"""Least share of its bin that makes a length exact."""
_OVER_EVEN: Final = 1.5
"""The same in even shares of the bin; both must be reached."""
Place = tuple[int, int, int]
"""A length, its completions, and its credit: other lengths that it survives in its place."""


class Habits:
    """Counts of single lengths.

    Args:
        size: maximum number of lengths.
        places: initial counts, the next one under the clock hand first.
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
        """Count one completion of ``length`` tokens."""
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
        """Return the counts in the order of the constructor's ``places``."""
        places = list(zip(self._lengths, self._hits, self._credits, strict=True))
        return places[self._hand :] + places[: self._hand]

    def recurring(self) -> list[tuple[int, int]]:
        """Return the lengths with at least ``_LEAST_HITS`` completions, and these counts."""
        return [
            (length, hits)
            for length, hits in zip(self._lengths, self._hits, strict=True)
            if hits >= _LEAST_HITS
        ]


def atoms_of(above: Atoms, recurring: list[tuple[int, int]], ended: np.ndarray) -> Atoms:
    """Return the lengths that are exact in a group, each with its share of its bin.

    Args:
        above: exact lengths of the group above, which counts as one completion in each bin.
        recurring: recurring lengths of the group, with their completions.
        ended: completions of the group by bin, shape ``(BINS,)``.
    """
    shares = dict(above)
    candidates: list[tuple[float, int, float]] = []
    for length, hits in recurring:
        k = bin_of(length)
        count, width = ended.item(k), _WIDTHS[k]
        even = count / width
        if width == 1 or hits < even + _CHANCE * sqrt(even) + _LEAST_HITS - 1.5:
            continue
        share = (hits - _ONCE + _PRIOR * shares.pop(length, 0.0)) / (count + _PRIOR)
        if share >= max(_LEAST_SHARE, _OVER_EVEN / width):
            candidates.append((count * share, length, min(share, 1.0)))
    for length, share in shares.items():
        k = bin_of(length)
        count = ended.item(k)
        shrunk = share * _PRIOR / (count + _PRIOR)
        if shrunk >= max(_LEAST_SHARE, _OVER_EVEN / _WIDTHS[k]):
            candidates.append((count * shrunk, length, shrunk))
    candidates.sort(reverse=True)
    return tuple(sorted((length, share) for _, length, share in candidates[:MOST_ATOMS]))
