"""Command ``demo``: predict, assess, verdict, on built-in workloads, and write a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sagellm_lifetime.cli.assess import keep_vllm_quiet, show
from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import Json, Seed, can_train_networks
from sagellm_lifetime.cli.output import listed, note, progress, say, table, write_json
from sagellm_lifetime.cli.paths import check_json, check_report
from sagellm_lifetime.cli.score_table import COLUMNS, LEGEND, note_left_out, score_rows
from sagellm_lifetime.core.atomic import write_atomically
from sagellm_lifetime.core.wording import counted

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.assessment.verdict import Verdict as Assessed
    from sagellm_lifetime.evaluation.protocol import Evaluation
    from sagellm_lifetime.evaluation.verdict import Verdict

INVENTED: Final = ("regular", "specification")
RECORDED: Final = "smollm2-answers"
PROFILES: Final = (RECORDED, "chat", "coding-agent", "regular")
ROWS: Final = 5000
MOST_ROWS: Final = 1_000_000
EPOCHS: Final = 6
ASSESSED: Final = "azure-conversation"
"""The workload that is assessed, on a small share of a GPU so that requests wait for memory."""
ASSESSED_ROWS: Final = 2000
KV_TOKENS: Final = 60_000
MULTIPLES: Final = (1.0, 2.0, 3.0)
VERDICT_PAGE: Final = "verdict.html"
LOG: Final = f"{ASSESSED}.parquet"


def demo(
    context: typer.Context,
    *,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Workloads: real answers of a small chat model, smollm2-answers; from published "
            "statistics of public traces: azure-conversation, mooncake-conversation, reasoning, "
            "chat, coding-agent; or invented ones of known difficulty: regular, specification. "
            "Several with spaces between.",
            show_default=", ".join(PROFILES),
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")] = Path(
        "report"
    ),
    rows: Annotated[
        int, typer.Option(min=100, max=MOST_ROWS, help="Requests of each workload, at most.")
    ] = ROWS,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the networks, at most.")] = EPOCHS,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Compare all predictors on built-in workloads, assess one, and end with its verdict.

    Tables and plots go to a report. The assessment replays the workload through vLLM's own
    scheduler; without vLLM it measures the predictor alone.
    """
    from sagellm_lifetime.assessment.page import write_page
    from sagellm_lifetime.evaluation.study import to_json
    from sagellm_lifetime.evaluation.verdict import verdict
    from sagellm_lifetime.predictor.registry import PREDICTORS, needs_torch

    profiles = list(dict.fromkeys(profile or PROFILES))
    check_profiles(profiles)
    check_report(output, (VERDICT_PAGE, LOG))
    check_json(json)
    left_out = [] if can_train_networks() else [name for name in PREDICTORS if needs_torch(name)]
    names = [name for name in PREDICTORS if name not in left_out]
    started = perf_counter()
    results: dict[str, Sequence[Evaluation]] = {}
    for workload in profiles:
        work = _rows(workload, rows, seed)
        note(f"{workload}: {counted(len(work), 'request')}, 70% to train on, the others to score")
        results[workload] = _compare(workload, work, names, seed, epochs)
        folder = output if len(profiles) == 1 else output / workload
        _report(folder, workload, results[workload])
    page = output / "report.md"
    program = context.parent.command_path if context.parent is not None else "sagellm-lifetime"
    verdicts = {name: ahead for name, done in results.items() if (ahead := verdict(done))}
    if len(profiles) > 1:
        write_atomically(page, _index(results, verdicts, _closing(verdicts, program)).encode())
    assessed = _assess(output / LOG, min(rows, ASSESSED_ROWS), seed)
    write_page(output / VERDICT_PAGE, assessed, program)
    if json is not None:
        settings = {"rows": rows, "epochs": epochs, "seed": seed}
        found = {name: to_json(done, settings) for name, done in results.items()}
        write_json(found | {"assessment": assessed.to_json(program)}, json)
    if json != "-":
        _show(results)
        if left_out:
            say(f"Left out: {listed(left_out, 'and')}: pip install 'isagellm-lifetime[train]'")
        say(f"Report with plots: {page}  ({perf_counter() - started:.0f} s)")
        if RECORDED in profiles:
            for line in _ladder(rows, seed):
                say(line)
        for line in _closing(verdicts, program):
            say(line)
        say()
        say(
            f"Assessed: {output / LOG}, {assessed.rows:,} requests, on a share of an A100 "
            f"({output / VERDICT_PAGE})"
        )
        show(assessed, program)


