"""Reuse: how soon memory that no sequence runs on is read again.

Kept memory of a finished sequence is worth the recomputation that it saves if its prefix or its
conversation comes back. Its value is the hit density (LHD, Beckmann, Chen and Cidon, NSDI 2018),
kept for as long as pays best (the index of Gittins 1979):

    max over t of  reuses until t / seconds of keeping until t

by the time since the last use and the number of uses so far, both learned from what happened.
Without observations the density falls with the time since the last use, which is LRU.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_EDGES: Final = np.concatenate([[0.0], 2.0 ** np.arange(-4, 18), [np.inf]])
"""Bins of the time since the last use, seconds: up to 1/16 s, doubling, over 131,072 s."""
_WIDTHS: Final = np.append(np.diff(_EDGES[:-1]), _EDGES[-2])
_CLASSES: Final = 4
"""Classes of the number of uses: 0, 1, 2–3, 4 and more."""
_PRIOR: Final = 1.0
"""Reuses per class that the prior counts for."""
_PRIOR_CHANCE: Final = 0.1
"""Prior chance of a reuse while the time since the last use doubles."""
_POOLED: Final = 8.0
"""Reuses for which the other classes' experience counts in a class with little of its own."""


def _use_class(uses: np.ndarray) -> np.ndarray:
    return np.minimum(np.ceil(np.log2(np.maximum(uses, 0) + 1.0)), _CLASSES - 1).astype(np.int64)


class ReuseTable:
    """Learned hit density of idle memory.

    Args:
        memory: ends of idle times after which the weight of an old one has fallen to 1/e.

    Example:
        >>> import numpy as np
        >>> table = ReuseTable()
        >>> for _ in range(100):
        ...     table.ended(10.0, 0, reused=True)      # comes back after ten seconds
        ...     table.ended(600.0, 3, reused=False)    # waits for ten minutes in vain
        >>> first, second = table.density(np.array([5.0, 5.0]), np.array([0, 3]))
        >>> bool(first > 10 * second)
        True
    """

    def __init__(self, memory: float = 2000.0) -> None:
        self._kept = 1.0 - 1.0 / memory
        self._hits = np.zeros((_CLASSES, len(_WIDTHS)))
        self._seconds = np.zeros((_CLASSES, len(_WIDTHS)))

    def ended(self, seconds: float, uses: int, *, reused: bool) -> None:
        """Learn from one idle time.

        Args:
            seconds: since the last use.
            uses: number of uses before.
            reused: True if it was used again, False if it was evicted unused (censored).
        """
        seconds = max(seconds, 0.0)
        kind = int(_use_class(np.array([uses]))[0])
        self._hits *= self._kept
        self._seconds *= self._kept
        self._seconds[kind] += np.clip(seconds - _EDGES[:-1], 0.0, _WIDTHS)
        if reused:
            self._hits[kind, int(np.searchsorted(_EDGES, seconds, "right")) - 1] += 1.0

    def density(self, seconds: np.ndarray, uses: np.ndarray) -> np.ndarray:
        """Return expected reuses per second of further keeping, shape ``(N,)``.

        Args:
            seconds: since the last use, shape ``(N,)``.
            uses: number of uses so far, shape ``(N,)``.
        """
        hits, time = self._tables()
        table = np.zeros_like(hits)
        for b in range(hits.shape[1]):
            ratios = np.cumsum(hits[:, b:], axis=1) / np.cumsum(time[:, b:], axis=1)
            table[:, b] = ratios.max(axis=1)
        bins = np.searchsorted(_EDGES, np.maximum(seconds, 0.0), "right") - 1
        return np.asarray(table[_use_class(np.asarray(uses)), bins])

    def probability(self, seconds: np.ndarray, uses: np.ndarray, within_s: float) -> np.ndarray:
        """Return the probability of a reuse within ``within_s`` seconds, shape ``(N,)``."""
        hits, time = self._tables()
        rates = (hits / time)[_use_class(np.asarray(uses))]
        start = np.maximum(np.asarray(seconds, dtype=np.float64), 0.0)[:, None]
        spent = np.clip(np.minimum(start + within_s, _EDGES[1:]) - np.maximum(start, _EDGES[:-1]),
                        0.0, None)  # fmt: skip
        return np.asarray(1.0 - np.exp(-(rates * spent).sum(axis=1)))

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return hits and seconds by class and bin, with the prior and the other classes' share."""
        prior = np.full(len(_WIDTHS), _PRIOR / len(_WIDTHS))
        pooled_hits, pooled_time = self._hits.sum(axis=0), self._seconds.sum(axis=0)
        share = _POOLED / max(pooled_hits.sum(), _POOLED)
        # A reuse is as likely in every bin, so that the density falls as one over the time.
        prior_time = prior * _WIDTHS / _PRIOR_CHANCE
        hits = self._hits + share * pooled_hits + prior
        return hits, self._seconds + share * pooled_time + prior_time
