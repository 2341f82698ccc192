"""Correction of hazards by the counts of one node of the residual-life tree.

The hazard ``p`` of the node above is corrected twice, each time with shrinkage:

1. by a smooth ratio: ended over expected (the standardised mortality ratio of actuaries; Breslow &
   Day 1987), summed over a window of an octave and shrunk towards 1 by ``k1`` sequences,
       ratio = (sum ended + k1) / (sum alive * p + k1),   q = 1 - (1 - p) ** ratio
2. by its own actuarial estimate (Kaplan & Meier 1958), shrunk towards ``q`` by ``k2`` sequences,
       h = (ended + k2 * q) / (alive + k2)
   the posterior mean under a beta prior.

A feature (a prompt length, a client, a cap) that has few sequences together with the other features
has an effect: its hazards among all requests relative to those of all requests. It is applied to
the hazards of the other features (:func:`laid_over`),

       log(1 - h) = log(1 - h_others) * (log(1 - h_piece) / log(1 - h_all)) ** w,   w = k / (n + k)

with ``n`` sequences of the others: main effects at first, interactions as they are learned.

This is the hot path of ``update``. A NumPy call on the 172 bins of the grid has a fixed cost of
half a microsecond, so the number of calls matters. Counts and hazards are therefore padded: arrays
of :data:`PADDED` numbers have the bins at :data:`INSIDE` and zeros around them, so that running
sums need no special case at the ends.
"""

from __future__ import annotations

from math import inf
from typing import Final

import numpy as np

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.core.hazard import Atoms, from_hazards, from_logs, with_atoms

_RATIO: Final = (4.0, 30.0, inf)
_OWN: Final = (3.0, 20.0, 100.0, inf)
OPTIONS: Final = tuple((k1, k2) for k1 in _RATIO for k2 in _OWN)
"""Choices of ``(k1, k2)``; infinity leaves a correction out."""
TRUST: Final = (0.0, 30.0, 300.0, inf)
"""Choices of the ``k`` in the weight of an effect; 0 leaves the effect out."""
_LEAST_STEP: Final = 1e-9
"""Hazard that is added to both sides of a ratio, for bins in which no sequence ended."""
_MOST_EFFECT: Final = 6.0
"""Maximum absolute logarithm of a ratio of hazards."""
_WINDOW: Final = 8
"""Bins on either side over which the ratio is taken: two thirds of an octave."""
_WIDTH: Final = 2 * _WINDOW + 1
_FIRST: Final = _WINDOW + 2
INSIDE: Final = slice(_FIRST, _FIRST + BINS)
PADDED: Final = _FIRST + BINS + _WINDOW
_INSIDE_NEXT: Final = slice(_FIRST - 1, _FIRST - 1 + BINS)
"""Bins in arrays that begin at the second place."""
_FROM: Final = slice(_WIDTH + 1, PADDED)
_UNTIL: Final = slice(1, BINS + 1)
"""Running sums up to the last place of the window around each bin, and up to the place before its
first. Their difference is the sum over the window."""
_FROM_NEXT: Final = slice(_WIDTH, PADDED - 1)
_UNTIL_NEXT: Final = slice(0, BINS)
"""The same for arrays that begin at the second place."""
_CERTAIN: Final = 1.0 - 1e-6
_K1: Final = np.array(_RATIO[:-1])[:, None]
_WEIGHT2: Final = 1.0 / np.array(_OWN)[:, None]


