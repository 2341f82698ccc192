"""Throughput: the same requests, and how soon the last of them is done.

    PYTHONPATH=src python benchmarks/batches.py --runs batches.jsonl [--data FOLDER] [--seeds 3]

All there at once, or a closed loop: so many clients, each with its next request when the last is
done. Through vLLM's own scheduler and block pool, in simulated time, on several traces, sizes of
memory and step costs. Every setting and seed is one line of ``--runs``, so that an interrupted run
goes on where it stopped; the table goes to ``docs/lab/batches.md``. Predictors are trained on the
earlier 70 % of a trace, requests are drawn from the later 30 % (those that the pool can hold), and
predictors learn online in simulated time. A minute or two a setting and core.

Nothing comes by the clock, so a schedule does not depend on what a step costs: each is made once,
and priced with every step cost.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from common import DATA, code, load, read_lines, run_all, say, single_thread, table

from sagellm_lifetime import create_predictor
from sagellm_lifetime.history.splits import split

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "batches.md"
BLOCK = 16
SPARE = 8
"""Blocks of the pool that no single request may need."""


class Batch(NamedTuple):
    """A trace, blocks of 16 tokens, requests (the more, the less their longest one decides when all
    are done), and clients; 0 where all requests are there at once."""

    trace: str
    blocks: int
    requests: int
    clients: int = 0


BATCHES = (
    Batch("servegen_reasoning", 3000, 400),
    Batch("servegen_reasoning", 6000, 400),
    Batch("servegen_chat", 1000, 1500),
    Batch("servegen_chat", 2000, 1500),
    Batch("mooncake_conversation", 8000, 400),
    Batch("mooncake_conversation", 12_000, 400),
    Batch("mooncake_conversation", 8000, 1200),
    Batch("azure_conv", 1000, 400),
    Batch("azure_conv", 2000, 400),
    Batch("servegen_chat", 1000, 1500, 128),
    Batch("mooncake_conversation", 8000, 400, 64),
    Batch("azure_conv", 2000, 1200, 64),
)
COSTS = ("a100-7b", "h100-70b", "cpu-small")
CLOCK = "h100-70b"
"""By which the scheduler's clock goes while a schedule is made."""
POLICIES = (
    "fcfs",
    "fcfs-watermark",
    "priority-max-tokens",
    "sjf",
    "fair-input",
    "longest-first",
    "longest-first-oracle",
)


