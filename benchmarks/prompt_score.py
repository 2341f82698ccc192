"""What the prompt score buys: prompts that were never seen, with their text and without it.

    PYTHONPATH=src python benchmarks/prompt_score.py [--data FOLDER] [--output FILE]

Each prompt set is split 70/30 by prompt (ShareGPT by session), a predictor is fitted on the first
part with all columns and without ``prompt_text``, and both are scored frozen on the second. The
score alone is timed on a prompt of 200 tokens, as ids and as text. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, PROMPTS, code, load, say, single_thread, table

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.features.context import RecentCompletions
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.models.context import ObservedRequest
from sagellm_lifetime.models.prompt_score import PromptScore

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "prompt-score.md"
TEXT = "prompt_text"
HEAD = ["prompts", "predictor", "text", "admission MAE", "Kendall tau", "CRPS", "coverage 90"]
INTRODUCTION = """\
# What the prompt score buys

{answer}

{code}:

    {command}

Unseen prompts (30 %; ShareGPT: unseen sessions), frozen, at admission unless said. What it is:
[the prompt score](../explanation/prompt-score.md).

"""


def scores(frame: Any, kind: str, *, text: bool) -> list[Any]:
    """Return the cells of one row: fitted and scored with the text, or without it."""
    cut = split(frame)
    parts = [part if text else part.drop(TEXT) for part in (cut.train, cut.test)]
    found = evaluate(create_predictor(kind).fit(parts[0]), parts[1]).to_dict()
    here, steps = found["admission"], found["steps"]
    return [
        "yes" if text else "no",
        f"{here['mae']:.1f}",
        None if here["kendall_tau"] is None else f"{here['kendall_tau']:.2f}",
        f"{here['crps']:.1f}",
        f"{100 * here['coverage_90']:.1f}",
        f"{steps['mae']:.1f}",
    ]


def cost(kind: str, rounds: int) -> float:
    """Return the CPU time of one score of a prompt of 200 tokens, µs: the median of 9."""
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in rng.integers(0, 3000, 150)]
    given = {} if kind == "ids" else {TEXT: " ".join(words)}
    tokens = rng.integers(0, 150_000, 200).tolist() if kind == "ids" else []
    observed = ObservedRequest(
        PredictionRequest(1, tokens, 0, None, given), RequestFeatures(), 0, RecentCompletions()
    )
    learned = PromptScore()
    for length in range(1, 200):
        features, terms = learned.scored(observed)
        learned.learn(features, terms, length, censored=False)
    times = []
    for _ in range(9):
        start = time.process_time()
        for _ in range(rounds):
            learned.scored(observed)
        times.append((time.process_time() - start) / rounds * 1e6)
    return float(np.median(times))


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder")
    parser.add_argument("--only", nargs="+", default=list(PROMPTS))
    parser.add_argument("--predictors", nargs="+", default=["survival"])
    parser.add_argument("--rows", type=int, help="first rows of each set, all by default")
    parser.add_argument("--rounds", type=int, default=300, help="scores timed, nine times")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args(arguments)
    single_thread()
    made, rows, changes = code(), [], []
    for name in options.only:
        frame = load(options.data, name)
        if frame is None or TEXT not in frame.columns:
            continue
        frame = frame if options.rows is None else frame.head(options.rows)
        for kind in options.predictors:
            for text in (False, True):
                rows.append([name, kind, *scores(frame, kind, text=text)])
                say(f"{name}, {kind}: {rows[-1][2:]}")
            before, after = (float(row[3]) for row in rows[-2:])
            changes.append(100.0 * (after / before - 1.0))
    answer = "Nothing was measured."
    if rows:
        answer = (
            f"On {len(changes)} pairs of prompts and predictors the error at admission changes by "
            f"{min(changes):+.1f} … {max(changes):+.1f} % with the text of the prompt. One score "
            f"of 200 tokens costs {cost('ids', options.rounds):.0f} µs from ids and "
            f"{cost('text', options.rounds):.0f} µs from text."
        )
    command = "PYTHONPATH=src python benchmarks/prompt_score.py " + shlex.join(sys.argv[1:])
    page = INTRODUCTION.format(answer=answer, code=f"Made {made}", command=command.strip())
    page += table([*HEAD, "steps MAE"], rows) + "\n"
    options.output.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
