"""The log of each request of a run, from the scheduler's output alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sagellm_lifetime.replay.engine import STOP
from sagellm_lifetime.replay.result import RunResult, Samples
from sagellm_lifetime.replay.trace import TraceRequest


@dataclass(slots=True)
class _LiveRequest:
    """A request between arrival and finish.

    Attributes:
        request: the engine's.
        remaining: tokens still to generate.
        token: every generated token but the last, as the model would return it.
        last: the token that ends it.
        since: start of its present wait, simulated seconds.
        discarded: tokens computed before a preemption discarded them.
        computed: tokens computed by prefill chunks so far.
        admitted: True once it has run.
    """

    request: Any
    remaining: int
    token: list[int]
    last: list[int]
    since: float
    discarded: int = 0
    computed: int = 0
    admitted: bool = False


class RequestLog:
    """Counts and times of a run; per running sequence and step it only counts one token down."""

    def __init__(self, trace: Sequence[TraceRequest], scheduler: Any) -> None:
        self.place = {request.id: k for k, request in enumerate(trace)}
        self.came = self.done = 0
        self._scheduler = scheduler
        self._manager = scheduler.kv_cache_manager
        self._pool = self._manager.block_pool
        self._aside = getattr(scheduler, "set_aside_blocks", None)
        self._live: dict[str, _LiveRequest] = {}
        self._prefilling: dict[str, _LiveRequest] = {}
        self._fresh: list[str] = []  # got their first token in this step
        self._samples = Samples()
        self._result = RunResult(
            arrival=np.zeros(len(trace)),
            first=np.zeros(len(trace)),
            finish=np.zeros(len(trace)),
            waited=np.zeros(len(trace)),
            prompt=np.array([request.prompt_length for request in trace]),
            output=np.array([request.output_length for request in trace]),
            preempted=np.zeros(len(trace), dtype=np.int64),
            blocks=self._pool.get_num_free_blocks(),
        )

    @property
    def live(self) -> int:
        """Return the number of requests that have arrived and not finished."""
        return self.came - self.done

    def arrived(self, request: TraceRequest, engine_request: Any, now: float) -> None:
        """Record a request that goes to the scheduler at ``now``, simulated seconds."""
        self._result.arrival[self.came] = now
        self.came += 1
        token = [request.filler]
        last = [STOP] if request.finish_reason == "stop" else token
        self._live[request.id] = _LiveRequest(
            engine_request, request.output_length, token, last, now
        )

    def scheduled(self, out: Any, now: float) -> tuple[int, int]:
        """Record a scheduled step; return its prefill tokens and its number of decodes."""
        counts: dict[str, int] = out.num_scheduled_tokens
        for name in out.preempted_req_ids or ():
            self._preempted(name, now)
        for new in out.scheduled_new_reqs:
            self._admitted(new.req_id, counts[new.req_id], now)
        for name in out.scheduled_cached_reqs.resumed_req_ids:
            self._admitted(name, counts[name], now)
        prefill = chunks = 0
        for name in list(self._prefilling):
            count = counts.get(name, 0)
            if count:
                chunks += 1
                prefill += count
                self._chunk(name, count)
        self._result.prefill_tokens += prefill
        return prefill, len(counts) - chunks

    def tokens(self, counts: dict[str, int]) -> tuple[list[list[int]], list[str]]:
        """Return the sampled tokens per request of a step, and the ids that end with them."""
        live, prefilling = self._live, self._prefilling
        sampled: list[list[int]] = []
        ending: list[str] = []
        for name in counts:
            if name in prefilling:
                sampled.append([])
                continue
            state = live[name]
            state.remaining -= 1
            if state.remaining:
                sampled.append(state.token)
            else:
                sampled.append(state.last)
                ending.append(name)
        return sampled, ending

    def measure(self, now: float, seconds: float, step: int, tokens: int) -> None:
        """Record memory and queue during a step of ``seconds`` that begins at ``now``."""
        result = self._result
        free = self._pool.get_num_free_blocks()
        running = len(self._scheduler.running)
        waiting = self.live - running
        if self._aside is not None:
            aside = self._aside()
        else:
            aside = self._manager.watermark_blocks if running else 0
        result.reserved_unused_block_s += min(free, aside) * seconds
        if waiting:
            result.withheld_block_s += min(free, aside) * seconds
            result.idle_block_s += free * seconds
            result.backlog_s += seconds
            result.backlog_tokens += tokens
        if self._samples.wants(step):
            self._samples.add(now, result.blocks - free, running, waiting)

    def idle(self, now: float) -> None:
        """Record that all arrived requests are done and have released their blocks."""
        self._samples.add(now, self._result.blocks - self._pool.get_num_free_blocks(), 0, 0)

    def finished(self, ending: list[str], now: float) -> None:
        """Record the end of a step: first tokens, and the finished requests ``ending``."""
        result = self._result
        for name in self._fresh:
            result.first[self.place[name]] = now
        self._fresh.clear()
        for name in ending:
            result.finish[self.place[name]] = now
            del self._live[name]
        self.done += len(ending)

    def result(self, steps: int) -> RunResult:
        """Return the result at the end of the run."""
        result = self._result
        result.steps = steps
        result.memory = self._samples.kept
        return result

    def _preempted(self, name: str, now: float) -> None:
        state, place = self._live[name], self.place[name]
        self._result.preemptions += 1
        self._result.preempted[place] += 1
        state.since = now
        if self._prefilling.pop(name, None) is None:
            state.discarded = state.request.num_tokens - 1  # the newest token was never computed
        else:
            state.discarded = max(state.discarded, state.computed)

    def _admitted(self, name: str, count: int, now: float) -> None:
        state, result = self._live[name], self._result
        result.waited[self.place[name]] += now - state.since
        state.computed = state.request.num_computed_tokens - count
        if not state.admitted:
            state.admitted = True
            result.cached_tokens += state.computed
        self._prefilling[name] = state

    def _chunk(self, name: str, count: int) -> None:
        """Record ``count`` more tokens of a prefill, which may complete it."""
        state = self._prefilling[name]
        self._result.recomputed_tokens += max(min(count, state.discarded - state.computed), 0)
        state.computed += count
        if state.request.is_prefill_chunk:
            return
        del self._prefilling[name]
        if not state.request.num_output_tokens:
            self._fresh.append(name)
