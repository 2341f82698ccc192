"""What the hidden score buys: the recorded answers, with hidden states and without them.

    PYTHONPATH=src python benchmarks/hidden_score.py [--seeds 3] [--output FILE]

Both recordings that ship with the package hold 16 components of three readings of the model's
hidden state. They are split 70/30 so that no form of a prompt, and no conversation, is in both
parts, once for each seed. ``survival`` is fitted on the first part with the readings and without
them and scored frozen on the second; LightGBM stands beside it, on text, EOS probability and
entropy as far as they are known at each age. The last rows learn online from nothing: a predictor
is shown 100 answers one by one, then it is frozen and scored. All of it twice: with the kind of
each prompt (its client), and without. About five minutes on one core.

At temperature 0 an answer has no noise, so the error could be 0; the sampling noise of the second
recording is that of its prompts at 0.2.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from answers import compose
from common import code, say, single_thread, table, write_json

from sagellm_lifetime import create_predictor
from sagellm_lifetime.core.hidden_states import COLUMNS
from sagellm_lifetime.core.protocol import LifetimePredictorProtocol
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import fit_rivals
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.prequential import finish_reasons
from sagellm_lifetime.workloads.recorded import recorded

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "hidden-score.md"
GROUPS = {"after prefill": "admission", "age 32": "32", "age 64": "64", "steps": "steps"}
RECORDINGS: dict[str, Callable[[], pl.DataFrame]] = {
    "usual": lambda: recorded(hidden=True),
    "low": lambda: recorded(hidden=True, low=True),
}
TITLES = {"usual": "temperatures 0.5 to 1", "low": "temperatures 0 and 0.2"}
ONLINE = 100
TEST_SHARE = 0.3
INTRODUCTION = """\
# What the hidden score buys

{answer}

{code}:

    {command}

{rows} recorded answers of SmolLM2-135M, 30 % of the prompt forms and scenes of conversations
held out, means over {seeds} seeds. Each cell: MAE in tokens / Kendall tau / % in the 90 % interval.
Without the hidden state "after prefill" is admission. The sampling noise is the error of the median
of the other samples of a prompt, where there are several; at temperature 0 there is none, so the
noise at low temperatures is that of the prompts at 0.2. What it is:
[the hidden score](../explanation/hidden-score.md).

"""


def forms(frame: pl.DataFrame) -> list[str]:
    """Return the form of each row's prompt; all conversations of one scene have one."""
    scenes = len(compose._read("conversations")["scene"])
    filled: dict[str, str] = {}
    fill = compose.Fillings.fill

    def noting(self: compose.Fillings, form: str) -> str:
        text = fill(self, form)
        filled[text] = form
        return text

    compose.Fillings.fill = noting  # type: ignore[method-assign]
    try:
        compose.compose()
    finally:
        compose.Fillings.fill = fill  # type: ignore[method-assign]
    rows = frame.select("prompt_id", "session_id", "prompt_text").iter_rows()
    found = []
    for _, session, text in rows:
        if session:  # "conversation-052/1": its number tells the scene
            number = int(str(session).partition("/")[0].rpartition("-")[2])
            found.append(f"scene {(number - 1) % scenes}")
        else:
            found.append(filled.get(str(text), str(text)))
    return found


