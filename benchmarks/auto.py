"""``auto`` beside its members and the rivals: frozen, on rows, sessions or prompts never seen.

    PYTHONPATH=src python benchmarks/auto.py [--data FOLDER] [--output FILE]

Each data set is split 70/30 as in ``results.py``; every predictor is fitted on the first part, and
scored on at most ``--rows`` rows of the second. One to three minutes of processor time a data set.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, PROMPTS, TRACES, code, load, say, single_thread, table

from sagellm_lifetime import create_predictor
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import fit_rivals
from sagellm_lifetime.history.splits import split

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "auto.md"
RIVALS = ("constant_median", "residual_life", "lightgbm")
HEAD = ["data", "predictor", "seed", "adm. MAE", "tau", "adm. CRPS", "cov. 90"]
INTRODUCTION = """\
# `auto` beside its members

{answer}

{code}:

    {command}

Frozen: nothing is learned from the rows that are scored, {rows} of each data set at most.
`survival` and `lstm` are the members of `auto` alone; LightGBM has all columns and the text.
What it is: [learning](../explanation/learning.md).

"""


def cells(scores: dict[str, Any]) -> list[Any]:
    """Return the numbers of one row of the page."""
    here, steps = scores["admission"], scores["steps"]

    def number(value: float | None, form: str = ".1f", scale: float = 1.0) -> str | None:
        return None if value is None or not np.isfinite(value) else format(scale * value, form)

    return [
        number(here["mae"]),
        number(here["kendall_tau"], ".2f"),
        number(here["crps"]),
        number(here["coverage_90"], ".1f", 100.0),
        number(steps["mae"]),
        number(steps["crps"]),
    ]


def scored(name: str, frame: Any, options: argparse.Namespace) -> list[list[Any]]:
    """Return the rows of one data set."""
    cut = split(frame)
    rows: list[list[Any]] = []
    rivals = fit_rivals(cut.train, list(RIVALS))
    for seed in range(options.seeds):
        for kind in options.predictors:
            started = time.process_time()
            predictor = create_predictor(kind, seed=seed).fit(cut.train)
            asked = rivals if not rows else ()
            found = evaluate(predictor, cut.test, max_rows=options.rows, rivals=asked).to_dict()
            for rival, scores in found["baselines"].items():
                rows.append([name, rival, None, *cells(scores)])
            decision = getattr(predictor.model, "decision", "")
            rows.append([name, kind, seed, *cells(found)])
            say(f"{rows[-1]} {decision} ({time.process_time() - started:.0f} s of CPU)")
    return rows


def answer(rows: list[list[Any]], names: list[str]) -> str:
    """Return the first sentence: ``auto`` against its best member and LightGBM, steps and start."""
    behind, trees = [], []
    for name in names:
        for column in (3, 7):
            mean = {
                kind: np.mean([float(row[column]) for row in rows if row[:2] == [name, kind]])
                for kind in dict.fromkeys(row[1] for row in rows if row[0] == name)
            }
            members = [mean[kind] for kind in ("survival", "lstm") if kind in mean]
            if "auto" in mean and members:
                behind.append(100.0 * (mean["auto"] / min(members) - 1.0))
            if "auto" in mean and "lightgbm" in mean and column == 3:
                trees.append(100.0 * (mean["auto"] / mean["lightgbm"] - 1.0))
    if not behind:
        return "Nothing was measured."
    sets = f"{len(names)} data set{'s' * (len(names) != 1)}"
    text = (
        f"On {sets}, at admission and over all steps, the MAE of `auto` is "
        f"{min(behind):+.1f} … {max(behind):+.1f} % of that of its best member"
    )
    if trees:
        text += f", and at admission {min(trees):+.1f} … {max(trees):+.1f} % of LightGBM's"
    return text + "."


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder")
    parser.add_argument("--only", nargs="+", default=[*PROMPTS, *TRACES])
    parser.add_argument("--predictors", nargs="+", default=["survival", "lstm", "auto"])
    parser.add_argument("--rows", type=int, default=3000, help="rows scored of each data set")
    parser.add_argument("--train-rows", type=int, help="first rows of each data set that are used")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args(arguments)
    single_thread()
    made, rows, names = code(), [], []
    command = "PYTHONPATH=src python benchmarks/auto.py " + shlex.join(sys.argv[1:])
    for name in options.only:
        frame = load(options.data, name)
        if frame is None:
            continue
        frame = frame if options.train_rows is None else frame.head(options.train_rows)
        rows += scored(name, frame, options)
        names.append(name)
        page = INTRODUCTION.format(
            answer=answer(rows, names),
            code=f"Made {made}",
            command=command.strip(),
            rows=f"{options.rows:,}",
        )
        # Written after every data set, so that an interrupted run leaves a page.
        page += table([*HEAD, "steps MAE", "steps CRPS"], rows) + "\n"
        options.output.write_text(page, encoding="utf-8")
    if rows:
        print(page)


if __name__ == "__main__":
    main()