class Meter:
    """In the place of a step cost: goes by one, and adds up what each would have taken."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models
        self.total = dict.fromkeys(models, 0.0)

    def seconds(self, decodes: int, prefill_tokens: int, context_tokens: int) -> float:
        """Of a step, by the clock."""
        step = {
            name: model.seconds(decodes, prefill_tokens, context_tokens)
            for name, model in self._models.items()
        }
        for name, seconds in step.items():
            self.total[name] += seconds
        return step[CLOCK]


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


def setting(batch: Batch, seed: int, options: argparse.Namespace) -> dict[str, Any]:
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
    engine = EngineSettings(blocks=batch.blocks, prefix_caching="prefix_hashes" in frame.columns)
    predictor = create_predictor(options.predictor, seed=seed).fit(cut.train)
    known = RIVALS | planned_policies(predictor)
    models = {name: cost_model(name) for name in COSTS}
    found: dict[str, list[dict[str, Any]]] = {}
    for name in POLICIES:
        for choice in known[name].grid or ({},):
            if choice == {"watermark": 0.0}:  # vLLM's default once more
                found[name] = list(found["fcfs"])
                continue
            meter, policy = Meter(models), replace(known[name], grid=(choice,))
            made = replay(trace, engine, meter, policy, concurrency=batch.clients or None)
            again = made.metrics["recomputed_tokens"]
            found.setdefault(name, []).append(
                {"choice": choice, "seconds": meter.total, "recomputed_tokens": again}
            )
    bounds = {name: bound_s(trace, BLOCK * (batch.blocks - 1), models[name]) for name in COSTS}
    return {
        "batch": batch,
        "seed": seed,
        "predictor": options.predictor,
        "left_out": 1.0 - len(fitting) / len(cut.test),
        "policies": found,
        # Shared prefixes are computed and read less than once: no bound there.
        "bound_s": None if engine.prefix_caching else bounds,
    }


def seconds(run: dict[str, Any], policy: str, cost: str) -> float:
    """When the last is done; of several choices the best for this very batch and cost."""
    return float(min(made["seconds"][cost] for made in run["policies"][policy]))


def faster(runs: list[dict[str, Any]], policy: str, rival: str, cost: str) -> float:
    """How much more a policy gets done in a second than a rival, %; median over the seeds."""
    shares = [seconds(run, rival, cost) / seconds(run, policy, cost) for run in runs]
    return float(np.median([100.0 * (share - 1.0) for share in shares]))


def report(runs: list[dict[str, Any]]) -> str:
    """A line a batch and step cost: throughput against the default and the tuned watermark."""
    rows = []
    for cost in COSTS:
        for batch in BATCHES:
            mine = [run for run in runs if Batch(*run["batch"]) == batch]
            if not mine:
                continue
            bounds = [
                100.0 * (seconds(run, "fcfs", cost) / run["bound_s"][cost] - 1.0)
                for run in mine
                if run["bound_s"]
            ]
            again = [
                np.median([run["policies"][name][0]["recomputed_tokens"] for run in mine])
                for name in ("fcfs", "longest-first")
            ]
            clients = f", {batch.clients} clients" if batch.clients else ""
            rows.append(
                [
                    f"{batch.trace}, {batch.blocks:,}, {batch.requests:,}{clients}, {cost}",
                    f"{len(mine)}",
                    f"{np.median([seconds(run, 'fcfs', cost) for run in mine]):,.0f} s",
                    *(f"{faster(mine, name, 'fcfs', cost):+.1f} %" for name in POLICIES[1:]),
                    f"{faster(mine, 'longest-first', 'fcfs-watermark', cost):+.1f} %",
                    f"{np.median(bounds):+.1f} %" if bounds else "–",
                    f"{again[0]:,.0f} → {again[1]:,.0f}",
                ]
            )
    head = ["batch, blocks, requests, step cost", "seeds", "fcfs", *POLICIES[1:]]
    head += ["longest-first over fcfs-watermark", "no schedule over", "recomputed"]
    return table(head, rows) + "\n"


COMMAND = "PYTHONPATH=src python benchmarks/batches.py " + shlex.join(sys.argv[1:])
INTRODUCTION = """\
# Batches: throughput under memory pressure

<!-- [[[cog import figures; print(figures.batches_answer()) ]]] -->
<!-- [[[end]]] -->

Made by one command, {code},

    {command}

All requests are there at once, or come from so many clients, each of which sends its next when the
last is done; what counts is when all are done. Columns: seeds (fewer than asked for: not finished);
seconds of vLLM's default; how many percent more each policy gets done in a second than the default
(the watermark tuned for this very batch and step cost); what no schedule can exceed, where every
prompt is computed once, every token decoded and its context read once, in as many steps as the
longest answer has tokens, or as the memory-time of all takes with a pool that is always full
(Mooncake's prompts share prefixes: no bound is known); recomputed tokens, default → longest-first.
Medians over seeds. A schedule is made once and priced with each step cost. No trace says
`max_tokens`, so `priority-max-tokens` is vLLM's priority queue with one class.

"""


def main() -> None:
    """Replay what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    made, runs = code(), read_lines(options.runs)
    if any(run["predictor"] != options.predictor for run in runs):
        parser.error(f"{options.runs} holds runs with another --predictor")
    if load(options.data, BATCHES[0].trace) is None:
        parser.error(f"no traces in {options.data}")
    done = {(Batch(*run["batch"]), run["seed"]) for run in runs}
    wanted = [(batch, seed) for seed in range(options.seeds) for batch in BATCHES]
    for run in run_all(setting, [each for each in wanted if each not in done], options):
        runs.append(run)
        say(f"{Batch(*run['batch'])}, seed {run['seed']}")
    options.output.write_text(INTRODUCTION.format(command=COMMAND, code=made) + report(runs))


if __name__ == "__main__":
    main()