def parts(frame: pl.DataFrame, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return a training and a test part that share no form."""
    form = np.array(forms(frame))
    names = np.random.default_rng(seed).permutation(np.unique(form))
    held_out = np.isin(form, names[: round(len(names) * TEST_SHARE)])
    return frame.filter(pl.Series(~held_out)), frame.filter(pl.Series(held_out))


def online(kind: str, train: pl.DataFrame, seed: int) -> LifetimePredictorProtocol:
    """Return a predictor that was shown a hundred answers, one after another, and no more."""
    predictor = create_predictor(kind, seed=seed)
    some = train.sample(ONLINE, shuffle=True, seed=seed)
    requests, lengths = HistoryRequests(some), some["actual_length"].to_list()
    for row, reason in enumerate(finish_reasons(some)):
        for age in (0, 32, 64):
            if age < lengths[row]:
                predictor.predict(requests.request(row, age))
        predictor.update(row, lengths[row], 1.0, finish_reason=reason)
    return predictor


def measured(scores: dict[str, dict[str, Any]]) -> list[tuple[float, ...]]:
    """Return MAE, tau and coverage of each group."""
    return [
        tuple(float(scores[name][key] or 0.0) for key in ("mae", "kendall_tau", "coverage_90"))
        for name in GROUPS.values()
    ]


def run(frame: pl.DataFrame, kinds: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what each variant scores, and the noise floor."""
    train, test = parts(frame, seed)
    bare, bare_test = train.drop(COLUMNS), test.drop(COLUMNS)
    found: dict[str, Any] = {}
    for kind in kinds:
        without = create_predictor(kind, seed=seed).fit(bare)
        rivals = fit_rivals(bare) if kind == kinds[0] else ()
        result = evaluate(without, bare_test, seed=seed, rivals=rivals)
        for name, scores in result.scores.items():
            found[name] = measured(scores)
        found["noise"] = result.floor
        within = evaluate(create_predictor(kind, seed=seed).fit(train), test, seed=seed)
        found[f"{kind}, hidden score"] = measured(within.scores[within.name])
    kind = kinds[0]
    for label, rows, scored in (
        (f"{kind}, {ONLINE} answers", bare, bare_test),
        (f"{kind}, {ONLINE} answers, hidden score", train, test),
    ):
        result = evaluate(online(kind, rows, seed), scored, seed=seed)
        found[label] = measured(result.scores[result.name])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, help="only the first so many answers")
    parser.add_argument("--recordings", nargs="+", choices=RECORDINGS, default=list(RECORDINGS))
    parser.add_argument("--predictors", nargs="+", default=["survival"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    single_thread()
    frames = {title: RECORDINGS[title]() for title in options.recordings}
    made = code()
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for title, answers in frames.items():
        frame = answers.head(options.rows or 10**9).filter(pl.col(COLUMNS[0]).is_not_null())
        frames[title], found = frame, runs.setdefault(title, {})
        for name, rows in {"unknown": frame.drop("client_id"), "known": frame}.items():
            for seed in range(options.seeds):
                found.setdefault(name, []).append(run(rows, options.predictors, seed))
                say(f"{TITLES[title]}: kind {name}, seed {seed}")
    page = report([len(frame) for frame in frames.values()], runs, options.predictors[0], made)
    options.output.write_text(page, encoding="utf-8")
    write_json(options.json, {"runs": runs})
    print(page)


def report(
    rows: Sequence[int], runs: dict[str, dict[str, list[dict[str, Any]]]], kind: str, made: str
) -> str:
    """Return the page."""
    answers, tables, seeds = [], [], 0
    for title, recording in runs.items():
        tables.append(f"## {TITLES[title].capitalize()}\n")
        for known, of_seeds in recording.items():
            ratios, cells = compared(of_seeds, kind)
            after, at_32, at_64, early = (f"{ratio:.2f}" for ratio in ratios)
            answers.append(
                f"- {TITLES[title]}, kind of prompt {known}: {after} (after prefill), "
                f"{at_32} (age 32), {at_64} (age 64); online after {ONLINE} answers {early}"
            )
            tables.append(f"Kind {known}:\n\n{table(['predictor', *GROUPS], cells)}\n")
            seeds = len(of_seeds)
    command = "PYTHONPATH=src python benchmarks/hidden_score.py " + shlex.join(sys.argv[1:])
    page = INTRODUCTION.format(
        answer="The error with hidden states, over that of the best without:\n\n"
        + "\n".join(answers),
        code=f"Made {made}",
        command=command.strip(),
        rows=" and ".join(f"{count:,}" for count in rows),
        seeds=seeds,
    )
    return page + "\n".join(tables)


def compared(runs: list[dict[str, Any]], kind: str) -> tuple[list[float], list[list[str | None]]]:
    """Return the errors with hidden states over the best without, and the rows of the table."""
    names = [name for name in runs[0] if name != "noise"]
    means = {name: np.mean([one[name] for one in runs], axis=0) for name in names}
    rows: list[list[str | None]] = [
        [name, *(f"{mae:.1f} / {tau:.2f} / {100 * share:.0f}" for mae, tau, share in means[name])]
        for name in names
    ]
    noise = [one["noise"]["mae"] for one in runs if one["noise"]]
    rows.append(["sampling noise", f"{np.mean(noise):.1f}" if noise else None, None, None, None])
    without = [name for name in names if "hidden" not in name and "answers" not in name]
    best = np.min([means[name][:3, 0] for name in without], axis=0)
    first = f"{kind}, {ONLINE} answers"
    early = means[f"{first}, hidden score"][0, 0] / means[first][0, 0]
    return [*(means[f"{kind}, hidden score"][:3, 0] / best).tolist(), float(early)], rows


if __name__ == "__main__":
    main()
