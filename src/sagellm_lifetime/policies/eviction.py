"""Eviction: the choice of victims when a running sequence needs a block and none is free.

A preempted sequence loses its KV and computes it again later, so the value of a victim is the
memory-time it frees per recomputed token. Nearly finished sequences free their memory anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sagellm_lifetime.policies.state import Sequences, SurvivalForecast, gap_of

Value = Callable[[Sequences, SurvivalForecast], np.ndarray]
"""Value of preempting each sequence, shape ``(N,)``; the highest goes first."""


def shortest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return values that put the shortest expected remaining lifetime first (specification)."""
    return -forecast.expected()


def longest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return values that put the longest expected remaining lifetime first, as SRPT does."""
    return forecast.expected()


def memory_time_per_token(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return the expected memory-time freed per token that must be computed again.

    Tokens that need no recomputation are in shared blocks, which a preemption does not free.
    """
    return forecast.area(sequences.recompute) / np.maximum(sequences.recompute, 1)


def newest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Return values for the engine's own rule: last come, first preempted."""
    return sequences.arrival


VALUES: Final[dict[str, Value]] = {
    "engine": newest_first,
    "shortest": shortest_first,
    "longest": longest_first,
    "cost-aware": memory_time_per_token,
}


def eviction_order(
    sequences: Sequences,
    forecast: SurvivalForecast,
    *,
    value: Value = memory_time_per_token,
    near_completion: int = 32,
    near_probability: float = 0.5,
    max_preemptions: int = 3,
    min_confidence: float = 0.0,
) -> np.ndarray:
    """Return the indices of the sequences that may be preempted, first victim first.

    The least urgent class goes before all others, as an engine with priorities has it.

    Args:
        sequences: running.
        forecast: of their remaining lengths.
        value: value of preempting each sequence.
        near_completion: tokens; a sequence that ends within so many with ``near_probability`` goes
            after all others.
        max_preemptions: a sequence with so many preemptions also goes after all others, so that it
            does not lose its work again and again. Only pinned ones are never preempted.
        min_confidence: sequences below it go after the confident ones, the newest first, as in
            the engine.
    """
    worth = value(sequences, forecast)
    doubtful = forecast.confidence < min_confidence
    ends_soon = 1.0 - forecast.survival[:, gap_of(near_completion)] >= near_probability
    spared = (ends_soon & ~doubtful) | (sequences.preemptions >= max_preemptions)
    worth = np.where(doubtful, -np.inf, worth)
    order = np.lexsort((-sequences.arrival, -worth, spared, -sequences.urgency))
    return order[~sequences.pinned[order]]


def select_victims(order: np.ndarray, blocks: np.ndarray, required: int) -> np.ndarray:
    """Return the first of ``order`` that together free ``required`` blocks, or all if too few.

    Args:
        order: indices, first victim first.
        blocks: held by each sequence, shape ``(N,)``.
        required: blocks needed; none are chosen for 0 or less.
    """
    if required <= 0:
        return order[:0]
    freed = np.cumsum(blocks[order])
    return order[: int(np.searchsorted(freed, required)) + 1]
