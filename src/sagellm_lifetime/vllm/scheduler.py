"""vLLM's scheduler, asked to look ahead: one mixin for ``Scheduler`` and ``AsyncScheduler``.

Nothing of vLLM's code is copied. Before each step the queue is put in order, the number of
sequences that may run is limited to those whose predicted peak fits, and, when memory is short, the
running ones are ordered so that vLLM, which preempts the last, preempts the right one.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

ready_for_vllm()  # before anything of vLLM is imported

from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.controller import LifetimeController

_REASONS = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH_CAPPED: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
}
_FEW: Final = 16
"""Waiting sequences of which it is counted whether there is room for all."""


class LifetimeMixin:
    """Goes before a scheduler class of vLLM; without a controller it changes nothing."""

    lifetime: LifetimeController | None = None
    # Of vLLM's scheduler:
    running: Any
    waiting: Any
    requests: Any
    block_size: Any
    kv_cache_manager: Any
    max_num_active_reqs: Any
    max_num_scheduled_tokens: Any
    _inflight_prefills: Any
    _inflight_prefill_reserved_blocks: Any
    num_lookahead_tokens: Any
    kv_cache_config: Any

    def _ours(self, fallback: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``: every part of ours that runs in a step is called from here.

        An error ends a replay; a live engine, which overrides this, goes on with ``fallback``.
        """
        return function(*args)

    def schedule(self, *args: Any, **options: Any) -> Any:
        """One step."""
        if self.lifetime is None:
            return super().schedule(*args, **options)  # type: ignore[misc]  # mixin
        limit = self.max_num_active_reqs
        self.max_num_active_reqs = min(limit, self._ours(sys.maxsize, self._prepare))
        try:
            output = super().schedule(*args, **options)  # type: ignore[misc]  # mixin
        finally:
            self.max_num_active_reqs = limit
        self._ours(None, self._account, output)
        return output

    def _prepare(self) -> int:
        """Put queue and running sequences in order; return how many sequences may run."""
        lifetime, allowed = self.lifetime, sys.maxsize
        assert lifetime is not None
        lifetime.tick(busy=bool(self.running))
        if lifetime.looks_round:
            lifetime.make_room(len(self.waiting))
        if self.waiting and lifetime.decides:
            if lifetime.line_up(self.waiting):
                lifetime.fill(self.waiting, self._free_to_admit())
            if lifetime.fits:
                running = len(self.running)
                allowed = running + lifetime.room(running, self.waiting, self._free_to_admit())
        # Where nobody waits nobody gains by what a victim frees: that choice is the engine's.
        if lifetime.plan.evict and self.waiting and self._is_tight():
            self.running = lifetime.victims_last(self.running)
        return allowed

    def _account(self, output: Any) -> None:
        """Take note of the sequences that a step has admitted."""
        lifetime = self.lifetime
        assert lifetime is not None
        for new in output.scheduled_new_reqs:
            lifetime.admitted(new.req_id)
        for request_id in output.scheduled_cached_reqs.resumed_req_ids:
            lifetime.admitted(request_id)

    def add_request(self, request: Any) -> None:
        """Queue a request, or the next input of a session that is known by this id."""
        new = request.request_id not in self.requests
        super().add_request(request)  # type: ignore[misc]  # mixin
        if new and self.lifetime is not None and request.request_id in self.requests:
            self._ours(None, self.lifetime.arrived, request)

    def _preempt_request(self, request: Any, *args: Any, **options: Any) -> None:
        super()._preempt_request(request, *args, **options)  # type: ignore[misc]  # mixin
        if self.lifetime is not None:
            self._ours(None, self.lifetime.preempted, request)

    def _free_request(self, request: Any, *args: Any, **options: Any) -> Any:
        if self.lifetime is not None:
            reason = _REASONS.get(request.status, "error")
            self._ours(None, self.lifetime.finished, request, reason)
        return super()._free_request(request, *args, **options)  # type: ignore[misc]  # mixin

    def cached_tokens(self, request: Any) -> int:
        """Tokens of a request that need no computing (again).

        Of a waiting one those that the prefix cache has now; of a running one those in blocks that
        others hold, too, and that stay when it is preempted.
        """
        manager = self.kv_cache_manager
        if not manager.enable_caching:
            return 0
        if request.num_computed_tokens:
            # Who shares a block shares all blocks before it.
            blocks = manager.coordinator.get_blocks(request.request_id)[0]
            shared = bisect_left(blocks, True, key=lambda block: block.ref_cnt < 2)
            return shared * self.block_size
        hit = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 1
        )
        return int(hit[1])

    def set_aside_blocks(self) -> int:
        """Free blocks that nobody new may take, for the sake of those that run."""
        aside = self.kv_cache_manager.watermark_blocks if self.running else 0
        if self.lifetime is None:
            return aside
        return max(aside, self.lifetime.set_aside())

    def _free_to_admit(self) -> int:
        """Blocks that a newcomer may take: not those that running sequences are about to."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        if not self.running:
            return int(free)
        aside = self.kv_cache_manager.watermark_blocks + self._inflight_prefill_reserved_blocks()
        return int(free) - aside - len(self.running) // self.block_size

    def order_matters(self) -> bool:
        """Whether some of the queue may be admitted in this step and others not."""
        waiting, running, free = self.waiting, len(self.running), self._free_to_admit()
        # Those that run may grow less than expected, and leave it.
        if free + running // self.block_size < 1 or running >= self.max_num_active_reqs:
            return False
        if len(waiting) > _FEW or running + len(waiting) > self.max_num_active_reqs:
            return True
        tokens = [request.num_tokens for request in waiting]
        room = self.max_num_scheduled_tokens - self._prefill_left()
        room -= running * (1 + self.num_lookahead_tokens)
        blocks = sum(-(-each // self.block_size) for each in tokens)
        return sum(tokens) > room or blocks > free

    def _prefill_left(self) -> int:
        """Tokens of prompts begun, as many as a step may take."""
        if not self._inflight_prefills:
            return 0
        return sum(
            min(r.num_tokens - r.num_computed_tokens, self.max_num_scheduled_tokens)
            for r in self._inflight_prefills
        )

    def _is_tight(self) -> bool:
        """Whether this step may run out of blocks."""
        need = len(self.running)
        if self._inflight_prefills:
            need += self._prefill_left() // self.block_size
        return bool(self.kv_cache_manager.block_pool.get_num_free_blocks() < need)

    def _runs_out(self) -> bool:
        """The same, told more closely: every sequence is looked at."""
        if self.num_lookahead_tokens or len(self.kv_cache_config.kv_cache_groups) > 1:
            return True
        block = self.block_size
        # Those whose last block is full; one in prefill may begin one more than it fills.
        need = sum(request.num_computed_tokens % block == 0 for request in self.running)
        need += self._prefill_left() // block + len(self._inflight_prefills)
        return bool(self.kv_cache_manager.block_pool.get_num_free_blocks() < need)


class LifetimeScheduler(LifetimeMixin, Scheduler):  # type: ignore[misc]  # vLLM is untyped here
    """For engines without asynchronous scheduling."""
