"""How fast a trace has to come for the engine to be relaxed, at its knee, or overloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.policies import policy
from sagellm_lifetime.replay.run import Run
from sagellm_lifetime.replay.trace import TraceRequest, at_once, at_rate

LOADS = {"relaxed": 0.3, "knee": 0.9, "overload": 1.5}
"""Share of the capacity at which the requests of a named load arrive."""


def capacity(trace: Sequence[TraceRequest], settings: EngineSettings, cost: StepCost) -> float:
    """Requests a second that vLLM's default gets done of this trace in this setting.

    All requests are there at once; what counts are the tokens generated while some of them still
    wait, per second and per mean output. (The time after that measures the longest request, not the
    engine.) Where the engine takes all of them in at once it counts to the end.
    """
    result = Run(at_once(trace), replace(settings, watermark=0.0), cost, policy("fcfs")).execute()
    if result.backlog_tokens:
        rate = result.backlog_tokens / result.backlog_s
    else:
        rate = float(result.output.sum() / result.finish.max())
    return rate / float(result.output.mean())


def rate_of_load(
    load: str, trace: Sequence[TraceRequest], settings: EngineSettings, cost: StepCost
) -> float:
    """Requests a second of a load: a number, or a share of the capacity by its name.

    Raises:
        UnknownNameError: neither.
    """
    if load in LOADS:
        return LOADS[load] * capacity(trace, settings, cost)
    try:
        return float(load)
    except ValueError:
        raise UnknownNameError("load", load, [*LOADS, "a number (requests a second)"]) from None


def at_load(
    load: str, trace: Sequence[TraceRequest], settings: EngineSettings, cost: StepCost
) -> list[TraceRequest]:
    """The trace at a load, see :func:`rate_of_load`."""
    return at_rate(trace, rate_of_load(load, trace, settings, cost))
