"""What prediction and policy cost per step, beside vLLM's scheduler itself, in one run.

    PYTHONPATH=src python benchmarks/policy_cost.py [--trace azure_conv] [--running 256]

Needs the ``[vllm]`` extra and the data folder. A closed loop keeps ``--running`` requests under way
through the real scheduler; CPU time of one thread inside our hooks (predictions, learning and
policies) against that of everything else the scheduler does in a step. Steps at which fewer run, at
the beginning and the end, do not count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, load, single_thread, table

single_thread()

HOOKS = ("schedule", "add_request", "_preempt_request", "_free_request")


def clocked() -> tuple[type, dict[str, float]]:
    """Our scheduler with a clock on each side of our hooks: all of it, and the engine's share."""
    from sagellm_lifetime.engines.vllm.scheduler import LifetimeMixin, Scheduler

    spent = {"all": 0.0, "engine": 0.0}

    def timed(name: str, owner: type, account: str) -> Any:
        inner = getattr(owner, name)

        def call(self: Any, *args: Any, **options: Any) -> Any:
            started = time.thread_time()
            try:
                return inner(self, *args, **options)
            finally:
                spent[account] += time.thread_time() - started

        return call

    engine = type(
        "Engine", (Scheduler,), {name: timed(name, Scheduler, "engine") for name in HOOKS}
    )
    ours = type("Ours", (LifetimeMixin, engine), {})
    return type("Clocked", (ours,), {name: timed(name, ours, "all") for name in HOOKS}), spent


def measure(name: str, options: argparse.Namespace, *, tight: bool) -> list[str]:
    """One row: a trace, with room for all or with a pool that is short."""
    from sagellm_lifetime import create_predictor
    from sagellm_lifetime.core.splits import split
    from sagellm_lifetime.replay.cost import DEFAULT, cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.planned import planned_policies
    from sagellm_lifetime.replay.run import Run
    from sagellm_lifetime.replay.trace import make_trace, sample

    frame = load(options.data, name)
    assert frame is not None
    cut = split(frame)
    trace = make_trace(sample(cut.test, options.requests, seed=0), seed=0)
    per_request = np.mean([r.prompt_length + r.output_length for r in trace]) / 16
    need = max(-(-r.total // 16) for r in trace)
    blocks = max(int(per_request * options.running * (0.4 if tight else 4.0)), need + 2)
    engine = EngineSettings(
        blocks=blocks,
        max_num_seqs=options.running,
        prefix_caching="prefix_hashes" in frame.columns,
    )
    policy = planned_policies(create_predictor(options.predictor, seed=0).fit(cut.train))[
        "lifetime"
    ]
    clocks, spent = clocked()
    run = Run(trace, engine, cost_model(DEFAULT), policy, concurrency=options.running)
    run.scheduler.__class__ = clocks
    steps: list[tuple[float, float, int]] = []
    plain = run.scheduler.update_from_output
    before = dict(spent)

    def update(*args: Any) -> Any:
        started, inside = time.thread_time(), spent["all"] - spent["engine"]
        result = plain(*args)
        own = (spent["all"] - spent["engine"]) - inside  # learning, within the engine's call
        engine_share = time.thread_time() - started - own
        schedule = spent["engine"] - before["engine"]
        ours = (spent["all"] - before["all"]) - (spent["engine"] - before["engine"])
        before.update(spent)
        steps.append((ours, schedule + engine_share, len(run.scheduler.running)))
        return result

    run.scheduler.update_from_output = update
    run.execute()
    full = np.array([s[:2] for s in steps[1:] if s[2] >= 0.9 * options.running or tight])
    ours, own = full[:, 0] * 1e6, full[:, 1] * 1e6
    return [
        f"{name}, {'short of memory' if tight else 'room for all'}",
        f"{len(full):,}",
        f"{np.mean([s[2] for s in steps]):.0f}",
        f"{len(trace) / len(steps):.2f}",
        f"{own.mean():.0f}",
        f"{np.median(ours):.1f}",
        f"{ours.mean():.1f}",
        f"{100 * np.median(ours / own):.1f} %",
        f"{100 * ours.sum() / own.sum():.1f} %",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--trace", nargs="+", default=["servegen_reasoning", "azure_conv"])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--predictor", default="survival")
    options = parser.parse_args()
    rows = [
        measure(name, options, tight=tight) for name in options.trace for tight in (False, True)
    ]
    head = ["trace", "steps", "running", "requests a step", "engine µs", "ours µs, median"]
    print(table([*head, "ours µs, mean", "share, median step", "share of all"], rows))


if __name__ == "__main__":
    main()
