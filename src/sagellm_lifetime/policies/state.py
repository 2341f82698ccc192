"""What a decision is made from: sequences, memory, and what is expected of each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sagellm_lifetime.core.batch import LengthDistributionBatch

HORIZON: Final[np.ndarray] = np.unique(np.round(np.geomspace(1, 65_536, 40))).astype(np.float64)
"""Steps ahead at which survival is looked at; one step generates one token of every sequence."""
_EDGES: Final = np.concatenate([[0.0], HORIZON])
_STEPS: Final = np.diff(_EDGES)
HORIZON.flags.writeable = False


def gap_of(ahead: float) -> int:
    """Which entry of a survival speaks of ``ahead`` steps from now; the last for all beyond."""
    return min(int(np.searchsorted(HORIZON, ahead)), len(HORIZON) - 1)


@dataclass(frozen=True, slots=True)
class Memory:
    """The pool of KV blocks.

    Attributes:
        total: blocks in the pool.
        free: of them, not held by any sequence.
        block_size: tokens per block.
    """

    total: int
    free: int
    block_size: int

    def blocks(self, tokens: np.ndarray) -> np.ndarray:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class Sequences:
    """``N`` sequences, each attribute an array of shape ``(N,)``.

    Attributes:
        tokens: prompt and generated so far: what its KV takes when it runs.
        generated: tokens generated so far (its age).
        recompute: tokens to be computed before it generates (again): for a running sequence, what
            preempting it would cost (prompt + generated − cached); for a waiting one, its prefill.
        arrival: seconds on the engine's clock.
        urgency: priority class; lower goes first.
        preemptions: how often it was preempted.
        pinned: never to be preempted.
    """

    tokens: np.ndarray
    generated: np.ndarray
    recompute: np.ndarray
    arrival: np.ndarray
    urgency: np.ndarray
    preemptions: np.ndarray
    pinned: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class SurvivalForecast:
    """What is expected of ``N`` sequences from now on.

    Attributes:
        survival: mean of ``P(R > t)`` over the steps ``t = HORIZON[j - 1] .. HORIZON[j] - 1``,
            shape ``(N, T)``.
        confidence: of the point estimate, 0 to 1, shape ``(N,)``.
        certain: whether the lengths are known (or taken as known), so that a survival between 0
            and 1 only says where in its gap a sequence ends.
    """

    survival: np.ndarray
    confidence: np.ndarray
    certain: bool = False

    @classmethod
    def of(cls, batch: LengthDistributionBatch, confidence: np.ndarray) -> SurvivalForecast:
        """From predicted distributions."""
        # A cap ends everything at once, somewhere inside a gap: it is laid over the gaps exactly.
        caps = cls.exact(batch.caps - batch.ages).survival
        alive = batch.uncapped(_EDGES)
        starts, ends = alive[:, :-1], alive[:, 1:]
        # Sum over whole steps, the first included and the last not: half a step more than the area.
        means = (starts + ends) / 2.0 + (starts - ends) / (2.0 * _STEPS)
        return cls(means * caps, confidence)

    @classmethod
    def exact(cls, remaining: np.ndarray) -> SurvivalForecast:
        """Of lengths that are known (an oracle), or assumed (a global average)."""
        gap = (np.asarray(remaining, dtype=np.float64)[:, None] - HORIZON + _STEPS) / _STEPS
        survival = np.minimum(np.maximum(gap, 0.0), 1.0)
        return cls(survival, np.ones(len(remaining)), certain=True)

    def __len__(self) -> int:
        return len(self.survival)

    def expected(self) -> np.ndarray:
        """``E[R]`` in tokens, shape ``(N,)``."""
        return self.survival @ _STEPS

    def at_worst(self, share: float) -> np.ndarray:
        """Mean ``R`` in the ``share`` of cases in which it is longest, in tokens, shape ``(N,)``.

        The conditional value at risk (Rockafellar & Uryasev 2000), ``∫ min(1, S(t) / share) dt``.
        """
        if self.certain:
            return self.expected()
        return np.minimum(self.survival / share, 1.0) @ _STEPS

    def area(self, tokens: np.ndarray) -> np.ndarray:
        """Expected memory-time in token-steps: ``E[tokens · R + R² / 2]``, shape ``(N,)``."""
        return tokens * self.expected() + self.survival @ (_STEPS * (HORIZON - _STEPS / 2.0))

    def gittins(self) -> np.ndarray:
        """Gittins index, shape ``(N,)``, finishing chances per token of service; more goes first.

        ``max over t of P(R <= t) / E[min(R, t)]`` (Gittins 1979; Scully & Harchol-Balter 2021).
        """
        gained = self.survival * _STEPS
        # Up to the middle of each gap, as the survival is the mean over the gap.
        served = np.cumsum(gained, axis=1) - gained / 2.0
        return np.asarray(((1.0 - self.survival) / np.maximum(served, 1e-9)).max(axis=1))

    def take(self, index: np.ndarray) -> SurvivalForecast:
        """Of some of the sequences."""
        return SurvivalForecast(self.survival[index], self.confidence[index], self.certain)