def check_profiles(names: list[str]) -> None:
    """Raise :class:`UnknownNameError` for a workload that is not built in."""
    from sagellm_lifetime.core.errors import UnknownNameError
    from sagellm_lifetime.workloads import PROFILES as MEASURED

    for name in names:
        known = [RECORDED, *MEASURED, *INVENTED]
        if name not in known:
            raise UnknownNameError("profile", name, known)


def _rows(name: str, rows: int, seed: int) -> pl.DataFrame:
    from sagellm_lifetime import workloads as profiles

    if name == RECORDED:
        from sagellm_lifetime.workloads.recorded import recorded

        return recorded().head(rows)
    if name in INVENTED:
        make = profiles.regular if name == "regular" else profiles.specification
        return make(rows, seed)
    return profiles.generate(name, rows, seed=seed)


def _compare(
    name: str, work: pl.DataFrame, predictors: list[str], seed: int, epochs: int
) -> Sequence[Evaluation]:
    """Train all predictors on a part of a workload, and score them on the rest, frozen."""
    from sagellm_lifetime.evaluation.dataset import Dataset
    from sagellm_lifetime.evaluation.study import Study, StudySettings
    from sagellm_lifetime.predictor.registry import has_network

    settings = StudySettings(
        predictors=predictors,
        # Some recorded answers have the same prompt; all of these go to one part.
        split="session" if name == RECORDED else "auto",
        online=False,
        seed=seed,
        options={network: {"epochs": epochs} for network in predictors if has_network(network)},
    )
    study = Study(Dataset.of(work, name), settings)
    with progress(name) as step:
        study.fit(step)
    note_left_out(study.left_out)
    with progress(name) as step:
        return study.run(step).evaluations


def _ladder(rows: int, seed: int) -> list[str]:
    """Return lines on what history, prompt and model each add, on the recorded answers."""
    from sagellm_lifetime.core.hidden_states import COLUMNS as STATES
    from sagellm_lifetime.evaluation.protocol import evaluate
    from sagellm_lifetime.history.splits import split
    from sagellm_lifetime.predictor.registry import create_predictor
    from sagellm_lifetime.workloads.recorded import recorded

    work = recorded(hidden=True).head(rows)
    content = ("prompt_text", "prompt_token_ids", "output_token_ids")
    lines = [
        "",
        f"What each source adds ({RECORDED}, survival, mean error in tokens, at 0 and 32):",
    ]
    steps = {
        "history": [*content, *STATES],
        "+ prompt": [*STATES],
        "+ model's hidden state": [],
    }
    for name, missing in steps.items():
        cut = split(work.drop(missing, strict=False), "session")
        found = evaluate(create_predictor("survival", seed=seed).fit(cut.train), cut.test).to_dict()
        errors = [found["admission"]["mae"], found["ages"].get("32", {}).get("mae")]
        lines.append(f"  {name:<24}" + "".join(f"{error or 0:8.1f}" for error in errors))
    return [*lines, "  (with the hidden state, 0 is after prefill: engine start --watch-hidden)"]


def _assess(log: Path, rows: int, seed: int) -> Assessed:
    """Write :data:`ASSESSED` as a log, and return the verdict on it."""
    from sagellm_lifetime.assessment.assessment import Assessment, AssessmentSettings
    from sagellm_lifetime.assessment.engine import Engine
    from sagellm_lifetime.evaluation.dataset import Dataset
    from sagellm_lifetime.history import write_history
    from sagellm_lifetime.workloads import generate

    work = generate(ASSESSED, rows, seed=seed)
    write_history(work, log)
    settings = replace(AssessmentSettings.of(quick=True, seed=seed), multiples=MULTIPLES)
    engine = Engine.of(gpu="a100", model_size="7b", kv_tokens=KV_TOKENS)
    assessment = Assessment(Dataset.of(work, str(log)), engine, settings=settings)
    keep_vllm_quiet()
    with progress("assess") as step:
        return assessment.run(step)


def _report(folder: Path, name: str, evaluations: Sequence[Evaluation]) -> None:
    from sagellm_lifetime.evaluation.report import write_report

    with progress("drawing the report"):
        try:
            write_report(folder, evaluations, title=f"Lifetime predictors on {name}")
        except OSError as error:
            raise CommandError(f"{folder}: cannot be written ({error.strerror})") from error


def _show(results: dict[str, Sequence[Evaluation]]) -> None:
    lines: list[list[str] | None] = []
    for name, evaluations in results.items():
        blank = [""] * (len(COLUMNS) - 1)
        lines += [None] if lines else []
        lines.append([name, *blank])
        lines += [[f"  {first}", *rest] for first, *rest in score_rows(evaluations)]
    table(COLUMNS, lines)
    say(LEGEND)


