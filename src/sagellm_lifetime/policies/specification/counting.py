"""Bounded counts of an eviction policy's victims."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any

from sagellm_lifetime.core.protocol import SequenceId


class EvictionCounts:
    """Evictions so far: their number, duration, and the returns of victims.

    Args:
        capacity: largest number of sequences whose evictions are counted.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._times: OrderedDict[SequenceId, int] = OrderedDict()
        self._gone: set[SequenceId] = set()
        self._calls = self._evictions = self._returns = self._blocks = 0
        self._seconds = 0.0

    def times(self, sequence_id: SequenceId) -> int:
        """Return the number of evictions of a sequence."""
        return self._times.get(sequence_id, 0)

    def seen(self, sequence_ids: Iterable[SequenceId]) -> None:
        """Record sequences that hold memory; an earlier victim among them has returned."""
        returned = self._gone.intersection(sequence_ids)
        self._returns += len(returned)
        self._gone -= returned

    def evicted(self, sequence_ids: list[SequenceId], blocks: int, seconds: float) -> None:
        """Record one decision: its victims, the freed blocks, and its duration in seconds."""
        self._calls += 1
        self._evictions += len(sequence_ids)
        self._blocks += blocks
        self._seconds += seconds
        for sequence_id in sequence_ids:
            self._times[sequence_id] = self._times.pop(sequence_id, 0) + 1
            self._gone.add(sequence_id)
        while len(self._times) > self._capacity:
            self._gone.discard(self._times.popitem(last=False)[0])

    def metrics(self) -> dict[str, Any]:
        """Return page 2.3's ``EvictionMetrics`` and the freed blocks; NaN before the first case.

        ``avg_eviction_time`` is in milliseconds per decision, ``re_prefill_rate`` the share of
        victims that returned, ``fairness_score`` Jain's index over the evictions of each victim
        (1: all equally often).
        """
        spread = Counter(self._times.values())
        total = sum(times * count for times, count in spread.items())
        squares = sum(times * times * count for times, count in spread.items())
        return {
            "total_evictions": self._evictions,
            "avg_eviction_time": _ratio(1e3 * self._seconds, self._calls),
            "re_prefill_rate": _ratio(self._returns, self._evictions),
            "fairness_score": _ratio(total * total, len(self._times) * squares),
            "freed_blocks": self._blocks,
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
