"""What is changed in vLLM's scheduler while somebody else decides, and how it is put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def as_vllm(requests: Iterable[Any]) -> list[Any]:
    """A queue or the running sequences, first come first.

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


class Takeover:
    """Of one scheduler.

    Args:
        scheduler: vLLM's.

    Attributes:
        disordered: whether queue and running sequences may be in another order than vLLM's.
    """

    def __init__(self, scheduler: Any) -> None:
        self.disordered = False
        self._scheduler = scheduler
        self._asked = 0
        """Blocks that are to be left free."""
        self._stock: int | None = None
        """Blocks that vLLM itself leaves free; ``None`` while nothing is changed."""

    def begin(self) -> None:
        """From now on the order is not vLLM's, nor what is left free."""
        self.disordered = True
        if self._stock is None:
            self._stock = self._scheduler.kv_cache_manager.watermark_blocks
            self.leave_free(self._asked)

    def leave_free(self, blocks: int) -> None:
        """So many blocks, if that is more than vLLM leaves; nothing changes before it began."""
        self._asked = blocks
        if self._stock is not None:
            self._scheduler.kv_cache_manager.watermark_blocks = max(self._stock, blocks)

    def give_back(self) -> None:
        """What is left free is vLLM's own again."""
        self._asked = 0
        if self._stock is not None:
            self._scheduler.kv_cache_manager.watermark_blocks = self._stock
            self._stock = None

    def restore(self) -> None:
        """Queue and running sequences are as vLLM would have them."""
        restore_order(self._scheduler)
        self.disordered = False