class Hazards:
    """Immutable discrete hazards of one node.

    Args:
        padded: hazards with zeros around them, shape ``(PADDED,)``.
        atoms: recurring lengths, exact inside their bins.
        is_shared: True if many requests have these hazards; their row is then read-only.
    """

    __slots__ = ("_effect", "_is_of_steps", "_is_shared", "_padded", "_row", "_steps", "atoms")

    def __init__(
        self, padded: np.ndarray | None, atoms: Atoms = (), *, is_shared: bool = False
    ) -> None:
        self.atoms = atoms
        self._padded = padded
        self._is_of_steps = padded is None
        self._is_shared = is_shared
        self._steps: np.ndarray | None = None
        self._row: np.ndarray | None = None
        self._effect: tuple[Hazards, np.ndarray] | None = None

    @classmethod
    def of_steps(cls, steps: np.ndarray, atoms: Atoms) -> Hazards:
        """Return the hazards with these ``log(1 - h)``, shape ``(BINS,)``."""
        hazards = cls(None, atoms)
        hazards._steps = steps
        return hazards

    @property
    def padded(self) -> np.ndarray:
        """Return the hazards with zeros around them, shape ``(PADDED,)``."""
        if self._padded is None:
            self._padded = np.zeros(PADDED)
            inside = self._padded[INSIDE]
            np.expm1(self.steps, inside)
            np.negative(inside, inside)
        return self._padded

    def effect(self, over: Hazards) -> np.ndarray:
        """Return the logarithm of the ratio of these hazards to ``over``, shape ``(BINS,)``."""
        if self._effect is None or self._effect[0] is not over:
            ratio = self.steps - _LEAST_STEP
            ratio /= over.steps - _LEAST_STEP
            np.log(ratio, ratio)
            np.minimum(np.maximum(ratio, -_MOST_EFFECT, ratio), _MOST_EFFECT, ratio)
            self._effect = over, ratio
        return self._effect[1]

    @property
    def row(self) -> np.ndarray:
        """Return cumulative hazards with the atoms, cached."""
        if self._row is None:
            if self._is_of_steps:
                self._row = self.exact(from_logs(self.steps))
            else:
                self._row = self.exact(from_hazards(self.padded[INSIDE]))
            self._row.flags.writeable = not self._is_shared
        return self._row

    def settled(self) -> Hazards:
        """Return the hazards as a node keeps them: equal to those restored from its state."""
        return Hazards(self.padded, self.atoms, is_shared=True)

    def exact(self, row: np.ndarray) -> np.ndarray:
        """Return a row of cumulative hazards with the atoms, wide if there are any."""
        return with_atoms(row, self.atoms) if self.atoms else row

    def having(self, atoms: Atoms) -> Hazards:
        """Return the same hazards with other atoms."""
        if atoms == self.atoms:
            return self
        hazards = Hazards(self._padded, atoms)
        hazards._is_of_steps, hazards._steps = self._is_of_steps, self._steps
        return hazards

    @property
    def steps(self) -> np.ndarray:
        """Return ``log(1 - h)``, shape ``(BINS,)``; cached for the nodes below."""
        if self._steps is None:
            self._steps = np.log1p(-np.minimum(self.padded[INSIDE], _CERTAIN))
        return self._steps


def padded(row: np.ndarray) -> np.ndarray:
    """Return values of bins with zeros around them, shape ``(..., PADDED)``, type of ``row``."""
    wide = np.zeros((*row.shape[:-1], PADDED), dtype=row.dtype)
    wide[..., INSIDE] = row
    return wide


def alive_of(ended: np.ndarray, left: np.ndarray | None) -> np.ndarray:
    """Return the number of sequences at risk in each bin, shape ``(BINS,)``.

    Args:
        ended: sequences that ended in each bin, padded.
        left: sequences last seen alive before the end of each bin, padded; ``None`` for none.
    """
    return _alive(_running(ended), left)[_INSIDE_NEXT]


def corrected(
    above: Hazards, ended: np.ndarray, left: np.ndarray | None, k1: float, k2: float
) -> Hazards:
    """Return the hazards of a node, corrected from those of the node above it.

    Args:
        above: hazards of the node above.
        ended: sequences that ended in each bin, padded.
        left: sequences last seen alive before the end of each bin, padded; ``None`` for none.
        k1: weight of 1 in the smooth ratio, sequences; infinity leaves the ratio out.
        k2: weight of the result in the node's own estimate; infinity leaves the estimate out.
    """
    if k1 == inf and k2 == inf:
        return above
    before = _running(ended)
    alive = _alive(before, left)
    wide = np.zeros(PADDED)
    inside = wide[INSIDE]
    if k1 == inf:
        inside[:] = above.padded[INSIDE]
    else:
        expected = np.add.accumulate(alive * above.padded[1:])
        ratio = before[_FROM] - before[_UNTIL] + k1
        ratio /= expected[_FROM_NEXT] - expected[_UNTIL_NEXT] + k1
        ratio *= above.steps
        np.expm1(ratio, inside)
        np.negative(wide, wide)
    if k2 != inf:
        inside *= k2
        inside += ended[INSIDE]
        inside /= alive[_INSIDE_NEXT] + k2
    return Hazards(wide, above.atoms)


