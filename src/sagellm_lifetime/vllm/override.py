"""What is changed in vLLM's scheduler while an advisor acts, and how it is put back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def as_vllm(requests: Iterable[Any]) -> list[Any]:
    """Return a queue or the running sequences, first come first.

    vLLM puts a preempted sequence at the head of its queue, and those still in prefill behind the
    others that run, since they came last.
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
    """Put queue and running sequences in vLLM's order; only between two of its steps."""
    order, running = as_vllm(scheduler.waiting), as_vllm(scheduler.running)
    scheduler.waiting.clear()
    scheduler.waiting.extend(order)
    scheduler.running = running


class Override:
    """Orders and free blocks of one scheduler.

    Args:
        scheduler: vLLM's.

    Attributes:
        is_disordered: whether queue and running sequences may be in another order than vLLM's.
    """

    def __init__(self, scheduler: Any) -> None:
        self.is_disordered = False
        self._scheduler = scheduler
        self._stock: int | None = None
        """Blocks that vLLM itself leaves free; ``None`` while nothing is changed."""
        self._blocks = -1
        """Blocks that were asked to be left free last."""

    def begin(self) -> None:
        """Say that the order is not vLLM's from now on, nor what is left free."""
        self.is_disordered = True
        if self._stock is None:
            self._stock = self._scheduler.kv_cache_manager.watermark_blocks

    def leave_free(self, blocks: int) -> None:
        """Leave so many blocks free, if that is more than vLLM leaves; nothing before it began."""
        if blocks != self._blocks and self._stock is not None:
            self._blocks = blocks
            self._scheduler.kv_cache_manager.watermark_blocks = max(self._stock, blocks)

    def reorder_queue(self, order: Sequence[int]) -> None:
        """Put the first sequences of the queue in another order."""
        waiting = self._scheduler.waiting
        head = [waiting.popleft() for _ in order]
        waiting.extendleft(head[place] for place in reversed(order))

    def reorder_running(self, order: Sequence[int]) -> None:
        """Put the running sequences in another order; vLLM preempts the last."""
        running = self._scheduler.running
        self._scheduler.running = [running[place] for place in order]

    def give_back(self) -> None:
        """Leave free what vLLM does by itself."""
        if self._stock is not None:
            self._scheduler.kv_cache_manager.watermark_blocks = self._stock
            self._stock, self._blocks = None, -1

    def restore(self) -> None:
        """Put queue and running sequences as vLLM would have them, if they may be otherwise."""
        if self.is_disordered:
            restore_order(self._scheduler)
            self.is_disordered = False
