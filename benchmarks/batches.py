"""Throughput: the same requests, all there at once, and how soon the last of them is done.

    PYTHONPATH=src python benchmarks/batches.py --runs batches.jsonl [--data FOLDER] [--seeds 3]

Through vLLM's own scheduler and block pool, in simulated time, on several traces, sizes of memory
and step costs. Every setting and seed is one line of ``--runs``, so that an interrupted run goes on
where it stopped; the table goes to ``docs/batches.md``. Predictors are trained on the earlier 70 %
of a trace, requests are drawn from the later 30 % (those that the pool can hold), and predictors
learn online in simulated time. A minute or two a setting and core.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from common import DATA, load, say, single_thread, table

from sagellm_lifetime import create_predictor
from sagellm_lifetime.core.splits import split

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "batches.md"
BLOCK = 16
SPARE = 8
"""Blocks of the pool that no single request may need."""


class Batch(NamedTuple):
    """A trace, blocks of 16 tokens, and requests; the more requests, the less their longest one
    decides when all are done."""

    trace: str
    blocks: int
    requests: int


BATCHES = (
    Batch("servegen_reasoning", 3000, 400),
    Batch("servegen_reasoning", 6000, 400),
    Batch("servegen_chat", 1000, 1500),
    Batch("servegen_chat", 2000, 1500),
    Batch("mooncake_conversation", 8000, 400),
    Batch("mooncake_conversation", 12_000, 400),
    Batch("azure_conv", 1000, 400),
    Batch("azure_conv", 2000, 400),
)
COSTS = ("a100-7b", "h100-70b")
POLICIES = (
    "fcfs",
    "fcfs-watermark",
    "longest-first",
    "longest-first-oracle",
)


def bound_s(trace: Sequence[Any], pool_tokens: int, cost: Any) -> float:
    """Seconds below which no schedule gets a batch done whose prompts share nothing.

    Every prompt is computed once, every token decoded and its context read once; and there are at
    least as many steps as the longest answer has tokens, and as the memory-time of all takes with
    a pool that is always full.
    """
    prompt = np.array([request.prompt_length for request in trace], dtype=np.float64)
    output = np.array([request.output_length for request in trace], dtype=np.float64)
    area = float((prompt * output + output * (output - 1) / 2).sum())
    fixed = (
        cost.per_prefill_token * prompt.sum()
        + cost.per_decode * output.sum()
        + cost.per_context_token * area
    )
    return float(fixed + cost.base * max(area / pool_tokens, output.max()))


def setting(batch: Batch, cost_name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Replay one batch with all policies; runs in its own process."""
    single_thread()
    from sagellm_lifetime.replay.compare import replay
    from sagellm_lifetime.replay.cost import cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.planned import planned_policies
    from sagellm_lifetime.replay.policies import POLICIES as RIVALS
    from sagellm_lifetime.replay.trace import at_once, make_trace, sample

    frame = load(options.data, batch.trace)
    assert frame is not None  # main() has looked
    cut = split(frame)
    tokens = pl.col("prompt_length") + pl.col("actual_length")
    fitting = cut.test.filter(tokens <= (batch.blocks - SPARE) * BLOCK)
    trace = at_once(make_trace(sample(fitting, batch.requests, seed=seed), seed=seed))
    cost = cost_model(cost_name)
    engine = EngineSettings(blocks=batch.blocks, prefix_caching="prefix_hashes" in frame.columns)
    predictor = create_predictor(options.predictor, seed=seed).fit(cut.train)
    known = RIVALS | planned_policies(predictor)
    found = {
        policy: replay(trace, engine, cost, known[policy], tuned_for="makespan_s").metrics
        for policy in POLICIES
    }
    return {
        "batch": batch,
        "cost": cost_name,
        "seed": seed,
        "predictor": options.predictor,
        "left_out": 1.0 - len(fitting) / len(cut.test),
        "policies": found,
        # Shared prefixes are computed and read less than once: no bound there.
        "bound_s": None
        if engine.prefix_caching
        else bound_s(trace, BLOCK * (batch.blocks - 1), cost),
    }


