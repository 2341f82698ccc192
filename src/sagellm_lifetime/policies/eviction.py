"""Eviction: whom to preempt when a running sequence needs a block and none is free.

A preempted sequence loses its KV and computes it again later, so a victim is worth the memory-time
it frees for the tokens it costs. The nearly finished free their memory by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sagellm_lifetime.policies.state import Sequences, SurvivalForecast, gap_of

Value = Callable[[Sequences, SurvivalForecast], np.ndarray]
"""What preempting each sequence is worth, shape ``(N,)``; the highest goes first."""


def shortest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """The specification's order: the shortest expected remaining lifetime first."""
    return -forecast.expected()


def longest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """The longest expected remaining lifetime first, as SRPT would have it."""
    return forecast.expected()


def memory_time_per_token(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """Expected memory-time freed per token that must be computed again.

    What need not be computed again is not freed either: others hold it.
    """
    return forecast.area(sequences.recompute) / np.maximum(sequences.recompute, 1)


def newest_first(sequences: Sequences, forecast: SurvivalForecast) -> np.ndarray:
    """The engine's own rule: last come, first preempted."""
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
    """Indices of the sequences that may be preempted, first victim first.

    The least urgent class goes before all others, as an engine with priorities has it.

    Args:
        sequences: running.
        forecast: of their remaining lengths.
        value: what preempting one is worth.
        near_completion: tokens; a sequence that ends within so many with ``near_probability`` goes
            after all others.
        max_preemptions: a sequence preempted so often goes after all others, too: the same
            sequence must not lose its work again and again. Only pinned ones never go.
        min_confidence: below it nothing says that preempting a sequence pays: it goes after those
            that are believed, the newest first, as the engine has it.
    """
    worth = value(sequences, forecast)
    doubtful = forecast.confidence < min_confidence
    ends_soon = 1.0 - forecast.survival[:, gap_of(near_completion)] >= near_probability
    spared = (ends_soon & ~doubtful) | (sequences.preemptions >= max_preemptions)
    worth = np.where(doubtful, -np.inf, worth)
    order = np.lexsort((-sequences.arrival, -worth, spared, -sequences.urgency))
    return order[~sequences.pinned[order]]


def select_victims(order: np.ndarray, blocks: np.ndarray, required: int) -> np.ndarray:
    """The first of ``order`` that together free ``required`` blocks; all, where that is not enough.

    Args:
        order: indices, first victim first.
        blocks: held by each sequence, shape ``(N,)``.
        required: blocks needed.
    """
    if required <= 0:
        return order[:0]
    freed = np.cumsum(blocks[order])
    return order[: int(np.searchsorted(freed, required)) + 1]
