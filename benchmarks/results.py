"""The one command behind ``docs/lab/results.md``: every predictor and rival on all data sets.

    PYTHONPATH=src python benchmarks/results.py [--data FOLDER] [--output docs/lab/results.md]

Each data set is split 70/30, each predictor is trained once on the first part and scored on the
second, frozen and (where there are arrival times) online. Nothing is cached. One process per core
(``--jobs``), each on one thread; 30 to 40 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
from common import DATA, PROMPTS, TRACES, load, percent, say, single_thread, table, write_json

from sagellm_lifetime import create_predictor
from sagellm_lifetime.evaluation.floor import skill
from sagellm_lifetime.evaluation.protocol import Evaluation, evaluate
from sagellm_lifetime.evaluation.rivals import RIVALS, fit_rivals
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.predictor.registry import has_network, predictor_names

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "results.md"
RIVAL_TASK = "rivals"
OURS_TO_SHOW = ("auto", "survival", "lstm", "transformer")
CONSTANT = "constant_median"
BEATEN = (CONSTANT, "residual_life")
COVERED = (0.87, 0.93)
_TRACE_COLUMNS = (
    ("admission", "mae"),
    ("steps", "mae"),
    ("steps", "within_10pct"),
    ("steps", "crps"),
    ("admission", "coverage_80"),
    ("admission", "coverage_90"),
    ("steps", "coverage_80"),
    ("steps", "coverage_90"),
    ("admission", "confidence_ece"),
    ("steps", "confidence_ece"),
)
_HEAD = (
    "admission MAE",
    "steps MAE",
    "steps ≤ 10 %",
    "steps CRPS",
    "adm. cov. 80",
    "adm. cov. 90",
    "steps cov. 80",
    "steps cov. 90",
    "adm. ECE",
    "steps ECE",
)
_SHARES = {"within_10pct", "coverage_80", "coverage_90", "confidence_ece"}
_LESS_IS_BETTER = {"mae", "crps", "confidence_ece"}

INTRODUCTION = """\
# Results

<!-- [[[cog import figures; print(figures.results_answer()) ]]] -->
<!-- [[[end]]] -->

Made by one command, {today}, from the data described in the data folder's own README:

    {command}

Every data set is split once, 70 % to train on and 30 % to be scored on: by time; Claude Code and
ShareGPT by session; the other prompts by prompt. Never by row. {subsample}

**frozen**: trained on the first part, then asked about the second, learning nothing from it.
**online**: the same predictor in simulated time: a sequence is asked about when it arrives and
learned when it finishes, as in an engine. Data without arrival times have no such row. The rivals
do not learn after training; LightGBM has one booster of 200 trees per quantile on the same columns.

| column | meaning |
|---|---|
| admission | at age 0, before the first token |
| steps | every generated token of every sequence equally likely: what a scheduler sees |
| MAE | mean absolute error of the point estimate, tokens |
| ≤ 10 % | share of predicted totals within 10 % of the actual total |
| CRPS | error of the whole distribution, tokens; for a point it is the MAE |
| cov. 80, cov. 90 | share of lengths inside the 80 % and the 90 % interval: 80 and 90 are right. \
Lengths are whole tokens, so where many are equal it can only lie above |
| ECE | expected calibration error of `confidence`, in percentage points |
| repeated MAE | at admission, over the prompts answered three times or more, whose noise floor \
is known |
| skill | (MAE of the constant − MAE) / (MAE of the constant − noise floor), over the same |

Whether a small gap is one, on Claude Code with its few sessions most of all: \
[an example](sessions.md).

