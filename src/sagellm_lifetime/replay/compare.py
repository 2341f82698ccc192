"""The replay of a trace with a policy, tuned over its grid if it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.metrics import metrics
from sagellm_lifetime.replay.policies import ReplayPolicy
from sagellm_lifetime.replay.result import RunResult
from sagellm_lifetime.replay.run import Run
from sagellm_lifetime.replay.trace import TraceRequest


@dataclass(frozen=True)
class Replayed:
    """The run of a policy.

    Attributes:
        policy: the policy.
        result: times and counts of each request.
        metrics: figures of the run.
        overrides: engine settings that the policy changed.
    """

    policy: ReplayPolicy
    result: RunResult
    metrics: dict[str, float | int]
    overrides: Mapping[str, Any]


def replay(
    trace: Sequence[TraceRequest],
    settings: EngineSettings,
    cost: StepCost,
    policy: ReplayPolicy,
    *,
    concurrency: int | None = None,
    tuned_for: str = "mean_latency_s",
    progress: Callable[[int], None] | None = None,
) -> Replayed:
    """Return the run of a policy, with the choice of its grid that is best on this trace.

    Args:
        trace: requests in their order of arrival.
        settings: of the engine.
        cost: model of the seconds of a step.
        policy: rules of order, admission and preemption.
        concurrency: largest number of open requests at a time; None for no limit.
        tuned_for: key of the metrics whose lowest value wins; ties go to the earlier choice.
        progress: called with the number of finished requests of the current choice.
    """
    best: Replayed | None = None
    for choice in policy.grid or ({},):
        overrides = {**policy.overrides, **choice}
        result = Run(
            trace,
            replace(settings, **overrides),
            cost,
            policy,
            concurrency=concurrency,
            progress=progress,
        ).execute()
        run = Replayed(policy, result, metrics(result), overrides)
        if best is None or run.metrics[tuned_for] < best.metrics[tuned_for]:
            best = run
    assert best is not None
    return best
