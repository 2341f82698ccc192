"""The request rates at which an engine is relaxed, at its knee, or overloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.policies import policy
from sagellm_lifetime.replay.result import RunResult
from sagellm_lifetime.replay.run import Run
from sagellm_lifetime.replay.trace import TraceRequest, at_once, at_rate

TRIES = 8


@dataclass(frozen=True, slots=True)
class Load:
    """A named load: a share of the capacity, corrected by the queueing of vLLM's default.

    Attributes:
        share: initial share of the capacity.
        least: lower bound on the wait's share of the mean latency, relative to that share when all
            requests arrive at once.
        most: upper bound on the wait's share of the mean latency.
        factor: factor on the rate after each try out of these bounds.
    """

    share: float
    least: float
    most: float
    factor: float


LOADS = {
    "relaxed": Load(0.3, 0.0, 0.01, 0.6),
    "knee": Load(0.9, 0.05, 1.0, 1.25),
    "overload": Load(1.5, 0.8, 1.0, 1.5),
}


@dataclass(frozen=True)
class Calibrated:
    """A trace at a load.

    Attributes:
        trace: its requests, at ``rate`` of them a second.
        capacity: requests a second of vLLM's default; 0 if the load was a number.
        default: the run of vLLM's default at this load, if the search made it.
        reached: True if its wait is within the bounds of the load; always for a number.
    """

    trace: list[TraceRequest]
    rate: float
    capacity: float = 0.0
    default: RunResult | None = None
    reached: bool = True


def capacity(trace: Sequence[TraceRequest], settings: EngineSettings, cost: StepCost) -> float:
    """Return the requests a second that vLLM's default finishes on this trace.

    All requests arrive at once; the tokens generated while some of them still wait count, per
    second and per mean output. (The time after that measures the longest request, not the engine.)
    If the engine admits all of them at once, the whole run counts.
    """
    return _throughput(_default(at_once(trace), settings, cost))


def wait_share(result: RunResult) -> float:
    """Return the mean time that a request did not run, as a share of the mean latency."""
    return float(result.waited.mean() / (result.finish - result.arrival).mean())


def at_load(
    load: str,
    trace: Sequence[TraceRequest],
    settings: EngineSettings,
    cost: StepCost,
    progress: Callable[[int, float], None] | None = None,
) -> Calibrated:
    """Return the trace at a load: requests a second, or a name.

    ``relaxed`` is 0.3 of the capacity, reduced while requests under vLLM's default wait for more
    than 1 % of their mean latency (bursts). ``knee`` is 0.9 of it, raised while the share of the
    wait is below 5 % of that share when all arrive at once. ``overload`` is 1.5 times the capacity,
    raised until it is 80 %: a short sample of long answers fills the pool slowly, and may end
    before it does. Not every trace reaches the load in :data:`TRIES` tries: requests with the same
    arrival time wait for each other at any rate.

    Args:
        load: a name or a number.
        trace: requests to replay.
        settings: of the engine.
        cost: model of the seconds of a step.
        progress: called with the number of the try (0 for all at once) and its finished share.

    Raises:
        UnknownNameError: if the load is neither a number nor a name.
        RequestError: if it is a number not above 0.
    """
    if load not in LOADS:
        try:
            rate = float(load)
        except ValueError:
            known = [*LOADS, "a number (requests a second)"]
            raise UnknownNameError("load", load, known) from None
        return Calibrated(at_rate(trace, rate), rate)

    def default(attempt: int, trace: Sequence[TraceRequest]) -> RunResult:
        def report(done: int) -> None:
            if progress is not None:
                progress(attempt, done / len(trace))

        return _default(trace, settings, cost, report)

    target, all_at_once = LOADS[load], default(0, at_once(trace))
    capacity_rate = _throughput(all_at_once)
    least_wait = target.least * wait_share(all_at_once)
    rate = target.share * capacity_rate
    for attempt in range(1, TRIES + 1):
        if attempt > 1:
            rate *= target.factor
        scaled = at_rate(trace, rate)
        result = default(attempt, scaled)
        reached = least_wait <= wait_share(result) <= target.most
        if reached:
            break
    return Calibrated(scaled, rate, capacity_rate, result, reached)


def _default(
    trace: Sequence[TraceRequest],
    settings: EngineSettings,
    cost: StepCost,
    progress: Callable[[int], None] | None = None,
) -> RunResult:
    engine = replace(settings, watermark=0.0)
    return Run(trace, engine, cost, policy("fcfs"), progress=progress).execute()


def _throughput(result: RunResult) -> float:
    if result.backlog_tokens:
        rate = result.backlog_tokens / result.backlog_s
    else:
        rate = float(result.output.sum() / result.finish.max())
    return rate / float(result.output.mean())
