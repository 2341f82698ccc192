"""Measure the adapters to sageLLM's packages, through the packages' own code.

    python benchmarks/sagellm_lab.py --runs runs.jsonl eviction pool orders
    python benchmarks/sagellm_lab.py --runs runs.jsonl --page docs/lab/sagellm.md

Needs the packages (extra ``sagellm``). Each part takes minutes; a run that is in the file of
runs is not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import DATA, code, load, read_lines, say
from sagellm_parts import page

PARTS = ("eviction", "pool", "orders")
EVICTIONS = {
    "mooncake_conversation": (400_000, 1000),
    "claude_code": (1_000_000, 40),
    "azure_conv": (50_000, 1000),
    "servegen_reasoning": (60_000, 600),
}
"""Tokens of the pool; requests, or sessions, that are served."""
RATIOS = (1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02)
POOLS = {
    "azure_conv": (60_000, 400),
    "mooncake_conversation": (400_000, 250),
    "servegen_reasoning": (150_000, 200),
}
FITS = (0.5, 0.8, 0.95, 0.99)
ORDERED = ("azure_conv", "servegen_reasoning")


def evictions(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each run of eviction and the function that does it."""
    from sagellm_parts import eviction

    for name, (tokens, count) in EVICTIONS.items():
        frame = load(folder, name)
        if frame is None:
            continue
        if name == "claude_code":
            frame = frame.filter(pl.col("prompt_length") < 150_000)
            names = sorted(frame["session_id"].unique().to_list())
            np.random.default_rng(0).shuffle(names)
            older = frame.filter(pl.col("session_id").is_in(names[:150]))
            served = frame.filter(pl.col("session_id").is_in(names[150:]))
        else:
            half = frame.height // 2
            older, served = frame.head(half), frame[half:]

        def requests(name: str = name, served: pl.DataFrame = served, count: int = count) -> list:
            if name == "claude_code":
                return eviction.sessions(served, np.random.default_rng(1), count, 20.0)
            if name in {"azure_conv", "servegen_reasoning"}:
                return eviction.plain(served, count, 1.0 if name == "azure_conv" else 10.0)
            return eviction.prefixes(served, count, 6.0)

        # Claude Code's sessions are measured for hits; a run takes a minute.
        strategies = eviction.STRATEGIES[: 5 if name == "claude_code" else None]
        for strategy in strategies:

            def work(
                strategy: str = strategy,
                older: pl.DataFrame = older,
                tokens: int = tokens,
                make: Any = requests,
            ) -> dict[str, float]:
                predictor = eviction.trained(older)
                return eviction.Engine(make(), tokens, strategy, predictor).run()

            yield {"part": "eviction", "trace": name, "rule": strategy}, work


def pools(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each run of the pool and the function that does it."""
    from sagellm_kv_cache import KVPool
    from sagellm_parts import pool

    from sagellm_lifetime import create_predictor

    for name, (tokens, count) in POOLS.items():
        frame = load(folder, name)
        if frame is None:
            continue
        half = frame.height // 2
        cap = pool.cap_of(frame.head(half)["actual_length"].to_numpy())
        older = frame.head(half).with_columns(max_length=pl.lit(cap))
        predictor = create_predictor("survival")
        predictor.fit(older)
        rows = frame[half : half + count].to_dicts()
        rules: list[tuple[str, Any]] = [
            (f"ratio {ratio}", partial(pool.ByRatio, cap=cap, ratio=ratio)) for ratio in RATIOS
        ]
        planned = [(f"planner, fit {fit}", fit, 16, 0.5) for fit in FITS]
        planned += [
            ("planner, nothing ahead", 0.99, 0, 0.5),
            ("planner, always ahead", 0.99, 16, 0.0),
        ]
        for rule, fit, lead, chance in planned:
            options = {"cap": cap, "fit": fit, "lead": lead, "chance": chance}
            rules.append((rule, lambda blocks, o=options, m=predictor: pool.ByPlanner(
                blocks, predictor=m.clone(), **o)))  # fmt: skip
        for rule, make in rules:

            def work(
                make: Any = make, rows: Any = rows, tokens: int = tokens, cap: int = cap
            ) -> dict[str, float]:
                blocks = pool.SageLLMPool(KVPool(tokens, block_size=pool.BLOCK))
                return pool.serve(pool.jobs_of(rows, cap), make(blocks), blocks, tokens)

            yield {"part": "pool", "trace": name, "rule": rule}, work


def orders(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each run of an order and the function that does it."""
    from sagellm_parts import orders

    for name in ORDERED:
        frame = load(folder, name)
        if frame is None:
            continue
        served = frame[frame.height // 2 :].head(2000)
        for case in orders.CASES:
            yield (
                {"part": "orders", "trace": name, "rule": case},
                lambda case=case, served=served: orders.run(served, case),
            )


def main() -> None:
    """Do the parts that were asked for, then write the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--runs", type=Path, required=True)
    options.add_argument("--page", type=Path)
    given = options.parse_args()
    logging.disable(logging.CRITICAL)
    done = {(r["part"], r["trace"], r["rule"]) for r in read_lines(given.runs)}
    makers = {"eviction": evictions, "pool": pools, "orders": orders}
    commit = code()
    for part in given.parts:
        for run, work in makers[part](given.data):
            if tuple(run.values()) in done:
                continue
            began = time.perf_counter()
            run.update(work(), commit=commit)
            say(f"{run['trace']} {run['rule']}: {time.perf_counter() - began:.0f} s")
            with given.runs.open("a") as file:
                file.write(json.dumps(run) + "\n")
    if given.page is not None:
        page.write(given.page, read_lines(given.runs))


if __name__ == "__main__":
    main()
