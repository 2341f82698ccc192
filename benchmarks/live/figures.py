"""The figures of a run, on three clocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from live.steps import Log
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.metrics import GOOD_SECONDS_PER_TOKEN

CLOCKS = ("steps", "fitted", "wall")
"""Engine steps; what these steps cost by one fit over all runs, s; what the client saw, s."""


def figures(log: Log, seen: Mapping[str, Any], cost: StepCost) -> dict[str, dict[str, float]]:
    """Figures by clock, and under ``counts`` those that no clock changes."""
    lines = [log.requests[key] for key in seen]
    came, first, last = (
        np.array([line[name] for line in lines]) - log.offset for name in ("came", "first", "last")
    )
    output = np.array([line["output"] for line in lines])
    fitted = [cost.seconds(s["decodes"], s["prefill"], s["context"]) for s in log.steps]
    until = np.concatenate([[0.0], np.cumsum(fitted)])
    sent = np.array([each["sent"] for each in seen.values()])
    waited = np.array([each["first"] for each in seen.values()]) - sent
    took = np.array([each["last"] for each in seen.values()]) - sent
    span = max(each["last"] for each in seen.values()) - sent.min()
    found = {
        "steps": _of(last - came + 1.0, first - came + 1.0),
        "fitted": _of(until[last + 1] - until[came], until[first + 1] - until[came]),
        "wall": _of(took, waited),
        "counts": {
            "requests": len(lines),
            "steps": len(log.steps),
            "preemptions": sum(line["preempted"] for line in lines),
            "recomputed_tokens": sum(line["recomputed"] for line in lines),
            "cached_tokens": sum(line["cached"] for line in lines),
            "tokens_per_s": float(output.sum() / span),
        },
    }
    for clock, latency in (("fitted", until[last + 1] - until[came]), ("wall", took)):
        found[clock]["goodput"] = float((latency / output <= GOOD_SECONDS_PER_TOKEN).mean())
    return found


def _of(latency: np.ndarray, ttft: np.ndarray) -> dict[str, float]:
    return {
        "mean_latency": float(latency.mean()),
        "p50_latency": float(np.quantile(latency, 0.5)),
        "p99_latency": float(np.quantile(latency, 0.99)),
        "mean_ttft": float(ttft.mean()),
    }


def order(means: Mapping[str, float]) -> list[str]:
    """Names from the best to the worst."""
    return sorted(means, key=lambda name: means[name])


def disagreements(live: Mapping[str, float], replayed: Mapping[str, float]) -> list[str]:
    """Pairs that one has in another order than the other, and by how much each."""
    names = order(live)
    found = []
    for i, better in enumerate(names):
        for worse in names[i + 1 :]:
            if replayed[better] > replayed[worse]:
                gap, other = live[worse] / live[better] - 1, replayed[better] / replayed[worse] - 1
                found.append(
                    f"{better} before {worse} by {gap:.1%} live, behind it by {other:.1%} replayed"
                )
    return found
