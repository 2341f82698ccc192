"""What the hidden score changes in decisions, and whether it pays to prefill early to know it.

    PYTHONPATH=src python benchmarks/hidden_replay.py [--windows 3] [--requests 150]

Needs the ``[vllm]`` extra. The recorded answers that ship with the package go through vLLM's own
scheduler, without a model, at the cost of a step of SmolLM2 on a CPU and 1.5 times the capacity.
Their recorded readings reach the scheduler in the step after the one that a live model would read
them in. ``survival`` has learned from the rows before, without other answers to the same prompts.

- ``history`` knows no hidden state, ``hidden`` reads it after prefill and at 32 and 64 tokens;
- ``peek N``: up to N waiting requests are prefilled early, in their order in the queue, to read
  their state, where their prompts fit into the free memory; the KV is dropped. Their prefill is
  paid, and paid again when they are admitted, as without a prefix cache;
- ``known at arrival``: the first reading is there at once and free: no peek can be better;
- ``oracle`` knows the lengths.

About three minutes on one core.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import code, say, single_thread, table, write_json
from hidden_score import RECORDINGS, TITLES
from live.arms import Setting
from live.material import parts, trace_of

from sagellm_lifetime import create_predictor
from sagellm_lifetime.core.hidden_states import COLUMNS
from sagellm_lifetime.policies.forecast import PredictedLengths
from sagellm_lifetime.policies.plan import PLANS
from sagellm_lifetime.policies.plan_advisor import PlanAdvisor
from sagellm_lifetime.replay.compare import replay
from sagellm_lifetime.replay.cost import CPU_SMALL, StepCost, cost_model
from sagellm_lifetime.replay.load import capacity
from sagellm_lifetime.replay.planned import WATERMARK, Pool, advised_policy, planned_policies
from sagellm_lifetime.replay.policies import POLICIES, WATERMARKS, ReplayPolicy
from sagellm_lifetime.replay.recorded_states import RecordedStates
from sagellm_lifetime.replay.trace import TraceRequest, at_rate

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "hidden-replay.md"
OVERLOAD = 1.5
WORTH = 0.05
"""Least share of the mean latency that known lengths gain, for a share of that to say anything."""
CAP = 1024
PEEKS = (4, 16, 64)
"""Waiting requests whose state is read early, at most."""
PEEKED_TOKENS = 512
"""Most tokens that are prefilled early in one step."""
SHOWN = (
    ("mean_latency_s", "mean s"),
    ("p50_latency_s", "median s"),
    ("p99_latency_s", "p99 s"),
    ("mean_ttft_s", "TTFT s"),
    ("preemptions", "preempted"),
    ("recomputed_tokens", "recomputed"),
)
INTRODUCTION = """\
# The hidden score in decisions, and peeking

{answer}

{code}:

    {command}

Recorded answers of SmolLM2-135M through vLLM's scheduler, plan `{plan}`, {blocks} blocks of 32
tokens, {share} times the capacity, cost model {cost}, {windows} windows of {requests} requests a
recording; each figure is the mean over the windows. *history*: without hidden states; *hidden*:
read after prefill; *peek N*: of up to N waiting requests before, each at the cost of its prefill;
*known at arrival*: before, at no cost; *oracle*: known lengths. Replays have no noise, but of
{requests} requests a few per cent, and so *hidden* beside *history*, say nothing.