def faster(runs: list[dict[str, Any]], policy: str, rival: str) -> float:
    """How much more a policy gets done in a second than a rival, %; median over the seeds."""
    made = [[run["policies"][name]["makespan_s"] for name in (rival, policy)] for run in runs]
    return float(np.median([100.0 * (theirs / ours - 1.0) for theirs, ours in made]))


def report(runs: list[dict[str, Any]]) -> str:
    """A line a batch and step cost: throughput against the default and the tuned watermark."""
    rows = []
    for cost in COSTS:
        for batch in BATCHES:
            mine = [run for run in runs if (Batch(*run["batch"]), run["cost"]) == (batch, cost)]
            if not mine:
                continue
            bounds = [
                100.0 * (run["policies"]["fcfs"]["makespan_s"] / run["bound_s"] - 1.0)
                for run in mine
                if run["bound_s"]
            ]
            again = [
                float(np.median([run["policies"][p]["recomputed_tokens"] for run in mine]))
                for p in ("fcfs", "longest-first")
            ]
            rows.append(
                [
                    f"{batch.trace}, {batch.blocks:,}, {cost}",
                    f"{np.median([r['policies']['fcfs']['makespan_s'] for r in mine]):,.0f} s",
                    *(f"{faster(mine, policy, 'fcfs'):+.1f} %" for policy in POLICIES[1:]),
                    f"{faster(mine, 'longest-first', 'fcfs-watermark'):+.1f} %",
                    f"{np.median(bounds):+.1f} %" if bounds else "–",
                    f"{again[0]:,.0f} → {again[1]:,.0f}",
                ]
            )
    head = ["batch, blocks, step cost", "fcfs", *(f"{name}" for name in POLICIES[1:])]
    head += ["longest-first over fcfs-watermark", "no schedule over", "recomputed"]
    seeds = len({run["seed"] for run in runs})
    return table(head, rows) + f"\n\n{seeds} seed" + ("s.\n" if seeds > 1 else ".\n")


COMMAND = "PYTHONPATH=src python benchmarks/batches.py " + shlex.join(sys.argv[1:])
INTRODUCTION = """\
# Batches: throughput under memory pressure

Made by one command,

    {command}

All requests are there at once; what counts is when the last is done. Columns: seconds of vLLM's
default; how many percent more each policy gets done in a second than the default (the watermark
tuned for this very batch); what no schedule can exceed, where every prompt is computed once, every
token decoded and its context read once, in as many steps as the longest answer has tokens, or as
the memory-time of all takes with a pool that is always full; recomputed tokens, default →
longest-first. Medians over seeds.

"""


def main() -> None:
    """Replay what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--costs", nargs="+", default=list(COSTS), choices=COSTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    runs = []
    if options.runs.exists():
        runs = [json.loads(line) for line in options.runs.read_text().splitlines()]
    if any(run["predictor"] != options.predictor for run in runs):
        parser.error(f"{options.runs} holds runs with another --predictor")
    if load(options.data, BATCHES[0].trace) is None:
        parser.error(f"no traces in {options.data}")
    done = {(Batch(*run["batch"]), run["cost"], run["seed"]) for run in runs}
    wanted = [
        (batch, cost, seed)
        for seed in range(options.seeds)
        for cost in options.costs
        for batch in BATCHES
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(setting, *each, options) for each in wanted if each not in done]
        for job in as_completed(jobs):
            run = job.result()
            runs.append(run)
            with options.runs.open("a") as file:
                file.write(json.dumps(run) + "\n")
            say(f"{Batch(*run['batch'])}, {run['cost']}, seed {run['seed']}")
    options.output.write_text(INTRODUCTION.format(command=COMMAND) + report(runs))


if __name__ == "__main__":
    main()
