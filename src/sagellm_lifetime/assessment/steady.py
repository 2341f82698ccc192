"""The figures of a run in its steady part: ramp and drain left out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.replay.result import RunResult

RAMP: Final = 0.25
"""Share of the requests, by arrival, that come while the engine fills."""
DRAIN: Final = 0.1
"""Share of the requests, by arrival, at the end: they keep the load up until the others finish."""
WAIT_S: Final = 0.5
"""Seconds not running that count as waiting; less is the rest of a step."""
NOBODY: Final = 0.01
"""Share of waiting requests, and of preemptions, up to which nobody waits."""
KEEPS_UP: Final = 0.9
"""Least share of the tokens due in the steady part that an engine which keeps up generates."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The steady part of a run; times in simulated seconds.

    Attributes:
        requests: requests that are measured.
        mean_s: mean latency.
        p50_s: median latency.
        p99_s: latency of the slowest 1 %.
        ttft_s: mean time to the first token.
        p99_ttft_s: that of the slowest 1 %.
        worst_wait_s: longest time that a request was not running.
        within: share of requests within the times of the objective (goodput).
        waiting: share of requests that waited longer than :data:`WAIT_S`.
        kept_up: tokens generated in the steady part, as a share of those that would have been
            without waiting; below :data:`KEEPS_UP` the queue grows, and latencies grow with the
            length of the replay.
        preemptions: of the measured requests.
    """

    requests: int
    mean_s: float
    p50_s: float
    p99_s: float
    ttft_s: float
    p99_ttft_s: float
    worst_wait_s: float
    within: float
    waiting: float
    kept_up: float
    preemptions: int

    @property
    def nobody_waits(self) -> bool:
        """Return True if at most :data:`NOBODY` of the requests wait, and as few are preempted.

        A preempted request may run again within :data:`WAIT_S`, but it is computed twice.
        """
        return self.waiting <= NOBODY and self.preemptions <= NOBODY * self.requests

    @property
    def keeps_up(self) -> bool:
        """Return True unless the queue grows."""
        return self.kept_up >= KEEPS_UP

    def meets(self, objective: Objective) -> bool:
        """Return True if enough requests are within the objective and the queue does not grow."""
        return self.keeps_up and self.within >= objective.share

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def steady_figures(result: RunResult, objective: Objective) -> Figures:
    """Return the figures of the requests of a run that arrive in its steady part."""
    n = len(result.arrival)
    begin, end = math.floor(RAMP * n), max(math.ceil((1 - DRAIN) * n), math.floor(RAMP * n) + 1)
    part = slice(begin, end)
    latency = (result.finish - result.arrival)[part]
    ttft = (result.first - result.arrival)[part]
    waited = result.waited[part]
    return Figures(
        requests=end - begin,
        mean_s=float(latency.mean()),
        p50_s=float(np.quantile(latency, 0.5)),
        p99_s=float(np.quantile(latency, 0.99)),
        ttft_s=float(ttft.mean()),
        p99_ttft_s=float(np.quantile(ttft, 0.99)),
        worst_wait_s=float(waited.max()),
        within=float(objective.met(result)[part].mean()),
        waiting=float((waited > WAIT_S).mean()),
        kept_up=_kept_up(result, float(result.arrival[begin]), float(result.arrival[end - 1])),
        preemptions=int(result.preempted[part].sum()),
    )


def _kept_up(result: RunResult, begin: float, end: float) -> float:
    """Return the tokens generated between two times, as a share of those without any waiting."""

    def generated(first: np.ndarray, last: np.ndarray) -> float:
        lasted = np.maximum(last - first, 1e-9)
        inside = np.minimum(last, end) - np.maximum(first, begin)
        return float((result.output * np.clip(inside / lasted, 0.0, 1.0)).sum())

    due = generated(result.arrival, result.finish - result.waited)
    return generated(result.arrival + result.waited, result.finish) / due if due > 0 else 1.0
