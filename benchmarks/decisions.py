"""What the decisions buy: traces replayed through vLLM's own scheduler, with and without them.

    PYTHONPATH=src python benchmarks/decisions.py --runs runs.jsonl [--data FOLDER] [--seeds 3]

Needs the ``[vllm]`` extra and the data folder. Every setting (trace, memory, load, seed) is one
line of ``--runs``, written when it is done, so that an interrupted run goes on where it stopped;
the tables are made of all lines and go to ``docs/lab/replay.md``. With ``--again`` the plans of all
lines are replayed anew, at the loads and beside the references found before. Predictors are trained
on the earlier 70 % of a trace, requests are drawn from the later 30 %, and predictors learn online
in simulated time. About a minute and a half a setting and core with 300 requests. Batches:
``batches.py``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, code, load, read_lines, run_all, say, single_thread, table

from sagellm_lifetime import create_predictor
from sagellm_lifetime.history.splits import split

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "replay.md"
MEMORY = {
    "servegen_reasoning": (3000, 6000),
    "mooncake_conversation": (8000, 12_000),
    "azure_conv": (1000, 2000),
}
"""Blocks of 16 tokens: tight, and twice (or half as much again) of it."""
CALLED = {
    "servegen_reasoning": "reasoning",
    "mooncake_conversation": "Mooncake",
    "azure_conv": "Azure",
}
LOADS = ("overload", "knee", "relaxed")
OPEN = (
    "fcfs",
    "fcfs-watermark",
    "priority-max-tokens",
    "fair-input",
    "sjf",
    "lifetime",
    "lifetime-oracle",
)
EVICTING = ("evict-engine", "evict-shortest", "evict-longest")
SHOWN = (
    ("mean_latency_s", "mean s", 1.0),
    ("p50_latency_s", "p50 s", 1.0),
    ("p99_latency_s", "p99 s", 1.0),
    ("mean_ttft_s", "TTFT s", 1.0),
    ("max_wait_s", "longest wait s", 1.0),
    ("worst_normalised_latency_s", "worst s/token", 1.0),
    ("goodput", "goodput %", 100.0),
    ("tokens_per_s", "tokens/s", 1.0),
    ("makespan_s", "makespan s", 1.0),
    ("preemptions", "preempted", 1.0),
    ("recomputed_tokens", "recomputed", 1.0),
)


def policies_of(load_name: str, *, more: bool) -> tuple[str, ...]:
    """Which policies a load is replayed with."""
    return OPEN + (EVICTING if more and load_name == "overload" else ())


def setting(
    name: str,
    blocks: int,
    load_name: str,
    seed: int,
    before: dict[str, Any] | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Replay one setting, or of one that is known the plans; runs in its own process."""
    single_thread()
    from sagellm_lifetime.replay.compare import replay
    from sagellm_lifetime.replay.cost import cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.load import at_load
    from sagellm_lifetime.replay.planned import planned_policies
    from sagellm_lifetime.replay.policies import POLICIES
    from sagellm_lifetime.replay.trace import at_rate, make_trace, sample

    frame = load(options.data, name)
    assert frame is not None  # main() has looked
    cut = split(frame)
    trace = make_trace(sample(cut.test, options.requests, seed=seed), seed=seed)
    cost = cost_model(options.cost)
    engine = EngineSettings(blocks=blocks, prefix_caching="prefix_hashes" in frame.columns)
    reached: bool | None
    if before is None:
        calibrated = at_load(load_name, trace, engine, cost)
        trace, rate, reached = calibrated.trace, calibrated.rate, calibrated.reached
    else:
        rate, reached = before["rate"], before.get("reached")
        trace = at_rate(trace, rate)
    known = POLICIES | planned_policies(
        create_predictor(options.predictor, seed=seed).fit(cut.train)
    )
    found: dict[str, Any] = {}
    for policy in policies_of(load_name, more=options.more):
        if before is not None and policy in POLICIES:
            found[policy] = before["policies"][policy]
            continue
        done = replay(trace, engine, cost, known[policy])
        found[policy] = done.metrics | {"overrides": dict(done.overrides)}
    return {
        "trace": name,
        "blocks": blocks,
        "load": load_name,
        "seed": seed,
        "requests": len(trace),
        "rate": rate,
        "reached": reached,
        "cost": cost.name,
        "predictor": options.predictor,
        "policies": found,
    }


