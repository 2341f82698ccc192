"""Reservation: the memory to keep free for the growth of the running sequences.

With ``S_i(t)`` the probability that sequence ``i`` still runs ``t`` steps from now and ``m_i(t)``
the blocks it then holds, the memory in use is a sum of independent terms with

    mean(t) = sum S_i(t) m_i(t)        variance(t) = sum S_i(t) (1 - S_i(t)) m_i(t)^2

and never more than ``most(t) = sum m_i(t)``, its value if no sequence ends. The reserve is

    max over t <= horizon of  min(mean(t) + z sd(t), most(t))  -  most(0)

The bound corrects the normal approximation for a few large sequences: in the next steps hardly any
of them ends, the variance is that of rare, large releases, and mean + z sd exceeds what they can
hold. The horizon is finite because a preemption far ahead costs little now: admission stops until
memory suffices, and by then the forecasts are better. (LightLLM's "past-future" scheduler, Gong et
al. 2025, takes the peak of the mean, over all time, with one length distribution for all requests.)
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

import numpy as np

from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast, gap_of

FARTHEST: Final = int(HORIZON[-1])
"""Largest number of steps ahead with a forecast."""


class Peak:
    """The predicted memory of a set of sequences, updated as they come and go.

    Args:
        block_size: tokens per block.
        probability: required probability that the peak fits.
        horizon: steps ahead that count.
    """

    def __init__(self, block_size: int, probability: float = 0.95, horizon: int = FARTHEST) -> None:
        last = gap_of(horizon)
        steps = np.concatenate([[0.0], HORIZON[:last], [min(horizon, FARTHEST)]])
        self._block_size = block_size
        self._ahead = steps / block_size
        self._sds = NormalDist().inv_cdf(probability)
        self.sums = np.zeros((3, len(steps)))
        """Sums over all sequences, shape ``(3, T)``: mean, variance, blocks if none ends."""

    def terms(
        self, blocks: np.ndarray, forecast: SurvivalForecast, min_confidence: float = -np.inf
    ) -> np.ndarray:
        """Return the contribution of each sequence to the sums, shape ``(N, 3, T)``.

        Args:
            blocks: blocks that each needs now, shape ``(N,)``.
            forecast: of the remaining lengths.
            min_confidence: a sequence below it counts with its present blocks, without growth or
                end, as in the engine.
        """
        survival = forecast.survival[:, : len(self._ahead) - 1]
        alive = np.ones((len(forecast), len(self._ahead)))
        most = blocks[:, None] + self._ahead
        if forecast.certain:
            # It holds all its blocks until the end of the gap in which it ends, up to its final
            # size.
            alive[:, 1:] = survival > 0.0
            most = np.minimum(most, (blocks + forecast.expected() / self._block_size)[:, None])
        else:
            alive[:, 1:] = survival
        doubtful = forecast.confidence < min_confidence
        alive[doubtful] = 1.0
        most[doubtful] = blocks[doubtful, None]
        mean = alive * most
        return np.stack([mean, mean * (1.0 - alive) * most, most], axis=1)

    def add(self, terms: np.ndarray) -> None:
        """Add the terms of a sequence, shape ``(3, T)``."""
        self.sums += terms

    def remove(self, terms: np.ndarray) -> None:
        """Remove the terms of a sequence, shape ``(3, T)``."""
        self.sums -= terms

    def fits(self, terms: np.ndarray, free: float) -> bool:
        """Return True if the peak fits with newcomers.

        Args:
            terms: summed terms of the newcomers, shape ``(3, T)``.
            free: blocks that no sequence holds or needs for the rest of its prompt.
        """
        return self._highest(self.sums + terms) - float(self.sums[2, 0]) <= free

    def growth(self) -> float:
        """Return the blocks to keep free: the peak less the blocks held now."""
        return self._highest(self.sums) - float(self.sums[2, 0])

    def _highest(self, sums: np.ndarray) -> float:
        mean, variance, most = sums
        likely = mean + self._sds * np.sqrt(np.maximum(variance, 0.0))
        return float(np.minimum(likely, most).max())


def reserved_blocks(remaining: np.ndarray, tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Return the blocks to reserve for each sequence, shape ``(N,)``.

    Args:
        remaining: a calibrated quantile of the remaining lengths, shape ``(N,)``; the 0.9 quantile
            is enough for nine sequences out of ten.
        tokens: held now, shape ``(N,)``.
        block_size: tokens per block.
    """
    return -(-(tokens + remaining).astype(np.int64) // block_size)


def prefetch_blocks(
    forecast: SurvivalForecast,
    tokens: np.ndarray,
    block_size: int,
    *,
    ahead: int,
    free: int,
    min_confidence: float = -np.inf,
) -> np.ndarray:
    """Return the blocks to allocate ahead of need, shape ``(N,)``.

    A sequence gets the blocks that it fills within ``ahead`` tokens if it lives that long. If they
    do not all fit into ``free`` blocks, the sequences most likely to need them go first. Sequences
    below ``min_confidence`` get none, as in an engine that allocates when a block is needed.
    """
    want = -(-(tokens + ahead) // block_size) - -(-tokens // block_size)
    want = np.where(forecast.confidence < min_confidence, 0, want)
    lives = forecast.survival[:, gap_of(ahead)]
    order = np.argsort(-lives, kind="stable")
    granted = np.minimum(want[order], np.maximum(free - (np.cumsum(want[order]) - want[order]), 0))
    blocks = np.zeros(len(want), dtype=np.int64)
    blocks[order] = granted
    return blocks
