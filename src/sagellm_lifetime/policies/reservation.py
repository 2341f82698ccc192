"""Reservation: how many more sequences fit, by the peak of memory that lies ahead.

With ``S_i(t)`` the chance that sequence ``i`` still runs ``t`` steps from now and ``m_i(t)`` the
blocks it then holds, the memory in use is a sum of independent terms with

    mean(t) = sum S_i(t) m_i(t)        variance(t) = sum S_i(t) (1 - S_i(t)) m_i(t)^2

and what has to fit is its peak over ``t`` at a chosen probability, not the sum of all final sizes:
sequences end at different times. (LightLLM's "past-future" scheduler, Gong et al. 2025, looks at
the same peak with one length distribution for all requests.)
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from sagellm_lifetime.policies.state import HORIZON, Outlook, gap_of


class Peak:
    """Memory ahead of a set of sequences, kept up to date as they come and go.

    Args:
        total: blocks in the pool.
        block_size: tokens per block.
        probability: with which the peak is to fit.
    """

    def __init__(self, total: int, block_size: int, probability: float = 0.95) -> None:
        self._total = total
        self._block_size = block_size
        self._ahead = np.concatenate([[0.0], HORIZON]) / block_size
        self._sds = NormalDist().inv_cdf(probability)
        self.mean = np.zeros(len(self._ahead))
        self.variance = np.zeros(len(self._ahead))

    def terms(self, blocks: np.ndarray, outlook: Outlook) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each sequence's memory, two arrays of shape ``(N, T + 1)``.

        Args:
            blocks: that each needs now, shape ``(N,)``.
            outlook: of the remaining lengths.
        """
        alive = np.ones((len(outlook), len(self._ahead)))
        if outlook.certain:
            # All of it until the end of the gap in which it ends, and no more than it comes to.
            alive[:, 1:] = outlook.survival > 0.0
            most = outlook.expected()[:, None] / self._block_size
            mean = alive * (blocks[:, None] + np.minimum(self._ahead, most))
            return mean, np.zeros_like(mean)
        alive[:, 1:] = outlook.survival
        held = blocks[:, None] + self._ahead
        mean = alive * held
        return mean, mean * (1.0 - alive) * held

    def add(self, mean: np.ndarray, variance: np.ndarray) -> None:
        """Take in one sequence's terms, each of shape ``(T + 1,)``."""
        self.mean += mean
        self.variance += variance

    def remove(self, mean: np.ndarray, variance: np.ndarray) -> None:
        """Take out one sequence's terms."""
        self.mean -= mean
        self.variance -= variance

    def fits(self, mean: np.ndarray, variance: np.ndarray, shared: float = 0.0) -> bool:
        """Whether the peak fits with one more sequence.

        Args:
            mean: terms of the newcomer, shape ``(T + 1,)``.
            variance: likewise.
            shared: blocks counted more than once, because sequences share a prefix.
        """
        spread = self._sds * np.sqrt(np.maximum(self.variance + variance, 0.0))
        return bool((self.mean + mean + spread).max() - shared <= self._total)

    def level(self) -> float:
        """Blocks at the peak, at the chosen probability."""
        spread = self._sds * np.sqrt(np.maximum(self.variance, 0.0))
        return float((self.mean + spread).max())


def reserved_blocks(remaining: np.ndarray, tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Blocks to set aside for each sequence, shape ``(N,)``.

    Args:
        remaining: a calibrated quantile of the remaining lengths, shape ``(N,)``; the 0.9 quantile
            is enough for nine sequences out of ten.
        tokens: held now, shape ``(N,)``.
        block_size: tokens per block.
    """
    return -(-(tokens + remaining).astype(np.int64) // block_size)


def prefetch_blocks(
    outlook: Outlook, tokens: np.ndarray, block_size: int, *, ahead: int, free: int
) -> np.ndarray:
    """Blocks to allocate ahead of need, shape ``(N,)``, surest first while any are free.

    A sequence gets the blocks it will fill within ``ahead`` tokens if it lives that long; where
    not all fit, those most likely to need them come first.
    """
    want = -(-(tokens + ahead) // block_size) - -(-tokens // block_size)
    lives = outlook.survival[:, gap_of(ahead)]
    order = np.argsort(-lives, kind="stable")
    granted = np.minimum(want[order], np.maximum(free - (np.cumsum(want[order]) - want[order]), 0))
    blocks = np.zeros(len(want), dtype=np.int64)
    blocks[order] = granted
    return blocks