def report(runs: list[dict[str, Any]]) -> str:
    """Tables of the medians over seeds."""
    parts = []
    for key, lines in _settings(runs).items():
        name, blocks, load_name = key
        rates = ", ".join(_rate(line["rate"]) for line in lines)
        seeds = f"{len(lines)} seed" + ("s" if len(lines) > 1 else "")
        rows = []
        for policy in lines[0]["policies"]:
            row = [policy]
            for metric, _, factor in SHOWN:
                value = factor * float(np.median([ln["policies"][policy][metric] for ln in lines]))
                row.append(f"{value:.1f}" if value < 1000 else f"{value:,.0f}")
            rows.append(row)
        parts.append(
            f"### {name}, {blocks:,} blocks, {load_name}\n\n{lines[0]['requests']} requests, "
            f"{rates} requests/s; {seeds}{_missed(lines)}.\n\n"
            + table(["policy", *(head for _, head, _ in SHOWN)], rows)
        )
    return summary(runs) + "\n\n" + "\n\n".join(parts) + "\n"


def _rate(rate: float) -> str:
    """Requests a second: a burst is relaxed, if at all, where few come in an hour."""
    return f"{rate:.2f}" if rate >= 1 else f"{rate:.3g}"


def _missed(lines: list[dict[str, Any]]) -> str:
    """That no rate made it the load it is called; older lines do not say whether one did."""
    missed = [str(line["seed"]) for line in lines if line.get("reached") is False]
    if not missed:
        return ""
    where = "" if len(missed) == len(lines) else f" (seed {', '.join(missed)})"
    return f"; {lines[0]['load']} not reached{where}"


COMPARED = (
    "mean_latency_s",
    "p99_latency_s",
    "mean_ttft_s",
    "max_wait_s",
    "worst_normalised_latency_s",
)


def summary(runs: list[dict[str, Any]]) -> str:
    """``lifetime`` against the tuned watermark, setting by setting."""
    rows = []
    for (name, blocks, load_name), lines in _settings(runs).items():
        ours, tuned, oracle, default = (
            {m: float(np.median([ln["policies"][p][m] for ln in lines])) for m, _, _ in SHOWN}
            for p in ("lifetime", "fcfs-watermark", "lifetime-oracle", "fcfs")
        )
        gain = tuned["mean_latency_s"] - oracle["mean_latency_s"]
        share = (tuned["mean_latency_s"] - ours["mean_latency_s"]) / gain if gain > 0 else np.nan
        rows.append(
            [
                f"{name}, {blocks:,}, {load_name}" + (" (not reached)" if _missed(lines) else ""),
                *(
                    f"{100 * (ours[m] / tuned[m] - 1):+.1f} %" if tuned[m] else "–"
                    for m in COMPARED
                ),
                _range_over_seeds(lines),
                f"{100 * tuned['goodput']:.0f} → {100 * ours['goodput']:.0f} %",
                f"{100 * share:.0f} %" if np.isfinite(share) and gain > 0.5 else "–",
                f"{100 * (ours['tokens_per_s'] / tuned['tokens_per_s'] - 1):+.1f} %",
                f"{default['recomputed_tokens']:,.0f} → {ours['recomputed_tokens']:,.0f}",
            ]
        )
    head = ["setting", "mean", "p99", "TTFT", "longest wait", "worst s/token"]
    head += ["mean, by seed", "goodput", "of the oracle's gain"]
    return "## `lifetime` against the tuned watermark\n\n" + table(
        [*head, "tokens/s", "recomputed (default → ours)"], rows
    )


def _range_over_seeds(lines: list[dict[str, Any]]) -> str:
    """Return the smallest and the largest change of the mean latency among the seeds."""
    changes = [
        100 * (line["policies"]["lifetime"]["mean_latency_s"] / tuned - 1)
        for line in lines
        if (tuned := line["policies"]["fcfs-watermark"]["mean_latency_s"])
    ]
    return f"{min(changes):+.0f} … {max(changes):+.0f} %" if changes else "–"


