"""One trace, one setting, several policies."""

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
    """A policy's run, its figures, and the overrides it ran with."""

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
    """Run a policy; where it has a grid, all of it, and give the run with the lowest ``tuned_for``.

    ``tuned_for`` is a key of the metrics; equal ones go to the earlier entry of the grid.
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
        found = Replayed(policy, result, metrics(result), overrides)
        if best is None or found.metrics[tuned_for] < best.metrics[tuned_for]:
            best = found
    assert best is not None
    return best
