"""Command ``evaluate``: scores of predictors and baselines on a history."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import (
    PREDICTOR_HELP,
    BadRows,
    CapReached,
    CapReachedOption,
    Clock,
    ClockOption,
    DataPath,
    Json,
    OnBadRows,
    Seed,
    chosen_predictors,
)
from sagellm_lifetime.cli.output import note, progress, say, table, write_json
from sagellm_lifetime.cli.paths import check_json, check_report
from sagellm_lifetime.cli.reading import Reading
from sagellm_lifetime.cli.score_table import COLUMNS, LEGEND, note_left_out, score_rows

if TYPE_CHECKING:
    from sagellm_lifetime.evaluation.study import Study, StudyResult

DEFAULT = "lstm"


class Way(StrEnum):
    """Ways to cut a history in a training and a test part."""

    auto = "auto"
    time = "time"
    session = "session"
    prompt = "prompt"


def evaluate(
    *,
    data_path: DataPath,
    train_path: Annotated[
        str | None,
        typer.Option(
            "--train-path",
            metavar="FILE",
            help="Train on this history, and score on all of --data-path.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Score this trained predictor on all of --data-path.",
            show_default=False,
        ),
    ] = None,
    predictor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--predictor-type",
            metavar="NAME",
            help=f"{PREDICTOR_HELP}; several, with spaces or commas between, are compared.",
            show_default=DEFAULT,
        ),
    ] = None,
    split: Annotated[
        Way | None,
        typer.Option(
            help="How --data-path is cut 70/30 without --train-path and --checkpoint.",
            show_default="auto",
        ),
    ] = None,
    online: Annotated[
        bool | None,
        typer.Option(
            "--online/--frozen",
            help="Learn from each row at its finish, in simulated time; or nothing while scoring.",
            show_default="online where every row has an arrival time",
        ),
    ] = None,
    max_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Score a random part of this many rows.", show_default="all"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write tables and plots into this folder.", show_default=False
        ),
    ] = None,
    json: Json = None,
    seed: Seed = 0,
    on_bad_rows: BadRows = OnBadRows.refuse,
    cap_reached: CapReachedOption = CapReached.length,
    clock: ClockOption = Clock.auto,
) -> None:
    """Measure predictors on a history, beside honest baselines.

    Without --train-path and --checkpoint the history itself is cut: 70 % to train on, 30 % to
    score, by time, else by session or prompt; never by row.
    """
    if checkpoint is not None and predictor_type:
        raise CommandError("a checkpoint is of one type: leave --predictor-type out")
    if split is not None and (checkpoint is not None or train_path is not None):
        raise CommandError("--split cuts --data-path, which is scored whole here: leave it out")
    from sagellm_lifetime.evaluation.report import FILES, write_report

    check_report(report, FILES)
    written = [report / name for name in FILES] if report is not None else []
    check_json(json, data_path, train_path, checkpoint, *written)
    if split is Way.time and clock is Clock.session:
        raise CommandError("--split time needs one clock: leave --clock session out")
    if split is Way.time:  # a cut by time needs times on one clock
        clock = Clock.wall
    reading = Reading(on_bad_rows, cap_reached, clock)
    settings: dict[str, Any] = {
        "split": (split or Way.auto).value,
        "online": online,
        "max_rows": max_rows,
        "seed": seed,
    }
    if checkpoint is None:
        settings["predictors"] = chosen_predictors(predictor_type or [DEFAULT])
    study = _study(reading, data_path, train_path, checkpoint, settings)
    with progress("evaluate") as step:
        study.fit(step)
    note_left_out(study.left_out)
    note(study.how)
    with progress("evaluate") as step:
        result = study.run(step)
    if json is not None:
        write_json({**result.to_json(), **reading.logs(data_path, train_path)}, json)
    if json != "-":
        _show(result)
    if report is not None:
        note(f"report: {write_report(report, result.evaluations, is_test=result.is_test)}")


def _study(
    reading: Reading,
    data_path: str,
    train_path: str | None,
    checkpoint: Path | None,
    settings: dict[str, Any],
) -> Study:
    """Return the study of the histories and the checkpoint that the options name."""
    from sagellm_lifetime.evaluation.dataset import Dataset
    from sagellm_lifetime.evaluation.study import Study, StudySettings

    asked = StudySettings(**settings)
    if checkpoint is None:
        data = reading.dataset(data_path)
        train = None if train_path is None else reading.dataset(train_path)
        return Study(data, asked, train=train)
    from sagellm_lifetime.predictor.checkpoint import load_predictor

    predictor = load_predictor(checkpoint)
    data, train = reading.dataset(data_path), None
    if train_path is not None:  # for the baselines, which need no clock
        rows = reading.rows(train_path)
        train = Dataset(rows, train_path, reading=reading.notes[train_path])
    return Study(data, asked, train=train, predictor=predictor, origin=str(checkpoint))


def _show(result: StudyResult) -> None:
    """Print the table and the verdict on stdout."""
    first = result.evaluations[0]
    say(f"{first.rows:,} sequences, {'learning online' if result.online else 'frozen'}")
    for line in first.points.cuts.says():
        say(line)
    table(COLUMNS, score_rows(result.evaluations))
    say(LEGEND)
    if result.verdict is not None:
        say(fill(f"Over all steps (± is a 95 % interval): {result.verdict.says()}", 96))
