"""Shrinkage weights of the levels of the residual-life tree, chosen by what predicts better.

Every level has a few choices of its weights (:mod:`~sagellm_lifetime.models.shrinkage`). Each
choice is scored on completions before they are counted (prequential, Dawid 1984), with a memory of
about 2000, and the best one is used. The best weights differ between workloads, so the first tree
and every later generation (:mod:`~sagellm_lifetime.models.regimes`) have their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked
from sagellm_lifetime.models.shrinkage import OPTIONS, TRUST

_FORGET: Final = 1.0 - 1.0 / 2000.0
_START_TRUST: Final = 1
"""Index into ``TRUST`` with which each level starts."""


class LevelWeights:
    """Weights of all levels.

    Args:
        start: index into ``OPTIONS`` with which each level starts.

    Attributes:
        choice: index into ``OPTIONS`` of each level, for the counts of its nodes.
        trust: index into ``TRUST`` of each level, for the effect of its piece.
        scored: number of scores.

    Example:
        >>> import numpy as np
        >>> from sagellm_lifetime.models.level_weights import LevelWeights
        >>> weights = LevelWeights([7, 7])
        >>> weights.score(1, np.arange(12.0))
        >>> weights.choice
        [7, 0]
    """

    __slots__ = ("_effect_losses", "_losses", "choice", "scored", "trust")

    def __init__(self, start: Sequence[int]) -> None:
        self._losses = np.zeros((len(start), len(OPTIONS)))
        self._effect_losses = np.zeros((len(start), len(TRUST)))
        self.choice = list(start)
        self.trust = [_START_TRUST] * len(start)
        self.scored = 0

    def score(self, level: int, nats: np.ndarray) -> None:
        """Score the choices of one level, by their ``-log`` likelihoods of shape ``(OPTIONS,)``."""
        self._losses[level] = self._losses[level] * _FORGET + nats
        self.choice[level] = int(self._losses[level].argmin())

    def score_effect(self, level: int, nats: np.ndarray) -> None:
        """Score the choices of the effect of one level, shape ``(TRUST,)``."""
        self._effect_losses[level] = self._effect_losses[level] * _FORGET + nats
        self.trust[level] = int(self._effect_losses[level].argmin())


def weights_state(weights: Sequence[LevelWeights]) -> Arrays:
    """Return ``W`` weights as arrays whose first axis has length ``W``."""
    return {
        "losses": np.stack([tree._losses for tree in weights]),
        "choice": np.array([tree.choice for tree in weights], dtype=np.int64),
        "effect_losses": np.stack([tree._effect_losses for tree in weights]),
        "trust": np.array([tree.trust for tree in weights], dtype=np.int64),
        "scored": np.array([min(tree.scored, MOST) for tree in weights], dtype=np.int64),
    }


def restored_weights(state: Arrays, count: int, start: Sequence[int]) -> list[LevelWeights]:
    """Return ``count`` weights from a :func:`weights_state`.

    Args:
        state: arrays of :func:`weights_state`, among others.
        count: number of weights.
        start: argument of :class:`LevelWeights`.

    Raises:
        ValueError: an array is missing, of another type or shape, or holds impossible values.
    """
    levels = len(start)
    losses = checked(state, "losses", np.float64, (count, levels, len(OPTIONS)))
    choice = checked(state, "choice", np.int64, (count, levels), 0, len(OPTIONS) - 1)
    effects = checked(state, "effect_losses", np.float64, (count, levels, len(TRUST)))
    trust = checked(state, "trust", np.int64, (count, levels), 0, len(TRUST) - 1)
    scored = checked(state, "scored", np.int64, (count,), 0, MOST).tolist()
    restored = []
    for i in range(count):
        weights = LevelWeights(start)
        weights._losses, weights._effect_losses = losses[i].copy(), effects[i].copy()
        weights.choice, weights.trust = choice[i].tolist(), trust[i].tolist()
        weights.scored = scored[i]
        restored.append(weights)
    return restored