def _settings(runs: list[dict[str, Any]]) -> dict[tuple[str, int, str], list[dict[str, Any]]]:
    keys = {(run["trace"], run["blocks"], run["load"]) for run in runs}
    ordered = sorted(keys, key=lambda k: (list(MEMORY).index(k[0]), LOADS.index(k[2]), k[1]))
    return {
        key: [run for run in runs if (run["trace"], run["blocks"], run["load"]) == key]
        for key in ordered
    }


PANELS = (
    ("mean_latency_s", "mean latency"),
    ("p99_latency_s", "p99 latency"),
    ("mean_ttft_s", "time to first token"),
)
DRAWN = (
    ("lifetime", "o", "lifetime"),
    ("lifetime-oracle", "_", "the same, lengths known"),
    ("fair-input", "x", "by input, no predictor"),
    ("sjf", "2", "shortest first, no ageing"),
)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Change against the tuned watermark, setting by setting: where prediction stops paying."""
    from matplotlib.figure import Figure

    settings = _settings(runs)
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    places = np.arange(len(settings))
    for axes, (metric, title) in zip(
        figure.subplots(len(PANELS), sharex=True), PANELS, strict=True
    ):
        for policy, marker, label in DRAWN:
            change = []
            for lines in settings.values():
                ours, tuned = (
                    float(np.median([line["policies"][p][metric] for line in lines]))
                    for p in (policy, "fcfs-watermark")
                )
                change.append(100.0 * (ours / tuned - 1.0))
            axes.plot(places, change, marker, label=label, markersize=9, linestyle="none")
        axes.axhline(0.0, color="black", linewidth=0.8)
        axes.set_ylabel(f"{title}, %")
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(ncols=len(DRAWN), fontsize=8)
    figure.axes[0].set_title("change against first come, first served with a tuned watermark")
    names = [f"{CALLED[name]}\n{blocks:,}\n{asked}" for name, blocks, asked in settings]
    figure.axes[-1].set_xticks(places, names, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _key(run: dict[str, Any]) -> tuple[str, int, str, int]:
    return run["trace"], run["blocks"], run["load"], run["seed"]


def planned(options: argparse.Namespace) -> Iterator[tuple[str, int, str, int]]:
    """Settings to replay, the loads in the order they are given."""
    for load_name in options.loads:
        for seed in range(options.seeds):
            for memory in range(2):
                for name in options.only:
                    yield name, MEMORY[name][memory], load_name, seed


COMMAND = "PYTHONPATH=src python benchmarks/decisions.py " + shlex.join(sys.argv[1:])
INTRODUCTION = """\
# Replay: what the decisions buy

<!-- [[[cog import figures; print(figures.replay_answer()) ]]] -->
<!-- [[[end]]] -->

Made by one command, {code},

    {command}

through the scheduler, KV cache manager and block pool of vLLM 0.32.0; step cost `{cost}`. Loads:
see `replay/load.py`. Medians over seeds. What the policies are:
[policies](../explanation/policies.md). Goodput: requests finished within 0.2 s per output token. No
trace says `max_tokens`, so all requests have the same priority under `priority-max-tokens`: vLLM's
priority queue, which preempts the latest of the least urgent.

"""


def main() -> None:
    """Replay what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="replay the plans of its lines anew")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", default=list(MEMORY), choices=list(MEMORY))
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=LOADS)
    parser.add_argument("--more", action="store_true", help="other victims, too (overload)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--cost", default="a100-7b")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--figure", type=Path, help="an SVG of the tables")
    options = parser.parse_args()
    made, runs = code(), read_lines(options.runs)
    asked = (options.requests, options.predictor, options.cost)
    if any((run["requests"], run["predictor"], run["cost"]) != asked for run in runs):
        parser.error(f"{options.runs} holds runs with other --requests, --predictor or --cost")
    done = {_key(run): run for run in runs}
    todo = [
        (*each, done.get(each)) for each in planned(options) if options.again or each not in done
    ]
    for run in run_all(setting, todo, options):
        done[_key(run)] = run  # of several lines of one setting the last counts
        say(f"{run['trace']}, {run['blocks']} blocks, {run['load']}, seed {run['seed']}")
    runs = list(done.values())
    options.output.write_text(
        INTRODUCTION.format(command=COMMAND, code=made, cost=options.cost) + report(runs)
    )
    if options.figure is not None:
        draw(runs, options.figure)


if __name__ == "__main__":
    main()