Shares are in per cent. The best of each column (errors and ≤ 10 %, over all rows) is **bold**.
"""


def task(name: str, who: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one predictor (or the rivals) on one data set and score it; runs in its own process."""
    single_thread()
    frame = load(options.data, name)
    assert frame is not None  # main() has looked
    cut = split(frame)
    train = cut.train if options.train_rows is None else cut.train.tail(options.train_rows)
    facts = {
        "data": name,
        "split": cut.by,
        "train": len(train),
        "test": len(cut.test),
        "mean_length": cut.test["actual_length"].mean(),
    }
    limit = options.max_rows
    if who == RIVAL_TASK:
        rivals = fit_rivals(train)
        # Any predictor will do to carry the rivals; its own scores are dropped.
        carried = evaluate(
            create_predictor("orca"), cut.test, seed=options.seed, max_rows=limit, rivals=rivals
        )
        return [facts | _scores(carried, rival.name, "frozen") for rival in rivals]
    start = time.perf_counter()
    predictor = create_predictor(who, seed=options.seed).fit(train)
    say(f"{name}: {who} trained in {time.perf_counter() - start:.0f} s")
    frozen = evaluate(predictor, cut.test, seed=options.seed, max_rows=limit)
    found = [facts | _scores(frozen, who, "frozen")]
    if _has_times(cut.test):
        online = evaluate(predictor, cut.test, online=True, seed=options.seed, max_rows=limit)
        found.append(facts | _scores(online, who, "online"))
    return found


def _has_times(frame: pl.DataFrame) -> bool:
    return "arrival_time" in frame.columns and frame["arrival_time"].null_count() == 0


def _scores(found: Evaluation, who: str, mode: str) -> dict[str, Any]:
    groups = found.scores[who]
    return {
        "who": who,
        "mode": mode,
        "scored": found.rows,
        "noise_floor": found.floor,
        "admission": groups["admission"],
        "steps": groups["steps"],
    }


def slow_first() -> list[str]:
    """Networks, the rivals (of which one is boosted), then the others, simple ones last."""
    names = predictor_names()
    networks = [name for name in names if has_network(name)]
    return [*networks, RIVAL_TASK, *(n for n in reversed(names) if n not in networks)]


def run(options: argparse.Namespace, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """All tasks, slow ones first, as they finish."""
    todo = [(name, who) for who in slow_first() for name in names]
    if options.predictors:
        todo = [(name, who) for name, who in todo if who in {*options.predictors, RIVAL_TASK}]
    if options.jobs == 1:
        for done, (name, who) in enumerate(todo, 1):
            yield task(name, who, options)
            say(f"{done} of {len(todo)}: {name}, {who}")
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(task, name, who, options): (name, who) for name, who in todo}
        for done, future in enumerate(as_completed(futures), 1):
            yield future.result()
            say(f"{done} of {len(todo)}: {', '.join(futures[future])}")


def markdown(found: list[dict[str, Any]], names: list[str], command: str, limit: int | None) -> str:
    """The whole page."""
    subsample = f"Of the second part, {limit:,} rows drawn at random are scored." if limit else ""
    text = INTRODUCTION.format(
        command=command, subsample=subsample, today=date.today().isoformat()
    ).replace(" \n", "\n")
    parts = [text]
    for title, group in (("Traces", TRACES), ("Prompts", PROMPTS)):
        here = [name for name in group if name in names]
        if here:
            parts.append(f"## {title}\n")
            if group is TRACES:
                parts.append(summary(found, here))
            parts += [section(found, name) for name in here]
    return "\n".join(parts)


