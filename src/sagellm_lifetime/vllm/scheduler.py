"""vLLM's scheduler with an advisor: one mixin for ``Scheduler`` and ``AsyncScheduler``.

No code of vLLM is copied or patched. vLLM's hooks become events. Before each step the advisor gives
the order of the queue, the number of sequences that may run, and, when memory is short, the order
of the running ones, of which vLLM preempts the last.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.policies.events import Admitted, Arrived, Event, Finished, Preempted
from sagellm_lifetime.vllm.beam_search import is_beam_step
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm
from sagellm_lifetime.vllm.override import Override, can_reorder, restore_order
from sagellm_lifetime.vllm.request_view import QueueView, RequestConverter, RequestView
from sagellm_lifetime.vllm.time_budget import from_signal_handler

ready_for_vllm()  # before anything of vLLM is imported

from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402

from sagellm_lifetime.vllm.compat.versions import scheduler_names  # noqa: E402

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.guard import GuardedAdvisor
    from sagellm_lifetime.vllm.request_events import RequestEvents
    from sagellm_lifetime.vllm.switchback import Switchback

    SchedulerNames = object
else:
    SchedulerNames = scheduler_names(Scheduler)

_NONE_CACHED: dict[str, int] = {}
_NONE_DEFERRED: set[str] = set()
_FEW: Final = 16
"""Largest queue for which the room for all of it is computed."""


class LifetimeMixin(SchedulerNames):
    """A mixin for a scheduler class of vLLM; without an advisor it changes nothing.

    Attributes:
        advisor: the advisor, once :meth:`use` was called.
        request_events: makes events of requests.
        switchback: measures what acting changes; ``None`` for none.
        clock: seconds, the clock of ``Request.arrival_time``.
    """

    advisor: GuardedAdvisor | None = None
    request_events: RequestEvents
    switchback: Switchback | None = None
    clock: Callable[[], float] = staticmethod(time.time)
    _converter: RequestConverter
    _override: Override
    _is_abandoned = False
    """True if queue and running sequences must be put in vLLM's order once more."""
    _stock_watermark: int | None = None
    """vLLM's own watermark, in blocks."""
    # Attributes of vLLM's scheduler:
    vllm_config: Any
    scheduler_config: Any
    max_model_len: Any
    hash_block_size: Any
    running: Any
    waiting: Any
    requests: Any
    block_size: Any
    kv_cache_manager: Any
    kv_holding_waiting: Any
    deferred_waiting: Any
    num_waiting_for_streaming_input: Any
    max_num_active_reqs: Any
    max_num_scheduled_tokens: Any
    _inflight_prefills: Any
    _inflight_prefill_reserved_blocks: Any
    num_lookahead_tokens: Any
    kv_cache_config: Any

    def use(
        self, advisor: GuardedAdvisor, request_events: RequestEvents, converter: RequestConverter
    ) -> None:
        """Use an advisor from the next step on.

        Args:
            lifetime: the advisor; its engine is this scheduler.
            request_events: makes events of requests.
            converter: converts requests to prediction requests.
        """
        self.request_events, self._converter = request_events, converter
        self._override = Override(self)
        self._stock_watermark = self.kv_cache_manager.watermark_blocks
        self.advisor = advisor

    # -- a step --------------------------------------------------------------------------------

    def schedule(self, *args: Any, **options: Any) -> Any:
        """Schedule one step, and return vLLM's output of it."""
        if self._is_abandoned:
            self._is_abandoned = False
            self._guarded(None, restore_order, self)
        if self.advisor is None:
            return super().schedule(*args, **options)  # type: ignore[misc]  # mixin
        limit = self.max_num_active_reqs
        self.max_num_active_reqs = min(limit, self._guarded(sys.maxsize, self._prepare))
        try:
            output = super().schedule(*args, **options)  # type: ignore[misc]  # mixin
        finally:
            self.max_num_active_reqs = limit
        if self.advisor is not None:  # None after a fault whose handling failed
            self._guarded(None, self._account, output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Process the output of a step, and return vLLM's result."""
        if self.advisor is not None and (signals := self.request_events.signals) is not None:
            # Before sequences end, as a record has their last signals, too.
            self._guarded(None, signals.receive, model_runner_output, self.requests)
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]  # mixin
        if self.advisor is not None:
            tokens = scheduler_output.total_num_scheduled_tokens
            self._guarded(None, self.advisor.output_processed, tokens, len(self.running))
            if self.switchback is not None and self.switchback.is_running:
                self._guarded(None, self._measure_output, outputs)
        return outputs

    def _measure_output(self, outputs: Any) -> None:
        """Count the tokens of a step for a switchback, the same in both of its modes."""
        assert self.switchback is not None
        answers = [answer for part in outputs.values() for answer in part.outputs]
        counts = [len(answer.new_token_ids) for answer in answers]
        named = (a.request_id for a, count in zip(answers, counts, strict=True) if count)
        self.switchback.output(sum(counts), named, self.clock())

    def _prepare(self) -> int:
        """Prepare the step that begins; return how many sequences may run."""
        advisor, allowed = self.advisor, sys.maxsize
        assert advisor is not None
        grown: tuple[RequestView, ...] = ()
        if self.request_events.awaits_evidence and not advisor.is_idle:
            grown = tuple(map(self._view, self.request_events.grown(self.requests)))
        advisor.begin_step(len(self.running), grown)
        if advisor.is_consulted:
            if advisor.acting:
                self._override.leave_free(advisor.reserve())
            if self.waiting:
                allowed = self._ask(advisor)
        if self.waiting:
            advisor.hold_back(self._stock_watermark or 0)
        if not advisor.acting:
            self._override.restore()
        return allowed

    def _ask(self, advisor: GuardedAdvisor) -> int:
        """Order the queue and the running sequences; return how many sequences may run.

        With vLLM's priority queue the orders stay vLLM's, and only admissions are limited.
        """
        waiting, running, allowed = self.waiting, len(self.running), sys.maxsize
        reorders = advisor.acting and can_reorder(self)
        if not reorders and not advisor.limits_admission:
            return allowed
        # A priority queue is a heap, whose requests have no places.
        queue = QueueView(waiting if can_reorder(self) else list(waiting), self._view)
        # The order does not matter for a single sequence, or if all or none are admitted.
        if reorders and len(waiting) > 1 and self._order_matters():
            order = advisor.order(queue, self._free_to_admit())
            if order is not None:
                self._override.reorder_queue(order)
        if advisor.limits_admission:
            count = advisor.admit_limit(running, queue, self._free_to_admit())
            if advisor.acting:
                # vLLM counts sessions that wait for input as running, and first admits sequences
                # that hold memory.
                exempt = self.num_waiting_for_streaming_input + len(self.kv_holding_waiting)
                allowed = running + count + exempt
        # With an empty queue no sequence gains by the choice of a victim, so vLLM's is kept.
        if reorders and self._runs_out():
            order = advisor.victims([self._view(request) for request in self.running])
            if order is not None:
                self._override.reorder_running(order)
        return allowed

    def _account(self, output: Any) -> None:
        """Record the sequences that a step has admitted."""
        advisor = self.advisor
        assert advisor is not None
        if advisor.is_idle:
            return
        new, resumed = output.scheduled_new_reqs, output.scheduled_cached_reqs.resumed_req_ids
        if not new and not resumed:
            return
        names = [*(request.req_id for request in new), *resumed]
        if self.request_events.reads_tokens:
            for name in names:
                self.request_events.admitted(self.requests[name])
        at = self.clock()
        cached, deferred = _NONE_CACHED, _NONE_DEFERRED
        if resumed:
            tokens, requests = output.num_scheduled_tokens, self.requests
            # vLLM has already added the tokens of this step.
            cached = {r: requests[r].num_computed_tokens - tokens.get(r, 0) for r in resumed}
        if self.deferred_waiting:
            deferred = {request.request_id for request in self.deferred_waiting}
        advisor.counts.admitted(names, at, cached=cached, deferred=deferred)
        advisor.on_events([Admitted(name, at) for name in names])
        if advisor.mode == "shadow":
            self._compare(advisor, names)

    def _compare(self, advisor: GuardedAdvisor, names: Sequence[str]) -> None:
        """Compare vLLM's admissions with the advisor's."""
        if not self.waiting and not advisor.is_limiting:
            advisor.all_admitted(len(names))
        elif advisor.compares_admission(len(names)):
            deferred = self.deferred_waiting
            advisor.compare_admission(
                [self._view(self.requests[name]) for name in names],
                [self._view(request) for request in self.waiting if request not in deferred],
            )

    # -- events ---------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Queue a request, or the next input of a session with this id."""
        new = request.request_id not in self.requests
        super().add_request(request)  # type: ignore[misc]  # mixin
        if new and self.advisor is not None and request.request_id in self.requests:
            self._guarded(None, self._arrived, request)

    def _arrived(self, request: Any) -> None:
        is_predicted = self.request_events.arrived(request)
        has_begun = request.num_output_tokens > 0
        view = self._view(request, is_new=not has_begun)
        if self.switchback is not None and self.switchback.is_running and is_predicted:
            self.switchback.arrived(request.request_id, self.clock())
        assert self.advisor is not None
        self.advisor.on_events((Arrived(view, self.clock(), is_predicted),))
        if has_begun:  # at once, as its prediction request changes with every token
            self.advisor.flush()

    def _preempt_request(self, request: Any, *args: Any, **options: Any) -> None:
        if self.advisor is not None and self.advisor.mode == "shadow":
            self._guarded(None, self._compare_preemption, request)
        computed = request.num_computed_tokens
        super()._preempt_request(request, *args, **options)  # type: ignore[misc]  # mixin
        if self.advisor is not None:
            self._guarded(None, self._preempted, request, computed)

    def _compare_preemption(self, request: Any) -> None:
        assert self.advisor is not None
        self.advisor.compare_preemption(
            self._view(request), lambda: [self._view(other) for other in self.running]
        )

    def _preempted(self, request: Any, computed: int) -> None:
        assert self.advisor is not None
        self.advisor.counts.preempted(request.request_id, computed)
        if self.switchback is not None and self.switchback.is_running:
            self.switchback.preempted(self.clock())
        self.advisor.on_events((Preempted(request.request_id, self.clock()),))

    def _free_request(self, request: Any, *args: Any, **options: Any) -> Any:
        if self.advisor is not None:
            self._guarded(None, self._finished, request)
        return super()._free_request(request, *args, **options)  # type: ignore[misc]  # mixin

    def _finished(self, request: Any) -> None:
        event = self.request_events.finished(request, self.clock())
        if event is not None:
            self._pass_end(request, event)

    def _handle_stopped_request(self, request: Any) -> bool:
        if self.advisor is not None and request.resumable:
            self._guarded(None, self._end_turn, request)
        return bool(super()._handle_stopped_request(request))  # type: ignore[misc]  # mixin

    def _end_turn(self, request: Any) -> None:
        event = self.request_events.end_turn(request, self.clock())
        if event is not None:
            self._pass_end(request, event)

    def _pass_end(self, request: Any, event: Event) -> None:
        assert self.advisor is not None
        if self.switchback is not None and isinstance(event, Finished):
            self.switchback.ended(event.sequence_id, event.seconds, event.reason)
        self.advisor.on_events((event,))
        if request.resumable:  # at once, as the session may continue under the same id
            self.advisor.flush()

    def _update_request_as_session(self, session: Any, update: Any) -> None:
        super()._update_request_as_session(session, update)  # type: ignore[misc]  # mixin
        if self.advisor is not None:
            self._guarded(None, self._arrived, session)

    # -- faults --------------------------------------------------------------------------------

    def _guarded(self, fallback: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(*args)``, or ``fallback`` if it raises, so that vLLM's step goes on.

        The advisor has its own circuit breaker; this guard is for the code around it. An error of a
        caller's signal handler goes on to the caller, and so does any error if the circuit breaker
        is transparent (in a replay).
        """
        try:
            return function(*args)
        except Exception as error:  # any error, as the engine must go on
            is_reraised = False
            try:
                assert self.advisor is not None
                is_reraised = self.advisor.breaker.is_transparent or from_signal_handler(error)
                self.advisor.failed(error)
                if function == self._prepare:  # before vLLM's step, so the order may change
                    self._override.restore()
            except Exception as second_error:  # noqa: BLE001  # the fault handling has failed too
                self._give_up(second_error)
            if is_reraised:
                raise
            return fallback

    def _give_up(self, error: Exception) -> None:
        """Disable prediction until a restart, after an error in the fault handling."""
        advisor, self.advisor = self.advisor, None
        if advisor is not None:
            self._is_abandoned = True  # the next step restores vLLM's order first
        if self._stock_watermark is not None:
            self.kv_cache_manager.watermark_blocks = self._stock_watermark
        try:
            if advisor is not None:
                advisor.breaker.state = "stuck"
                advisor.breaker.reason = f"exception: {type(error).__name__}, after a fault"
            LOG.error(
                "lifetime prediction and its record are off until restart (%s, after a fault)",
                type(error).__name__,
            )
            LOG.debug("what was raised", exc_info=error)
        except Exception:  # noqa: BLE001  # logging has failed too, so nothing is left to do
            return

    # -- as the guard's engine -----------------------------------------------------------------

    def sequences(self) -> tuple[Sequence[Arrived], Sequence[Admitted]]:
        """Return arrivals of all present sequences, and admissions of the running ones."""
        events, running = self.request_events, list(self.running)
        queued = (*self.waiting, *self.kv_holding_waiting)
        waiting = [request for request in queued if request.request_id not in events.between]
        events.restart(running)
        at = self.clock()
        arrived = [
            Arrived(self._view(request), at, not is_beam_step(request))
            for request in (*waiting, *running)
        ]
        # The time of admission is unknown, so the arrival stands in.
        return arrived, [Admitted(r.request_id, r.arrival_time) for r in running]

    def present(self) -> Container[str]:
        """Return the ids of all present sequences; drop the data of others."""
        self.request_events.keep(self.requests)
        present: Container[str] = self.requests
        return present

    def take_over(self) -> None:
        """Begin to change orders and the watermark."""
        self._override.begin()

    def give_back(self) -> None:
        """Restore vLLM's own watermark."""
        self._override.give_back()

    def restore(self) -> None:
        """Put queue and running sequences in vLLM's order if they are in another."""
        self._override.restore()

    # -- vLLM's queue and memory ---------------------------------------------------------------

    def _view(self, request: Any, *, is_new: bool = False) -> RequestView:
        return RequestView(request, self._converter, self.cached_tokens, is_new=is_new)

    def cached_tokens(self, request: Any) -> int:
        """Return the number of tokens of a request whose KV need not be computed (again).

        For a waiting request, the tokens in the prefix cache; for a running one, the tokens in
        blocks that other requests share, which survive its preemption.
        """
        manager = self.kv_cache_manager
        if not manager.enable_caching:
            return 0
        if request.num_computed_tokens:
            # Requests that share a block share all blocks before it.
            blocks = manager.coordinator.get_blocks(request.request_id)[0]
            shared = bisect_left(blocks, True, key=lambda block: block.ref_cnt < 2)
            return shared * self.block_size
        hit = manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 1
        )
        return int(hit[1])

    def set_aside_blocks(self) -> int:
        """Return the free blocks that admission withholds for the running sequences."""
        watermark = int(self.kv_cache_manager.watermark_blocks) if self.running else 0
        if self.advisor is None:
            return watermark
        return max(watermark, self.advisor.growth())

    def _free_to_admit(self) -> int:
        """Return the free blocks for newcomers, without those that running ones need next."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        if not self.running:
            return int(free)
        aside = self.kv_cache_manager.watermark_blocks + self._inflight_prefill_reserved_blocks()
        return int(free) - aside - len(self.running) // self.block_size

    def _order_matters(self) -> bool:
        """Return True if some of the queue may be admitted in this step and others not."""
        waiting, running, free = self.waiting, len(self.running), self._free_to_admit()
        # Running sequences may need fewer blocks than expected, so those count here.
        if free + running // self.block_size < 1 or running >= self.max_num_active_reqs:
            return False
        if len(waiting) > _FEW or running + len(waiting) > self.max_num_active_reqs:
            return True
        tokens = [request.num_tokens for request in waiting]
        room = self.max_num_scheduled_tokens - self._prefill_left()
        room -= running * (1 + self.num_lookahead_tokens)
        blocks = sum(-(-count // self.block_size) for count in tokens)
        return sum(tokens) > room or blocks > free

    def _prefill_left(self) -> int:
        """Return the remaining prompt tokens in prefill, at most one step's budget each."""
        if not self._inflight_prefills:
            return 0
        return sum(
            min(r.num_tokens - r.num_computed_tokens, self.max_num_scheduled_tokens)
            for r in self._inflight_prefills
        )

    def _runs_out(self) -> bool:
        """Return True if this step may run out of blocks."""
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        block, begun = self.block_size, self._inflight_prefills
        need = len(self.running)
        if begun:
            need += self._prefill_left() // block
        if free >= need:  # a bound that needs no loop over the sequences
            return False
        if self.num_lookahead_tokens or len(self.kv_cache_config.kv_cache_groups) > 1:
            return True
        # The sequences whose last block is full; one in prefill may begin one more than it fills.
        # This exact count is worth its cost, since a choice of victims takes half a vLLM step.
        need = sum(request.num_computed_tokens % block == 0 for request in self.running)
        need += self._prefill_left() // block + len(begun)
        return bool(free < need)


class LifetimeScheduler(LifetimeMixin, Scheduler):  # type: ignore[misc]  # vLLM is untyped here
    """The scheduler of engines without asynchronous scheduling."""
