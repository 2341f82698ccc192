"""A run's log, and what a step of the engine costs by all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sagellm_lifetime.replay.cost import StepCost


class Log(NamedTuple):
    """What ``accounts.py`` wrote of the requests of a load; warming up is left out.

    Attributes:
        steps: one object per step; ``seconds`` is added.
        requests: by key.
        offset: number of the first step.
    """

    steps: list[dict[str, Any]]
    requests: dict[str, dict[str, Any]]
    offset: int


def read(path: Path, keys: Iterable[str]) -> Log:
    """Read a log, as far as it is about the requests of these keys.

    Raises:
        SystemExit: some of them never ended.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    requests = {line["request"]: line for line in lines if "request" in line}
    wanted = {key: requests[key] for key in keys if key in requests}
    missing = sum(key not in requests for key in keys)
    if missing:
        raise SystemExit(f"{path}: {missing} requests never ended")
    begin = min(line["came"] for line in wanted.values())
    end = max(line["last"] for line in wanted.values())
    steps = [line for line in lines if "step" in line and begin <= line["step"] <= end]
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        # A step lasts until the next begins, unless there was nothing left to do.
        busy = after is not None and step["left"] > 0
        step["seconds"] = (after["start"] if busy else step["end"]) - step["start"]
    return Log(steps, wanted, begin)


def fit_cost(steps: Sequence[dict[str, Any]], name: str = "fitted") -> StepCost:
    """The linear step cost that comes nearest to all these steps, in the sum of squares.

    No part of it is negative: what would be is left out, and the rest fitted again. The seconds of
    all steps together come out right.
    """
    parts = ("decodes", "prefill", "context")
    X = np.array([[1.0, *(step[part] for part in parts)] for step in steps])
    y = np.array([step["seconds"] for step in steps])
    used = [0, 1, 2, 3]
    while True:
        found, *_ = np.linalg.lstsq(X[:, used], y, rcond=None)
        if found[1:].min(initial=0.0) >= 0.0:
            break
        used.pop(1 + int(found[1:].argmin()))
    weights = np.zeros(4)
    weights[used] = found
    said = X @ weights
    spread = ((y - y.mean()) ** 2).sum()
    explained = 1.0 - ((y - said) ** 2).sum() / spread if spread else 1.0
    return StepCost(
        name,
        base=float(weights[0]),
        per_decode=float(weights[1]),
        per_prefill_token=float(weights[2]),
        per_context_token=float(weights[3]),
        source=f"{len(steps):,} steps of the runs reported here",
        fit=f"R² {explained:.3f}, median error of a step {np.median(np.abs(said / y - 1)):.1%}",
    )


def pace(log: Log, cost: StepCost) -> float:
    """How long the steps took, as a multiple of what they cost."""
    said = sum(cost.seconds(s["decodes"], s["prefill"], s["context"]) for s in log.steps)
    return sum(step["seconds"] for step in log.steps) / said


def as_they_came(log: Log, keys: Sequence[str], cost: StepCost) -> np.ndarray:
    """Arrivals of these requests on a clock that advances by what steps cost, and when idle.

    A replay of them has the load that the engine had, whatever else the machine did meanwhile.
    """
    clock, begins = 0.0, []
    for step, after in zip(log.steps, [*log.steps[1:], None], strict=True):
        begins.append(clock)
        clock += cost.seconds(step["decodes"], step["prefill"], step["context"])
        if after is not None and not step["left"]:
            clock += after["start"] - step["end"]
    arrivals = [log.requests[key]["arrival"] for key in keys]
    found = np.interp(arrivals, [step["start"] for step in log.steps], begins)
    return found - found.min()


def describe(cost: StepCost) -> str:
    """A fitted cost in one line."""
    return (
        f"{1e3 * cost.base:.1f} ms a step, {1e3 * cost.per_decode:.2f} ms a decoding sequence, "
        f"{1e3 * cost.per_prefill_token:.2f} ms a prefill token, "
        f"{1e6 * cost.per_context_token:.2f} µs a token of context; {cost.fit}; {cost.source}"
    )


def capacity(log: Log) -> float:
    """Requests a second that were done while others waited: as ``replay/load.py`` has it."""
    busy = [step for step in log.steps if step["waiting"]] or log.steps
    seconds = sum(step["seconds"] for step in busy)
    lengths = [request["output"] for request in log.requests.values()]
    return sum(step["decodes"] for step in busy) / seconds / float(np.mean(lengths))