def ordered(found: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Rows of one data set: rivals, then ours as registered, frozen before online."""
    order = [*RIVALS, *predictor_names()]
    here = [each for each in found if each["data"] == name]
    return sorted(here, key=lambda each: (order.index(each["who"]), each["mode"]))


def section(found: list[dict[str, Any]], name: str) -> str:
    """The table of one data set."""
    rows = ordered(found, name)
    first = rows[0]
    head, columns = list(_HEAD), list(_TRACE_COLUMNS)
    floor = first["noise_floor"]
    best = {column: _best(rows, column) for column in columns}
    constants = [row["admission"] for row in rows if row["who"] == CONSTANT]
    constant = constants[0].get("mae_repeated") if constants else None
    cells = []
    for row in rows:
        line = [row["who"], row["mode"], *(_cell(row, c, best[c]) for c in columns)]
        if floor is not None:
            again = row["admission"]["mae_repeated"]
            line += [f"{again:.1f}", percent(skill(again, constant, floor))]
        cells.append(line)
    if floor is not None:
        head += ["repeated MAE", "skill"]
        cells.append(
            ["noise floor", None, *[None] * len(columns), f"{floor['mae']:.1f}", percent(1.0)]
        )
    text = (
        f"### {name}\n\n{first['train']:,} rows to train on, {first['scored']:,} scored; split by "
        f"{first['split']}; mean length {first['mean_length']:.0f} tokens.\n\n"
    )
    return text + table(["predictor", "mode", *head], cells) + "\n"


def _cell(row: dict[str, Any], column: tuple[str, str], best: float | None) -> str | None:
    group, key = column
    value = row[group][key]
    if value is None:
        return None
    text = percent(value) if key in _SHARES else f"{value:.1f}"
    return f"**{text}**" if value == best else text


def _best(rows: list[dict[str, Any]], column: tuple[str, str]) -> float | None:
    group, key = column
    if key in {"coverage_80", "coverage_90"}:
        return None
    values = [row[group][key] for row in rows if row[group][key] is not None]
    if not values:
        return None
    return min(values) if key in _LESS_IS_BETTER else max(values)


def summary(found: list[dict[str, Any]], names: list[str]) -> str:
    """Steps MAE of everybody on every trace, and whether what was promised holds."""
    rows, order = [], [*RIVALS, *predictor_names()]
    value = {(r["data"], r["who"], r["mode"]): r for r in found}
    keys = {(r["who"], r["mode"]) for r in found if r["data"] in names}
    for who, mode in sorted(keys, key=lambda k: (order.index(k[0]), k[1])):
        maes = [value.get((name, who, mode), {}).get("steps", {}).get("mae") for name in names]
        rows.append([who, mode, *(None if m is None else f"{m:.1f}" for m in maes)])
    text = "Steps MAE, tokens:\n\n" + table(["predictor", "mode", *names], rows) + "\n"
    checks = []
    for who in OURS_TO_SHOW:
        for mode in ("frozen", "online"):
            kept = [_promise(value, name, who, mode) for name in names]
            if any(cell is not None for cell in kept):
                checks.append([who, mode, *kept])
    if checks:
        text += (
            "\nSteps MAE below the constant median's and the residual-life table's; and coverage "
            "of the 90 % interval at the steps, to lie within 87–93 %:\n\n"
            + table(["predictor", "mode", *names], checks)
            + "\n"
        )
    return text


def _promise(
    value: dict[tuple[str, str, str], dict[str, Any]], name: str, who: str, mode: str
) -> str | None:
    own = value.get((name, who, mode))
    rivals = [value.get((name, rival, "frozen")) for rival in BEATEN]
    if own is None or None in rivals:
        return None
    beats = all(r is not None and own["steps"]["mae"] < r["steps"]["mae"] for r in rivals)
    covered = own["steps"]["coverage_90"]
    inside = COVERED[0] <= covered <= COVERED[1]
    said = "below" if beats else "NOT BELOW"
    return f"{said}, {percent(covered)}{'' if inside else ' (OUTSIDE)'}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="the page to write")
    parser.add_argument("--json", type=Path, help="also write every score to this file")
    parser.add_argument("--only", nargs="+", choices=(*TRACES, *PROMPTS), help="data sets")
    parser.add_argument(
        "--predictors", nargs="+", choices=predictor_names(), help="beside the rivals"
    )
    parser.add_argument("--max-rows", type=int, help="rows of each test part to score, at most")
    parser.add_argument("--train-rows", type=int, help="newest rows to train on, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "benchmarks/results.py", *given])
    wanted = options.only or [*TRACES, *PROMPTS]
    names = [name for name in wanted if load(options.data, name) is not None]
    if not names:
        raise SystemExit(f"no data set found in {options.data}: give --data FOLDER")
    found = [each for part in run(options, names) for each in part]
    page = markdown(found, names, f"PYTHONPATH=src {command}", options.max_rows)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page, encoding="utf-8")
    write_json(options.json, found)
    print(page)
    say(f"written to {options.output}")


if __name__ == "__main__":
    main()
