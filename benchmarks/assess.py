"""What `assess` predicts for a log beside what a replay of the following part of the log gives.

    PYTHONPATH=src python benchmarks/assess.py --output docs/lab/assess.md

The first half of each trace (its newest rows, at most) is assessed: the predictor is chosen and
trained there, the gain is read off its last 30 %. Then the rows that follow are replayed at the
same rates with that predictor. Where the trace has no clock of its own, the load is set anew.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from textwrap import fill

import polars as pl
from common import DATA, TRACES, table

from sagellm_lifetime.assessment.assessment import Assessment, AssessmentSettings
from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.replay_part import Load, replay_load
from sagellm_lifetime.assessment.replays import OURS, Replays
from sagellm_lifetime.assessment.verdict import Verdict
from sagellm_lifetime.assessment.windows import draw_windows, shares_prompts
from sagellm_lifetime.assessment.words import change
from sagellm_lifetime.evaluation.dataset import Dataset

KV_TOKENS = {
    "azure_conv": 32_000,
    "mooncake_conversation": 192_000,
    "servegen_reasoning": 96_000,
    "servegen_chat": 96_000,
    "claude_code": 2_000_000,
}
"""Tokens of KV memory: small, so that requests wait for memory within the loads."""
MULTIPLES = {
    "azure_conv": (0.5, 1.0),
    "mooncake_conversation": (0.25, 0.5),
    "servegen_reasoning": (4.0, 8.0),
    "servegen_chat": (16.0, 32.0),
    "claude_code": (1.0, 2.0),
}
"""Multiples of each trace's own rate, about the load at which this engine is full."""
WIDTH = 120
COLUMNS = ("trace", "x load", "mean, predicted", "mean, followed", "first, predicted", "followed")


def assess(name: str, rows: int, settings: AssessmentSettings, data: Path) -> list[list[str]]:
    """Return the lines of the table of a trace, and print its verdict."""
    frame = pl.read_parquet(data / "traces" / f"{name}.parquet")
    whole = Dataset.of(frame, name)
    half = len(frame) // 2
    before = replace(whole, rows=frame[max(half - rows, 0) : half])
    after = replace(whole, rows=frame[half : half + rows // 3])
    engine = Engine.of(gpu="a100", model_size="7b", kv_tokens=KV_TOKENS[name])
    assessment = Assessment(before, engine, settings=replace(settings, multiples=MULTIPLES[name]))
    verdict = assessment.run()
    print(f"{name}: {verdict.headline()}", flush=True)
    followed = follow(verdict, after, engine, settings)
    assert verdict.replay is not None
    return [
        [
            name,
            f"{predicted.multiple:g}",
            change(predicted.change("mean_s")),
            change(later.change("mean_s")),
            change(predicted.change("ttft_s")),
            change(later.change("ttft_s")) + ("" if later.keeps_up(OURS) else " (queue grows)"),
        ]
        for predicted, later in zip(verdict.replay.loads, followed, strict=True)
    ]


def follow(
    verdict: Verdict, after: Dataset, engine: Engine, settings: AssessmentSettings
) -> list[Load]:
    """Return the loads of a verdict on the rows that follow, with its predictor."""
    assert verdict.replay is not None
    pool = engine.settings(prefix_caching=shares_prompts(after.rows))
    drawn = draw_windows(
        after, pool, engine.cost, count=settings.windows, cpu_s=settings.cpu_s, seed=settings.seed
    )
    windows = [replace(window, rate=verdict.replay.unit) for window in drawn.windows]
    longest = max(pool.model_length(window.trace) for window in windows)
    replays = Replays(
        windows,
        replace(pool, max_model_len=longest),
        engine.cost,
        verdict.objective,
        verdict.predictor.predictor,
        settings.watermarks,
    )
    return [replay_load(replays, load.multiple) for load in verdict.replay.loads]


def main(args: list[str] | None = None) -> None:
    """Assess each trace, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", default=list(TRACES), choices=TRACES)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--cpu-s", type=float, default=0.3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(args)
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    logging.getLogger("vllm").setLevel(logging.ERROR)
    settings = AssessmentSettings(
        windows=options.windows,
        cpu_s=options.cpu_s,
        quick=True,
        predictors=("survival",),
        precision=2.0,
        watermarks=(0.03, 0.2),
    )
    rows: list[list[str]] = []
    started = time.process_time()
    for name in options.only:
        if not (options.data / "traces" / f"{name}.parquet").exists():
            print(f"{name}: not there", file=sys.stderr)
            continue
        rows += assess(name, options.rows, settings, options.data)
        text = page(rows, options, time.process_time() - started)
        if options.output is not None:
            options.output.write_text(text, encoding="utf-8")
    print(table(COLUMNS, rows))


def page(rows: list[list[str]], options: argparse.Namespace, seconds: float) -> str:
    """Return the page of ``docs/lab``."""
    signs = [(float(row[2].split(" ")[0]), float(row[3].split(" ")[0])) for row in rows]
    moved = [(ours, theirs) for ours, theirs in signs if ours or theirs]
    same = sum(ours * theirs > 0 for ours, theirs in moved)
    names = list(dict.fromkeys(row[0] for row in rows))
    missing = [name for name in TRACES if name not in names]
    memory = ", ".join(f"{name} {KV_TOKENS[name]:,}" for name in names)
    command = (
        f"PYTHONPATH=src python benchmarks/assess.py --rows {options.rows} "
        f"--windows {options.windows} --cpu-s {options.cpu_s:g} --only {' '.join(names)} "
        "--output docs/lab/assess.md"
    )
    answer = (
        f"**Where mean latency changes at all ({len(moved)} of {len(rows)} settings), its "
        f"predicted change has the sign of what the following part of the log gives in {same} of "
        f"{len(moved)}.** Sizes may differ by more: the windows are small, and traffic moves."
    )
    if missing:
        answer += f" NOT measured yet: {', '.join(missing)}."
    how = (
        "Changes under `lifetime` against the better of vLLM's default and a tuned watermark, "
        f"medians over {options.windows} windows, with their range. *Predicted*: on the last 30 % "
        "of the rows that were assessed, in the first half of the trace. *Followed*: on the rows "
        "after them, at the same rates, with the predictor of the verdict. Engine: the presets "
        f"`a100` and `7b` with few KV tokens ({memory})."
    )
    parts = [
        "# Assess: predicted and followed",
        fill(answer, WIDTH),
        f"Measured {date.today().isoformat()} in {seconds:,.0f} CPU seconds by",
        f"    {command}",
        fill(how, WIDTH),
        table(COLUMNS, rows),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
