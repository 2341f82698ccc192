"""How fast a trace has to come for the engine to be relaxed, at its knee, or overloaded."""

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
    """A named load: a share of the capacity, corrected until vLLM's default queues as it should.

    Attributes:
        share: of the capacity, to begin with.
        least: the wait's share of the mean latency is at least this much of what it is when all
            come at once …
        most: … and the share is at most this.
        factor: what the rate is multiplied by until it is so.
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
        capacity: requests a second of vLLM's default; 0 where the load was a number.
        default: the run of vLLM's default at this load, where it was made on the way.
        reached: whether it then queues as the load wants it; always where the load was a number.
    """

    trace: list[TraceRequest]
    rate: float
    capacity: float = 0.0
    default: RunResult | None = None
    reached: bool = True


def capacity(trace: Sequence[TraceRequest], settings: EngineSettings, cost: StepCost) -> float:
    """Requests a second that vLLM's default gets done of this trace in this setting.

    All requests are there at once; what counts are the tokens generated while some of them still
    wait, per second and per mean output. (The time after that measures the longest request, not the
    engine.) Where the engine takes all of them in at once it counts to the end.
    """
    return _throughput(_default(at_once(trace), settings, cost))


def wait_share(result: RunResult) -> float:
    """Mean time a request was there and not running, as a share of its mean latency."""
    return float(result.waited.mean() / (result.finish - result.arrival).mean())


def at_load(
    load: str,
    trace: Sequence[TraceRequest],
    settings: EngineSettings,
    cost: StepCost,
    progress: Callable[[int, float], None] | None = None,
) -> Calibrated:
    """The trace at a load: requests a second, or a name.

    ``relaxed`` is 0.3 of the capacity, less where vLLM's default would still wait for more than
    1 % of its mean latency (bursts); ``knee`` is 0.9 of it, more where it does not yet wait for
    5 % of what it does when all come at once; ``overload`` is 1.5 times the capacity, more until it
    waits for 80 % of that: a short sample of long answers takes a while to fill the pool, and may
    be over before it does. Not every trace gets there in :data:`TRIES` tries: requests that come at
    the same moment wait for each other at any rate.

    Args:
        load: a name or a number.
        trace: to be replayed.
        settings: of the engine.
        cost: of a step.
        progress: called now and then with the number of the try (all at once is try 0) and the
            share of it that is done.

    Raises:
        UnknownNameError: neither a number nor a name.
        RequestError: a number not above 0.
    """
    if load not in LOADS:
        try:
            rate = float(load)
        except ValueError:
            known = [*LOADS, "a number (requests a second)"]
            raise UnknownNameError("load", load, known) from None
        return Calibrated(at_rate(trace, rate), rate)

    def default(tried: int, trace: Sequence[TraceRequest]) -> RunResult:
        def tell(done: int) -> None:
            if progress is not None:
                progress(tried, done / len(trace))

        return _default(trace, settings, cost, tell)

    wanted, together = LOADS[load], default(0, at_once(trace))
    able, least = _throughput(together), LOADS[load].least * wait_share(together)
    rate = wanted.share * able
    for tried in range(1, TRIES + 1):
        if tried > 1:
            rate *= wanted.factor
        found = at_rate(trace, rate)
        result = default(tried, found)
        reached = least <= wait_share(result) <= wanted.most
        if reached:
            break
    return Calibrated(found, rate, able, result, reached)


def _default(
    trace: Sequence[TraceRequest],
    settings: EngineSettings,
    cost: StepCost,
    tell: Callable[[int], None] | None = None,
) -> RunResult:
    engine = replace(settings, watermark=0.0)
    return Run(trace, engine, cost, policy("fcfs"), progress=tell).execute()


def _throughput(together: RunResult) -> float:
    if together.backlog_tokens:
        rate = together.backlog_tokens / together.backlog_s
    else:
        rate = float(together.output.sum() / together.finish.max())
    return rate / float(together.output.mean())
