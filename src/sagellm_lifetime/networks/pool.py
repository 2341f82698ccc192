"""Linear pool of distributions, with weights learned online by what predicts better.

A distribution of the length is a chain of bands: of the sequences that reach a band of lengths,
which end in it, and where. In each band the pool is the weighted mean of what its members predict
of those sequences (Stone 1961), so

    S(n) = S(start) * sum of w[m] * S[m](n) / S[m](start)      for n in the band.

So the weights differ by age, and the log loss of the pool is the sum of its losses in the bands.
Inside a band the sequences that are still alive move the weights towards the members that expected
it, without any learning.

The weights move towards the responsibilities of the members for each completion before it is
counted: online expectation maximisation of the log likelihood of the pool (Cappé & Moulines 2009),
with a constant rate, so that they follow a change, and a floor, so that every member can return
(fixed share, Herbster & Warmuth 1998). Requests are of several kinds, as something is known of
them or not; each kind has its own weights once it has enough completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked
from sagellm_lifetime.core.grid import BINS, EDGES, bin_of

STARTS: Final = (0, 32, 128, 512, 2048, 8192)
"""Lengths at which the bands start, tokens."""
_BANDS: Final = len(STARTS)
_FIRST: Final[np.ndarray] = np.searchsorted(EDGES, STARTS)
"""First bin of each band."""
_LAST: Final[np.ndarray] = np.append(_FIRST[1:], BINS) - 1
_BAND: Final[np.ndarray] = np.searchsorted(_FIRST, np.arange(BINS), side="right") - 1
"""Band of each bin."""
_RATE: Final = 0.1
_FLOOR: Final = 0.0002
"""Weight that all members share evenly after each step."""
_OWN: Final = 100
"""Completions of a kind in a band from which on it has weights of its own."""
_LEAST: Final = 1e-9


class Pool:
    """Weights of the members, by kind of request and band of lengths.

    Args:
        start: weights at the start, one of each member; they add up to 1.
        kinds: number of kinds of requests.

    Attributes:
        weights: shape ``(kinds + 1, bands, members)``; the last kind stands for all requests.
        counts: completions learned, int64 of shape ``(kinds + 1, bands)``.

    Example:
        >>> import numpy as np
        >>> from sagellm_lifetime.core.grid import BINS
        >>> from sagellm_lifetime.networks.pool import Pool
        >>> pool, early_late = Pool((0.5, 0.5), kinds=1), np.full((2, BINS), 1e-3)
        >>> early_late[0, 5] = early_late[1, 9] = 3.0
        >>> for _ in range(100):
        ...     pool.learn(early_late, 0, (0, 10, False))
        >>> pool.weights[0, 0].round(1)
        array([0., 1.])
    """

    def __init__(self, start: Sequence[float], kinds: int) -> None:
        self.weights = np.tile(np.array(start, dtype=np.float64), (kinds + 1, _BANDS, 1))
        self.counts = np.zeros((kinds + 1, _BANDS), dtype=np.int64)

    def of(self, kind: int) -> np.ndarray:
        """Return the weights for a kind of request, shape ``(bands, members)``."""
        own = self.counts[kind] >= _OWN
        return np.where(own[:, None], self.weights[kind], self.weights[-1])

    def pooled(self, steps: np.ndarray, kind: int) -> np.ndarray:
        """Return the pool as increments of the cumulative hazard, shape ``(BINS,)``.

        Args:
            steps: increments of the members' cumulative hazards per bin, ``(members, BINS)``.
            kind: kind of the request.
        """
        within = _within(steps)
        least = within.min(axis=0)
        alive = np.exp(least - within)
        alive *= self.of(kind).T[:, _BAND]
        pooled = least - np.log(alive.sum(axis=0))
        pooled[1:] -= np.where(_BAND[1:] == _BAND[:-1], pooled[:-1], 0.0)
        return np.asarray(np.maximum(pooled, 0.0))

    def learn(self, steps: np.ndarray, kind: int, outcome: tuple[int, int, bool]) -> None:
        """Learn from one answer and its outcome.

        Args:
            steps: as of :meth:`pooled`; equal for all members below the age.
            kind: kind of the request.
            outcome: age of the answer, length, and True if that is only a lower bound.
        """
        age, length, censored = outcome
        if length <= age:
            return
        within, event = _within(steps), bin_of(length)
        for band in range(_BAND.item(bin_of(age + 1)), _BAND.item(event) + 1):
            last = _LAST.item(band)
            if last < event:
                log_likelihood = -within[:, last]
            else:
                before = within[:, event - 1] if event > _FIRST.item(band) else 0.0
                log_likelihood = -before - np.zeros(len(steps))
                if not censored:
                    ended = -np.expm1(-steps[:, event])
                    log_likelihood = log_likelihood + np.log(np.maximum(ended, _LEAST))
            likelihood = np.exp(log_likelihood - log_likelihood.max())
            for row in (kind, -1):
                self._step(row, band, likelihood)

    def _step(self, kind: int, band: int, likelihood: np.ndarray) -> None:
        weights = self.weights[kind, band]
        responsible = weights * likelihood
        responsible /= responsible.sum()
        rate = max(_RATE, 1.0 / (10.0 + self.counts.item(kind, band)))
        weights += rate * (responsible - weights)
        weights *= 1.0 - _FLOOR
        weights += _FLOOR / len(weights)
        weights /= weights.sum()
        self.counts[kind, band] += 1

    def merge(self, others: Sequence[Pool]) -> None:
        """Average the weights of several pools, each by the completions that it has learned."""
        pools = (self, *others)
        counts = np.sum([pool.counts for pool in pools], axis=0)
        sums = np.sum([pool.counts[..., None] * pool.weights for pool in pools], axis=0)
        weights = np.where(counts[..., None] > 0, sums / np.maximum(counts, 1)[..., None], 0.0)
        self.weights = np.where(counts[..., None] > 0, weights, self.weights)
        self.weights /= self.weights.sum(axis=2, keepdims=True)
        self.counts = counts

    def state(self) -> Arrays:
        """Return the weights and the counts as arrays."""
        return {"weights": self.weights, "counts": np.minimum(self.counts, int(MOST))}

    def restore(self, state: Arrays) -> None:
        """Replace weights and counts. Raises :class:`ValueError` for arrays that do not fit."""
        weights = checked(state, "weights", np.float64, self.weights.shape, 0.0, 1.0)
        counts = checked(state, "counts", np.int64, self.counts.shape, 0, MOST)
        if (abs(weights.sum(axis=2) - 1.0) > 1e-6).any() or not weights.all():
            raise ValueError("'weights' of a pool must be above 0 and add up to 1")
        self.weights, self.counts = weights.copy(), counts.copy()


def _within(steps: np.ndarray) -> np.ndarray:
    """Return the cumulative hazards from the start of each bin's band, shape of ``steps``."""
    sums = np.add.accumulate(steps, axis=1)
    before = np.zeros((len(steps), _BANDS))
    before[:, 1:] = sums[:, _FIRST[1:] - 1]
    return np.asarray(sums - before[:, _BAND])