def _closing(verdicts: dict[str, Verdict], program: str) -> list[str]:
    """Return the closing lines: gains by workload, the recommended predictor, and next commands."""
    lines = ["", "Over all steps (± is a 95 % interval):"]
    for name, result in verdicts.items():
        lines += wrap(f"{name}: {result.says()}", 96, initial_indent="  ", subsequent_indent="    ")
    paying = [name for name, result in verdicts.items() if result.pays]
    others = [name for name, result in verdicts.items() if result.enough and not result.pays]
    lines.append("")
    if paying:
        gains = [f"{name} ({verdicts[name].simple.gain:.0%})" for name in paying]
        text = f"Prediction pays on {listed(gains, 'and')}: so much less error than the best rule "
        text += "without a model."
        if others:
            text += f" On {listed(others, 'and')} it does not: a request tells too little there."
        lines += wrap(text, 96)
    elif others:
        lines.append(f"Prediction pays on none of these: {listed(others, 'and')}.")
    led = _first_choice(verdicts)
    lines += wrap(_advice(verdicts, led), 96)
    for when, best in (
        ("over all steps", {name: v.best for name, v in verdicts.items()}),
        ("at admission", {name: v.best_at_admission for name, v in verdicts.items()}),
    ):
        beaten = [
            f"{name} ({predictor})"
            for name, predictor in best.items()
            if predictor is not None and predictor not in verdicts[name].predictors
        ]
        if beaten:
            text = f"A baseline has the least error of all {when} on {listed(beaten, 'and')}."
            lines += wrap(text, 96)
    lines += [
        "Next, with your own history: does it pay, and what does it buy?",
        f"  {program} evaluate --data-path FILE --predictor-type {led} --report report/own",
        f"  {program} train --data-path FILE --predictor-type {led}",
        f"  {program} assess FILE --gpu h100 --model-size 8b    (one verdict; needs vLLM)",
    ]
    return lines


def _first_choice(verdicts: dict[str, Verdict]) -> str:
    """Return the predictor that is best on most workloads where prediction pays, else on all.

    Of equals, :data:`UNTRAINED` is preferred, then the one with the larger gains.
    """
    from sagellm_lifetime.evaluation.verdict import UNTRAINED

    counted = [result for result in verdicts.values() if result.pays] or list(verdicts.values())
    gains: dict[str, list[float]] = {}
    for result in counted:
        gains.setdefault(result.choice, []).append(result.simple.gain)
    if not gains:
        return UNTRAINED
    return max(gains, key=lambda name: (len(gains[name]), name == UNTRAINED, sum(gains[name])))


def _advice(verdicts: dict[str, Verdict], led: str) -> str:
    """Return the recommended predictor, and the workloads where a trained one is better."""
    from sagellm_lifetime.evaluation.verdict import UNTRAINED

    ahead: dict[str, list[str]] = {}
    for name, result in verdicts.items():
        if result.choice != UNTRAINED and result.pays:
            ahead.setdefault(result.choice, []).append(name)
    better = [f"{predictor} on {listed(names, 'and')}" for predictor, names in ahead.items()]
    text = f"Start with {led}"
    if led == UNTRAINED:
        text += ": it needs no training"
        text += ", and no other predictor is ahead of it by more than chance" if not better else ""
    text += "."
    if led == UNTRAINED:
        text += f" The default, auto, is {UNTRAINED}, and a network beside it where one helps."
    if better:
        text += f" Ahead of {UNTRAINED} by more than chance: {listed(better, 'and')}."
    return text


def _index(
    results: dict[str, Sequence[Evaluation]], verdicts: dict[str, Verdict], closing: Sequence[str]
) -> str:
    from sagellm_lifetime.evaluation.report import all_scores, score_table

    said = "\n".join(closing).strip().splitlines()
    lines = ["# Lifetime predictors: demo", "", "```text", *said, "```", ""]
    for name, evaluations in results.items():
        first, scores = evaluations[0], all_scores(evaluations)
        lines += [f"## {name}", "", f"[All tables and plots]({name}/report.md)", ""]
        if name in verdicts:
            lines += [f"Over all steps: {verdicts[name].says()} (± is a 95 % interval.)", ""]
        for group, heading in (("admission", "At admission"), ("steps", "Over all steps")):
            lines += [f"### {heading}", ""]
            group_scores = {predictor: score[group] for predictor, score in scores.items()}
            lines += [*score_table(group_scores, first), ""]
        lines += [f"![Error by age, {name}]({name}/error_by_age.png)", ""]
    return "\n".join(lines)