def weight(k: float, n: float) -> float:
    """Return the weight of an effect over hazards that were learned from ``n`` sequences."""
    return 1.0 if k == inf else k / (n + k) if k else 0.0


def laid_over(above: Hazards, effect: np.ndarray) -> Hazards:
    """Return hazards with an effect applied (:meth:`Hazards.effect`, times its weight)."""
    steps = np.exp(effect)
    steps *= above.steps
    return Hazards.of_steps(steps, above.atoms)


def interpolated(below: Hazards, above: Hazards, share: float) -> Hazards:
    """Return hazards between two others, by ``share`` of ``above``, with the atoms of the nearer.

    The survivals are interpolated on the logarithmic scale.
    """
    steps = above.steps * share
    steps += below.steps * (1.0 - share)
    return Hazards.of_steps(steps, above.atoms if share > 0.5 else below.atoms)


def effect_losses(
    above: Hazards, effect: np.ndarray, n: float, k: int, *, censored: bool
) -> np.ndarray:
    """Return the ``-log`` likelihood of one outcome under each of ``TRUST``, in nats.

    Args:
        above: hazards of the other features.
        effect: effect of the feature, shape ``(BINS,)``.
        n: sequences from which ``above`` was learned.
        k: bin in which the sequence ended.
        censored: True if it only survived up to bin ``k``.
    """
    shares = np.array([[weight(trust, n)] for trust in TRUST])
    steps = np.exp(effect[: k + 1] * shares) * above.steps[: k + 1]
    nats: np.ndarray = -steps[:, :k].sum(axis=1)
    if not censored:
        nats -= np.log(np.maximum(-np.expm1(steps[:, k]), 1e-9))
    return nats


def losses(
    above: Hazards, ended: np.ndarray, left: np.ndarray | None, k: int, *, censored: bool
) -> np.ndarray:
    """Return the ``-log`` likelihood of one outcome under each of ``OPTIONS``, in nats.

    Args:
        above: hazards of the node above.
        ended: sequences that ended in each bin, padded.
        left: sequences last seen alive before the end of each bin, padded; ``None`` for none.
        k: bin in which the sequence ended; only bins up to it are computed.
        censored: True if it only survived up to bin ``k``.
    """
    before = _running(ended)
    alive = _alive(before, left)
    expected = np.add.accumulate(alive * above.padded[1:])
    bins = slice(0, k + 1)
    ratios = (before[_FROM] - before[_UNTIL])[bins] + _K1
    ratios /= (expected[_FROM_NEXT] - expected[_UNTIL_NEXT])[bins] + _K1
    smooth = np.empty((len(_RATIO), 1, k + 1))
    smooth[:-1, 0] = -np.expm1(ratios * above.steps[bins])
    smooth[-1] = above.padded[INSIDE][bins]
    hazards = smooth + ended[INSIDE][bins] * _WEIGHT2
    hazards /= alive[_INSIDE_NEXT][bins] * _WEIGHT2 + 1.0
    hazards = hazards.reshape(len(OPTIONS), k + 1)
    nats: np.ndarray = -np.log1p(-np.minimum(hazards[:, :k], _CERTAIN)).sum(axis=1)
    if not censored:
        nats -= np.log(np.maximum(hazards[:, k], 1e-9))
    return nats


def _running(counts: np.ndarray) -> np.ndarray:
    """Return running sums of ``counts``, float64 of shape ``(PADDED,)``."""
    # Converted first, since accumulating float32 in float64 takes twice as long.
    sums: np.ndarray = np.add.accumulate(counts.astype(np.float64))
    return sums


def _alive(before: np.ndarray, left: np.ndarray | None) -> np.ndarray:
    """Return the sequences at risk at each place but the first, shape ``(PADDED - 1,)``.

    They are those that end there or later, and those last seen alive later.

    Args:
        before: running sums of the sequences that ended.
        left: sequences last seen alive before the end of each bin, padded; ``None`` for none.
    """
    alive: np.ndarray = before.item(-1) - before[:-1]
    if left is not None:
        gone = _running(left)
        alive += gone.item(-1) - gone[1:]
    return alive
