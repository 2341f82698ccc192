"""The inputs of a decision: sequences, memory, and the survival forecast of each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from sagellm_lifetime.core.batch import LengthDistributionBatch

HORIZON: Final[np.ndarray] = np.unique(np.round(np.geomspace(1, 65_536, 40))).astype(np.float64)
"""Steps ahead at which survival is evaluated; one step generates one token of every sequence."""
_EDGES: Final = np.concatenate([[0.0], HORIZON])
_STEPS: Final = np.diff(_EDGES)
HORIZON.flags.writeable = False


def gap_of(ahead: float) -> int:
    """Return the index of the survival entry for ``ahead`` steps from now, the last one beyond."""
    return min(int(np.searchsorted(HORIZON, ahead)), len(HORIZON) - 1)


@dataclass(frozen=True, slots=True)
class Memory:
    """The pool of KV blocks.

    Attributes:
        total: blocks in the pool.
        free: blocks of the pool that no sequence holds.
        block_size: tokens per block.
    """

    total: int
    free: int
    block_size: int

    def blocks(self, tokens: np.ndarray) -> np.ndarray:
        """Return the number of blocks that hold ``tokens``, same shape."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class Sequences:
    """``N`` sequences, each attribute an array of shape ``(N,)``.

    Attributes:
        tokens: prompt and generated tokens so far, whose KV it holds when it runs.
        generated: tokens generated so far (its age).
        recompute: tokens to be computed before it generates (again): for a running sequence, what
            preempting it would cost (prompt + generated − cached); for a waiting one, its prefill.
        arrival: seconds on the engine's clock.
        urgency: priority class; lower goes first.
        preemptions: number of times it was preempted.
        pinned: True if it must never be preempted.
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
    """Survival of ``N`` sequences over the steps ahead.

    Attributes:
        survival: mean of ``P(R > t)`` over the steps ``t = HORIZON[j - 1] .. HORIZON[j] - 1``,
            shape ``(N, T)``.
        confidence: of the point estimate, 0 to 1, shape ``(N,)``.
        certain: True if the lengths are known (or taken as known), so that a survival between 0
            and 1 only tells where in its gap a sequence ends.
    """

    survival: np.ndarray
    confidence: np.ndarray
    certain: bool = False

    @classmethod
    def of(cls, batch: LengthDistributionBatch, confidence: np.ndarray) -> SurvivalForecast:
        """Return the forecast of predicted distributions; ``confidence`` has shape ``(N,)``."""
        # A cap ends a sequence somewhere inside a gap, so it is applied to the gaps exactly.
        caps = cls.exact(batch.caps - batch.ages).survival
        alive = batch.uncapped(_EDGES)
        starts, ends = alive[:, :-1], alive[:, 1:]
        # A sum over whole steps, with the first and without the last, exceeds the area by half a
        # step.
        means = (starts + ends) / 2.0 + (starts - ends) / (2.0 * _STEPS)
        return cls(means * caps, confidence)

    @classmethod
    def exact(cls, remaining: np.ndarray) -> SurvivalForecast:
        """Return the forecast of known or assumed remaining lengths, tokens, shape ``(N,)``."""
        gap = (np.asarray(remaining, dtype=np.float64)[:, None] - HORIZON + _STEPS) / _STEPS
        survival = np.minimum(np.maximum(gap, 0.0), 1.0)
        return cls(survival, np.ones(len(remaining)), certain=True)

    def __len__(self) -> int:
        return len(self.survival)

    def expected(self) -> np.ndarray:
        """Return ``E[R]`` in tokens, shape ``(N,)``."""
        return self.survival @ _STEPS

    def at_worst(self, share: float) -> np.ndarray:
        """Return the mean ``R`` of the longest ``share`` of cases, in tokens, shape ``(N,)``.

        The conditional value at risk (Rockafellar & Uryasev 2000), ``∫ min(1, S(t) / share) dt``.
        """
        if self.certain:
            return self.expected()
        return np.minimum(self.survival / share, 1.0) @ _STEPS

    def area(self, tokens: np.ndarray) -> np.ndarray:
        """Return the expected memory-time in token-steps, ``E[tokens · R + R² / 2]``.

        Args:
            tokens: held now, shape ``(N,)``, as the result.
        """
        return tokens * self.expected() + self.survival @ (_STEPS * (HORIZON - _STEPS / 2.0))

    def gittins(self) -> np.ndarray:
        """Return the Gittins index, shape ``(N,)``; the highest goes first.

        It is the probability of finishing per token of service,
        ``max over t of P(R <= t) / E[min(R, t)]`` (Gittins 1979; Scully & Harchol-Balter 2021).
        """
        gained = self.survival * _STEPS
        # The survival is the mean over the gap, so the service counts up to the middle of the gap.
        served = np.cumsum(gained, axis=1) - gained / 2.0
        return np.asarray(((1.0 - self.survival) / np.maximum(served, 1e-9)).max(axis=1))

    def take(self, index: np.ndarray) -> SurvivalForecast:
        """Return the forecast of the sequences at ``index``."""
        return SurvivalForecast(self.survival[index], self.confidence[index], self.certain)
