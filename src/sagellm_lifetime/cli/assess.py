"""Command ``assess``: one verdict on a log."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sagellm_lifetime.assessment.server import KEY_VARIABLE
from sagellm_lifetime.cli.options import (
    BadRows,
    CapReached,
    CapReachedOption,
    Clock,
    ClockOption,
    Json,
    MapOption,
    OnBadRows,
    QueryOption,
    SaveMapOption,
    Seed,
    chosen_predictors,
)
from sagellm_lifetime.cli.output import note, progress, say, table, write_json
from sagellm_lifetime.cli.paths import check_apart, check_file, check_json
from sagellm_lifetime.cli.reading import Mapping, Reading, check_query

if TYPE_CHECKING:
    from sagellm_lifetime.assessment.replay_part import ReplayPart
    from sagellm_lifetime.assessment.verdict import Verdict

WIDTH: Final = 80
SLO: Final = "ttft=2s,tpot=100ms,share=0.95"
COLUMNS: Final = ("load", "mean s", "p50 s", "p99 s", "first", "wait", "within", "queue")
LEGEND: Final = (
    "Simulated seconds{}, ramp and drain left out. first: mean time to the first token; wait: the "
    "longest; within: share within the times of the objective; queue: whether it grows, so that "
    "all of it gets worse for as long as the load lasts."
)


def assess(
    context: typer.Context,
    logs: Annotated[
        str, typer.Argument(metavar="LOGS", help="A log: a file, a glob, a folder, or a database.")
    ],
    *,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What it is served on: l4, l40s, a100-40g, a100, h100, h200, b200, mi300x; "
            "several as 2xh100.",
            show_default="h100",
        ),
    ] = None,
    model_size: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Size of the model: 1.5b, 3b, 7b, 8b, 14b, 32b, 70b; with weights of 8 bits as "
            "70b-fp8.",
            show_default="8b",
        ),
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(
            min=256,
            max=64_000_000,
            help='Tokens that the KV cache holds; vLLM logs "GPU KV cache size: N tokens".',
            show_default="from --gpu and --model-size",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Ask this running vLLM server for its KV memory and limits (API key: "
            f"{KEY_VARIABLE}).",
            show_default=False,
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_536,
            help="vLLM's option of this name.",
            show_default="of --engine, else vLLM's on the GPU",
        ),
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_048_576,
            help="vLLM's option of this name.",
            show_default="of --engine, else vLLM's on the GPU",
        ),
    ] = None,
    slo: Annotated[
        str,
        typer.Option(
            metavar="OBJECTIVE",
            help="First token, mean time of a further token, share of requests that get both.",
        ),
    ] = SLO,
    predictor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--predictor-type",
            metavar="NAME",
            help="Candidates, the best of which is taken.",
            show_default="survival, linear, baseline; lstm where PyTorch is",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute: one window, fewer candidates.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write one HTML page.", show_default=False),
    ] = None,
    json: Json = None,
    seed: Seed = 0,
    on_bad_rows: BadRows = OnBadRows.refuse,
    cap_reached: CapReachedOption = CapReached.length,
    clock: ClockOption = Clock.auto,
    mapping: MapOption = None,
    save_map: SaveMapOption = None,
    query: QueryOption = None,
) -> None:
    """Say what prediction would buy on your log and engine, and how to switch it on.

    The best predictor is chosen on a part of the log; later requests go through vLLM's own
    scheduler, at their rate and up to three times as fast, under vLLM's default, with a tuned
    watermark, with our policy, and with known lengths.
    """
    from sagellm_lifetime.assessment.assessment import Assessment, AssessmentSettings
    from sagellm_lifetime.assessment.engine import Engine
    from sagellm_lifetime.assessment.objective import Objective

    objective = Objective.parse(slo)
    names = chosen_predictors(predictor_type) if predictor_type else []
    if report is not None:
        check_file(report)
        check_apart(report, [logs])
    check_json(json, logs, report)
    check_query(query, logs)
    columns = Mapping.of(mapping, save_map, logs, json, report)
    reading = Reading(on_bad_rows, cap_reached, clock, columns, query)
    # What is wrong with the engine is told before a long log is read.
    Engine.check(gpu=gpu, model_size=model_size, kv_tokens=kv_tokens, url=engine)
    history = reading.dataset(logs)
    server = Engine.of(
        gpu=gpu,
        model_size=model_size,
        kv_tokens=kv_tokens,
        url=engine,
        key=os.environ.get(KEY_VARIABLE),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        rows=history.rows,
    )
    settings = AssessmentSettings.of(quick=quick, predictors=names, seed=seed)
    assessment = Assessment(history, server, objective, settings)
    keep_vllm_quiet()
    with progress("assess") as step:
        verdict = replace(assessment.run(step), options=reading.options(mapping))
    program = context.parent.command_path if context.parent is not None else "sagellm-lifetime"
    if report is not None:
        from sagellm_lifetime.assessment.page import write_page

        write_page(report, verdict, program)
    if json is not None:
        write_json(verdict.to_json(program) | reading.logs(logs), json)
    if json != "-":
        show(verdict, program)
    if report is not None:
        note(f"report: {report}")


def show(verdict: Verdict, program: str) -> None:
    """Print a verdict on stdout, at most :data:`WIDTH` characters wide."""
    first, *rest = verdict.says()
    _paragraph(first)
    if verdict.replay is not None:
        _tables(verdict.replay)
    for text in rest:
        _paragraph(text)
    say()
    for line in verdict.commands(program):
        say(line)


def _tables(replay: ReplayPart) -> None:
    """Print the figures of each load, and the capacity of each policy."""
    from sagellm_lifetime.assessment.tables import capacity_rows, load_rows

    say()
    table(COLUMNS, load_rows(replay), width=WIDTH)
    several = replay.windows > 1
    _paragraph(LEGEND.format(", medians over the windows" if several else ""))
    say()
    ranges = ("range",) if several else ()
    head = ("within the objective", "requests/s", *ranges, "x load")
    table(head, capacity_rows(replay), width=WIDTH)


def _paragraph(text: str) -> None:
    say()
    for line in wrap(text, WIDTH):
        say(line)


def keep_vllm_quiet() -> None:
    """Keep vLLM from logging to stdout and stderr."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)
