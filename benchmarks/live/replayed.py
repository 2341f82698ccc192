"""The same requests through the replay: what it says of the arms, and the watermark to send in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from live.arms import Setting, policies
from sagellm_lifetime.replay.compare import Replayed, replay
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.policies import POLICIES, WATERMARKS
from sagellm_lifetime.replay.trace import TraceRequest


def tuned_watermark(trace: Sequence[TraceRequest], setting: Setting, cost: StepCost) -> float:
    """The watermark above 0 with the lowest mean latency, by replays of the very load.

    As good a rival as can be had: it is tuned on what it will serve.
    """
    grid = tuple({"watermark": share} for share in WATERMARKS if share)
    rival = replace(POLICIES["fcfs-watermark"], grid=grid)
    done = replay(trace, setting.replayed(), cost, rival)
    return float(done.overrides["watermark"])


def replayed(
    trace: Sequence[TraceRequest],
    setting: Setting,
    cost: StepCost,
    predictor: Any,
    watermark: float,
) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of every policy, in the form of ``figures.py``, on the fitted clock."""
    known = policies(predictor, watermark)
    return {
        name: _as_figures(replay(trace, setting.replayed(), cost, policy))
        for name, policy in known.items()
    }


def replayed_as_it_came(
    trace: Sequence[TraceRequest],
    arrivals: Mapping[str, np.ndarray],
    setting: Setting,
    cost: StepCost,
    predictor: Any,
    watermark: float,
) -> dict[str, dict[str, dict[str, float]]]:
    """The same, each policy at the arrivals that the engine saw in its run."""
    known = policies(predictor, watermark)
    found = {}
    for name, when in arrivals.items():
        moved = [replace(r, arrival=float(t)) for r, t in zip(trace, when, strict=True)]
        moved.sort(key=lambda request: request.arrival)
        found[name] = _as_figures(replay(moved, setting.replayed(), cost, known[name]))
    return found


def _as_figures(done: Replayed) -> dict[str, dict[str, float]]:
    metrics = done.metrics
    fitted = {
        name: float(metrics[f"{name}_s"])
        for name in ("mean_latency", "p50_latency", "p99_latency", "mean_ttft")
    }
    return {
        "fitted": {**fitted, "goodput": float(metrics["goodput"])},
        "counts": {
            "steps": metrics["steps"],
            "preemptions": metrics["preemptions"],
            "recomputed_tokens": metrics["recomputed_tokens"],
            "tokens_per_s": metrics["tokens_per_s"],
        },
    }