"""


class PaidCost:
    """The cost of a step, with the prompts that were prefilled early before it.

    Args:
        cost: of a step without them.

    Attributes:
        early: prompt tokens since the last step.
    """

    def __init__(self, cost: StepCost) -> None:
        self._cost, self.early = cost, 0

    def seconds(self, decodes: int, prefill_tokens: int, context_tokens: int) -> float:
        """Return the seconds of a step."""
        early, self.early = self.early, 0
        return self._cost.seconds(decodes, prefill_tokens + early, context_tokens)


class PeekingStates(RecordedStates):
    """Recorded readings, the first of them also of some waiting requests.

    Args:
        trace: its requests.
        scheduler: the replayed engine's.
        most: waiting requests with a reading, at most.
        cost: gets what was prefilled early; ``None`` where that is free.
    """

    def __init__(
        self, trace: Sequence[TraceRequest], scheduler: Any, most: int, cost: PaidCost | None
    ) -> None:
        super().__init__(trace, scheduler)
        self._most, self._cost = most, cost

    def take_fresh(self) -> set[str]:
        """Return the ids of sequences with new readings, waiting ones among them."""
        fresh, scheduler = super().take_fresh(), self._scheduler
        waiting = [one for one in scheduler.waiting if one.request_id in self._readings]
        unread = [one for one in waiting if not self._read[one.request_id]]
        left = self._most - (len(waiting) - len(unread))
        room = scheduler.kv_cache_manager.block_pool.get_num_free_blocks() * scheduler.block_size
        tokens = min(room, PEEKED_TOKENS) if self._cost is not None else sys.maxsize
        for request in unread[: max(left, 0)]:
            tokens -= request.num_prompt_tokens
            if tokens < 0:
                break
            if self.read(request.request_id):
                fresh.add(request.request_id)
            if self._cost is not None:
                self._cost.early += request.num_prompt_tokens
        return fresh


def peeking(plan: str, predictor: Any, most: int, cost: PaidCost | None) -> ReplayPolicy:
    """Return the policy of a plan that peeks at up to ``most`` waiting requests."""

    def make(_trace: Sequence[TraceRequest], pool: Pool) -> PlanAdvisor:
        return PlanAdvisor(
            PLANS[plan],
            PredictedLengths(predictor.clone()),
            total_blocks=pool.blocks,
            block_size=pool.block_size,
            clock=pool.clock,
            watermark=WATERMARK,
        )

    def read(trace: Sequence[TraceRequest], scheduler: Any) -> PeekingStates:
        return PeekingStates(trace, scheduler, most, cost)

    return advised_policy("peek", "peek", make, read)


def replays(
    trace: list[TraceRequest],
    predictors: tuple[Any, Any],
    cost: StepCost,
    setting: Setting,
    plan: str,
) -> dict[str, dict[str, float]]:
    """Return the figures of each arm on one window."""
    without, within = (planned_policies(one) for one in predictors)
    bare = [replace(one, hidden=None) for one in trace]
    paid = PaidCost(cost)
    tuned = tuple({"watermark": share} for share in WATERMARKS)
    arms: dict[str, tuple[list[TraceRequest], ReplayPolicy, Any]] = {
        "vLLM": (bare, POLICIES["fcfs"], cost),
        "watermark tuned": (bare, replace(POLICIES["fcfs"], grid=tuned), cost),
        "history": (bare, without[plan], cost),
        "hidden": (trace, within[plan], cost),
        **{
            f"peek {most}": (trace, peeking(plan, predictors[1], most, paid), paid)
            for most in PEEKS
        },
        "known at arrival": (trace, peeking(plan, predictors[1], sys.maxsize, None), cost),
        "oracle": (bare, without[f"{plan}-oracle"], cost),
    }
    engine = setting.replayed()
    return {
        name: {key: float(value) for key, value in replay(one, engine, at, policy).metrics.items()}
        for name, (one, policy, at) in arms.items()
    }


def measured(frame: pl.DataFrame, options: argparse.Namespace, name: str) -> list[Any]:
    """Return the figures of each window of a recording."""
    setting = Setting(options.blocks, 32, 64, 2048, 2048)
    requests = options.windows * options.requests
    cut = parts(frame, requests, prompt=2048 - CAP, answer=CAP)
    taught = cut.train.with_columns(pl.lit(CAP, pl.Int64).alias("max_length"))
    predictors = (
        create_predictor("survival").fit(taught.drop(COLUMNS)),
        create_predictor("survival").fit(taught),
    )
    say(f"{name}: survival has learned from {len(taught):,} answers, twice")
    found, cost = [], cost_model(options.cost)
    for window in range(options.windows):
        rows = cut.load[window * options.requests : (window + 1) * options.requests]
        trace = trace_of(rows, seed=window, cap=CAP)
        able = capacity(trace, setting.replayed(), cost)
        load = at_rate(trace, options.share * able)
        found.append(replays(load, predictors, cost, setting, options.plan))
        say(f"{name}: window {window}")
    return found


def gained(windows: list[dict[str, dict[str, float]]], arm: str, key: str) -> float:
    """Return which share of what known lengths gain over history alone an arm gains."""
    history, found, oracle = (
        float(np.mean([one[name][key] for one in windows])) for name in ("history", arm, "oracle")
    )
    return (history - found) / (history - oracle)


def report(runs: dict[str, list[dict[str, dict[str, float]]]], options: argparse.Namespace) -> str:
    """Return the page."""
    answers, tables = [], []
    for name, windows in runs.items():
        arms = list(windows[0])
        mean = {
            arm: float(np.mean([one[arm]["mean_latency_s"] for one in windows])) for arm in arms
        }
        gap = (mean["history"] - mean["oracle"]) / mean["history"]
        share = "too little to take a share of"
        if gap >= WORTH:
            share = f"{gained(windows, 'hidden', 'mean_latency_s'):.0%} of what these gain"
        paid = min(mean[f"peek {most}"] for most in PEEKS)
        answers.append(
            f"- {TITLES[name]}: the mean latency is {mean['history']:.1f} s with history alone, "
            f"{mean['hidden']:.1f} with the hidden score, {mean['oracle']:.1f} with known lengths: "
            f"{share}. With a peek that is free it is "
            f"{mean['known at arrival']:.1f}, with one that is paid for {paid:.1f} at best."
        )
        rows = [
            [arm, *(f"{np.mean([one[arm][key] for one in windows]):,.1f}" for key, _ in SHOWN)]
            for arm in arms
        ]
        figures = table(["arm", *(says for _, says in SHOWN)], rows)
        tables.append(f"## {TITLES[name].capitalize()}\n\n{figures}\n")
    page = INTRODUCTION.format(
        answer="\n".join(answers),
        code=f"Made {code()}",
        command="PYTHONPATH=src python benchmarks/hidden_replay.py " + shlex.join(sys.argv[1:]),
        blocks=options.blocks,
        share=options.share,
        cost=options.cost,
        plan=options.plan,
        windows=options.windows,
        requests=options.requests,
    )
    return page + "\n".join(tables)


def main(arguments: list[str] | None = None) -> None:
    """Replay, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--share", type=float, default=OVERLOAD, help="of the capacity")
    parser.add_argument("--plan", choices=list(PLANS), default="lifetime")
    parser.add_argument("--cost", default=CPU_SMALL.name, help="name of a cost model")
    parser.add_argument("--recordings", nargs="+", choices=RECORDINGS, default=list(RECORDINGS))
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    single_thread()
    runs = {}
    for name in options.recordings:
        frame = RECORDINGS[name]().filter(pl.col(COLUMNS[0]).is_not_null())
        runs[name] = measured(frame.sort("arrival_time", maintain_order=True), options, name)
    page = report(runs, options)
    options.output.write_text(page, encoding="utf-8")
    write_json(options.json, {"runs": runs})
    print(page)


if __name__ == "__main__":
    main()
