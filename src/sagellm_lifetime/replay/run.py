"""The replay loop: requests arrive, the real scheduler decides, a cost model times the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sagellm_lifetime.core.errors import HistoryError, LifetimeError
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import (
    EngineSettings,
    build_scheduler,
    check_fits,
    make_requests,
)
from sagellm_lifetime.replay.policies import ReplayPolicy
from sagellm_lifetime.replay.request_log import RequestLog
from sagellm_lifetime.replay.result import RunResult
from sagellm_lifetime.replay.trace import TraceRequest

STALLED_STEPS = 10_000
"""Consecutive steps without work, after which a policy counts as stuck."""


class Run:
    """One replay of a trace; ``now`` is the simulated clock, also while the scheduler decides.

    Args:
        trace: requests sorted by arrival.
        settings: the engine; the policy may change some of them.
        cost: model of the seconds of a step.
        policy: rules of the scheduler.
        concurrency: number of open requests at all times, whatever their arrival (closed loop);
            ``None`` for an open loop.
        progress: called with the number of finished requests whenever some have finished.

    Attributes:
        now: simulated seconds.
        scheduler: the engine's scheduler.
        steps: steps done so far.
    """

    def __init__(
        self,
        trace: Sequence[TraceRequest],
        settings: EngineSettings,
        cost: StepCost,
        policy: ReplayPolicy,
        *,
        concurrency: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if not trace:
            raise HistoryError("the trace is empty: give a history with at least one request")
        check_fits(trace, settings)
        self.trace = trace
        self.cost = cost
        self.now = 0.0
        self.steps = 0
        self._concurrency = concurrency
        self._progress = progress
        length = settings.model_length(trace)
        self.scheduler = build_scheduler(settings, length, policy.scheduler())
        self.scheduler.clock = lambda: self.now
        self._make = make_requests(settings, length, policy.priority)
        self._log = RequestLog(trace, self.scheduler)
        if policy.install is not None:
            policy.install(self.scheduler, trace, self)

    def execute(self) -> RunResult:
        """Replay to the end.

        Raises:
            LifetimeError: if the policy leaves requests waiting for ever.
        """
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import RequestStatus

        cut_off = {
            "abort": RequestStatus.FINISHED_ABORTED,
            "error": RequestStatus.FINISHED_ERROR,
            "length": RequestStatus.FINISHED_LENGTH_CAPPED,
        }
        scheduler, log, cost = self.scheduler, self._log, self.cost
        started, cpu_started = time.perf_counter(), time.thread_time()
        cpu, stalled = 0.0, 0
        index: dict[str, int] = {}
        names: list[str] = []
        while log.done < len(self.trace):
            cpu += self._admit()
            if not log.live:
                log.idle(self.now)
                self.now = self.trace[log.came].arrival
                continue
            before = time.thread_time()
            out = scheduler.schedule()
            cpu += time.thread_time() - before
            scheduled = out.num_scheduled_tokens
            prefill, decodes = log.scheduled(out, self.now)
            context = sum([request.num_computed_tokens for request in scheduler.running])
            seconds = cost.seconds(decodes, prefill, context)
            stalled = 0 if scheduled else stalled + 1
            if stalled:
                self._stall(stalled)
            tokens, ending = log.tokens(scheduled)
            log.measure(self.now, seconds, self.steps, decodes)
            if list(scheduled) != names:
                names = list(scheduled)
                index = {name: place for place, name in enumerate(names)}
            self.now += seconds
            self.steps += bool(scheduled)
            before = time.thread_time()
            scheduler.update_from_output(out, ModelRunnerOutput(names, index, tokens))
            for name in ending:
                if name in scheduler.requests:  # not ended by the scheduler itself
                    reason = self.trace[log.place[name]].finish_reason
                    scheduler.finish_requests(name, cut_off[reason])
            cpu += time.thread_time() - before
            log.finished(ending, self.now)
            if ending and self._progress is not None:
                self._progress(log.done)
        log.idle(self.now)
        result = log.result(self.steps)
        result.scheduler_cpu_s = cpu
        result.cpu_s = time.thread_time() - cpu_started
        result.wall_s = time.perf_counter() - started
        return result

    def _admit(self) -> float:
        """Hand the requests that have arrived to the scheduler; return its CPU seconds."""
        log, trace, cpu = self._log, self.trace, 0.0
        while log.came < len(trace):
            request = trace[log.came]
            if self._concurrency is None:
                arrival = request.arrival
                if arrival > self.now:
                    break
            else:
                arrival = self.now
                if log.live >= self._concurrency:
                    break
            engine_request = self._make(request, arrival)
            log.arrived(request, engine_request, arrival)
            before = time.thread_time()
            self.scheduler.add_request(engine_request)
            cpu += time.thread_time() - before
        return cpu

    def _stall(self, stalled: int) -> None:
        """Raise LifetimeError if nothing was scheduled for too many steps in a row."""
        log = self._log
        if stalled > STALLED_STEPS:
            raise LifetimeError(
                f"the policy is stuck: {counted(log.live, 'request')} unfinished, nothing runs, "
                f"and nothing has been scheduled for {stalled} steps"
            )
