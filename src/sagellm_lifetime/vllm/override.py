"""The changes to vLLM's scheduler while an advisor acts, and their restoration."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sagellm_lifetime.vllm.circuit_breaker import LOG


def can_reorder(scheduler: Any) -> bool:
    """Return True if vLLM's queue has an order that can be changed; a priority queue has none."""
    return isinstance(scheduler.waiting, deque)


def as_vllm(requests: Iterable[Any]) -> list[Any]:
    """Return a queue or the running sequences in vLLM's order, by arrival.

    vLLM puts a preempted sequence at the head of its queue, and sequences in prefill behind the
    other running ones, since they were admitted last.
    """
    return sorted(
        requests,
        key=lambda r: (
            r.is_prefill_chunk and r.num_computed_tokens > 0,
            not (r.num_preemptions and r.num_computed_tokens == 0),
            r.arrival_time,
        ),
    )


def restore_order(scheduler: Any) -> None:
    """Put queue and running sequences in vLLM's order; call it only between two steps.

    vLLM's priority queue, and the running sequences beside it, are never in another.
    """
    if not isinstance(scheduler.waiting, deque):
        return
    order, running = as_vllm(scheduler.waiting), as_vllm(scheduler.running)
    scheduler.waiting.clear()
    scheduler.waiting.extend(order)
    scheduler.running = running


class Override:
    """The changed orders and watermark of one scheduler.

    Args:
        scheduler: vLLM's.

    Attributes:
        is_disordered: True if queue or running sequences may not be in vLLM's order.
    """

    def __init__(self, scheduler: Any) -> None:
        self.is_disordered = False
        self._scheduler = scheduler
        self._stock: int | None = None
        """vLLM's own watermark, in blocks; ``None`` while it is unchanged."""
        self._blocks = -1
        """Last requested watermark, in blocks; -1 for none."""

    def begin(self) -> None:
        """Mark the order as changed, and keep vLLM's watermark for :meth:`give_back`."""
        self.is_disordered = True
        if not can_reorder(self._scheduler):
            LOG.warning("lifetime prediction leaves the order to vLLM's priority queue")
        if self._stock is None:
            self._stock = self._scheduler.kv_cache_manager.watermark_blocks

    def leave_free(self, blocks: int) -> None:
        """Set the watermark to ``blocks``, or vLLM's own if larger; only after :meth:`begin`."""
        if blocks != self._blocks and self._stock is not None:
            self._blocks = blocks
            self._scheduler.kv_cache_manager.watermark_blocks = max(self._stock, blocks)

    def reorder_queue(self, order: Sequence[int]) -> None:
        """Put the first sequences of the queue in the given order.

        Raises:
            IndexError: if the queue is shorter; it is unchanged then.
        """
        waiting = self._scheduler.waiting
        head = list(islice(waiting, len(order)))
        last_first = [head[place] for place in reversed(order)]  # made before the queue is touched
        for _ in last_first:
            waiting.popleft()
        waiting.extendleft(last_first)

    def reorder_running(self, order: Sequence[int]) -> None:
        """Put the running sequences in the given order; vLLM preempts the last."""
        running = self._scheduler.running
        self._scheduler.running = [running[place] for place in order]

    def give_back(self) -> None:
        """Restore vLLM's own watermark."""
        if self._stock is not None:
            self._scheduler.kv_cache_manager.watermark_blocks = self._stock
            self._stock, self._blocks = None, -1

    def restore(self) -> None:
        """Put queue and running sequences in vLLM's order if they may be in another."""
        if self.is_disordered:
            restore_order(self._scheduler)
            self.is_disordered = False
