"""What prompt, generated tokens, EOS probability and entropy each add, on the recorded answers.

    PYTHONPATH=src python benchmarks/content_ablation.py [--seeds 3] [--json FILE]

The answers of a small chat model that ship with the package, split by conversation and prompt (no
prompt is in both parts, and no other holding of a conversation), frozen. Every variant is trained
and tested on what it is left with:

    admission        prompt length, cap, temperature
    + kind           the kind of task, as a client would be known by
    + prompt         words of the prompt
    + tokens         generated tokens
    + EOS            log-probability of an end, mean hazard of every 16 tokens
    + entropy        of the next token, mean of every 16

The last three once more each alone on top of the prompt. What carries the signals but not the
tokens has all its tokens made equal.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import say, single_thread, table, write_json

from sagellm_lifetime import (
    LSTMLifetimePredictor,
    SurvivalLifetimePredictor,
    TransformerLifetimePredictor,
)
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import fit_rivals
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.workloads.recorded import recorded

NETWORKS = {"lstm": LSTMLifetimePredictor, "transformer": TransformerLifetimePredictor}
PROMPT = ("prompt_token_ids", "prompt_text")
AGES = ("32", "128")
VARIANTS: dict[str, tuple[str, ...]] = {
    "admission": (),
    "+ kind": ("kind",),
    "+ prompt": ("kind", "prompt"),
    "+ prompt + tokens": ("kind", "prompt", "tokens"),
    "+ prompt + EOS": ("kind", "prompt", "eos_logprob"),
    "+ prompt + entropy": ("kind", "prompt", "entropy"),
    "+ prompt + tokens + EOS": ("kind", "prompt", "tokens", "eos_logprob"),
    "+ prompt + tokens + EOS + entropy": (
        "kind",
        "prompt",
        "tokens",
        "eos_logprob",
        "entropy",
    ),
}


def left_with(frame: pl.DataFrame, parts: tuple[str, ...]) -> pl.DataFrame:
    """The frame, with these parts only."""
    gone = [] if "kind" in parts else ["client_id"]
    gone += [] if "prompt" in parts else PROMPT
    signals = [name for name in ("eos_logprob", "entropy") if name in parts]
    gone += [name for name in ("eos_logprob", "entropy") if name not in parts]
    if "tokens" not in parts:
        blank = pl.col("output_token_ids").list.eval(pl.element() * 0)
        frame = frame.with_columns(blank) if signals else frame.drop("output_token_ids")
    return frame.drop(gone)


def measure(predictor: Any, test: pl.DataFrame, rivals: Any = ()) -> dict[str, Any]:
    """Scores of the predictor and, beside, of the rivals, with the noise floor."""
    result = evaluate(predictor, test, seed=0, rivals=rivals)
    return {"scores": result.scores, "name": result.name, "floor": result.floor}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--rows", type=int, help="only the first so many answers")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    single_thread()
    cut = split(recorded().head(options.rows or 10**9), "session")
    say(f"{len(cut.train):,} answers to train on, {len(cut.test):,} scored")
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    bare = [left_with(part, ("kind", "prompt")) for part in (cut.train, cut.test)]
    plain = measure(SurvivalLifetimePredictor().fit(bare[0]), bare[1], fit_rivals(bare[0]))
    for name, scores in plain["scores"].items():
        found[name] = [scores]
    for network, kind in NETWORKS.items():
        for variant, parts in VARIANTS.items():
            train, test = (left_with(part, parts) for part in (cut.train, cut.test))
            for seed in range(options.seeds):
                made = kind(seed=seed, epochs=options.epochs, online="off").fit(train)
                one = measure(made, test)
                found.setdefault(f"{network}, {variant}", []).append(one["scores"][one["name"]])
            steps = [scores["steps"]["mae"] for scores in found[f"{network}, {variant}"]]
            say(f"{network}, {variant}: steps MAE {np.mean(steps):.1f}")
    print(report(found, plain["floor"]))
    write_json(options.json, {"floor": plain["floor"], "scores": found})


def report(found: dict[str, list[dict[str, dict[str, float]]]], floor: dict[str, Any]) -> str:
    """The table: means over the seeds, and how far the seeds are apart."""
    head = ["", "admission MAE", "repeated MAE", "steps MAE", "± seeds", "steps CRPS"]
    head += [f"MAE at age {age}" for age in AGES]
    rows = []
    for name, runs in found.items():
        steps = [run["steps"]["mae"] for run in runs]
        picked = [("admission", "mae"), ("admission", "mae_repeated"), ("steps", "mae")]
        picked.append(("steps", "crps"))
        admission, again, mae, crps = (
            f"{np.mean([run[group][key] for run in runs]):.1f}" for group, key in picked
        )
        later = [f"{np.mean([run[age]['mae'] for run in runs]):.1f}" for age in AGES]
        spread = f"{np.std(steps):.1f}" if len(runs) > 1 else "–"
        rows.append([name, admission, again, mae, spread, crps, *later])
    said = f"Noise floor: repeated MAE {floor['mae']:.1f}, {floor['n']:,} samples of such prompts."
    return f"{table(head, rows)}\n\n{said}"


if __name__ == "__main__":
    main()
