"""``evaluate``: how good predictors are on a history, rivals beside."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagellm_lifetime.cli.fitting import ClockKind, Reading, check_names, fit
from sagellm_lifetime.cli.guard import CommandError
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
)
from sagellm_lifetime.cli.output import note, progress, say, table, write_json
from sagellm_lifetime.cli.places import check_folder, check_json
from sagellm_lifetime.cli.scores import COLUMNS, LEGEND, measure, score_rows, to_json

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.evaluation.rivals.base import Rival
    from sagellm_lifetime.predictor.base import Predictor

DEFAULT = "lstm"


class Way(StrEnum):
    """How a history is cut in a training and a test part."""

    auto = "auto"
    time = "time"
    session = "session"
    prompt = "prompt"


@dataclass
class Job:
    """Fitted predictors, what to score them on, and how it came about."""

    predictors: list[Predictor]
    rivals: list[Rival]
    rows: pl.DataFrame
    settings: dict[str, Any]
    clock: ClockKind


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
    from sagellm_lifetime.evaluation.verdict import verdict

    check_folder(report, FILES)
    written = [report / each for each in FILES] if report is not None else []
    check_json(json, data_path, train_path, checkpoint, *written)
    if split is Way.time and clock is Clock.session:
        raise CommandError("--split time needs one clock: leave --clock session out")
    if split is Way.time:  # whoever cuts by time says that the times are on one clock
        clock = Clock.wall
    reading = Reading(on_bad_rows, cap_reached, clock)
    if checkpoint is not None:
        job = _from_checkpoint(checkpoint, data_path, train_path, online, reading)
    else:
        names = check_names(predictor_type or [DEFAULT])
        way = (split or Way.auto).value
        job = _fitted(
            names,
            data_path,
            train_path=train_path,
            way=way,
            online=online,
            seed=seed,
            reading=reading,
        )
    note(job.settings["how"])
    if online is None:
        online = _has_clock(job.rows)
    evaluations = [
        measure(
            predictor,
            job.rows,
            job.rivals,
            online=online,
            clock=job.clock,
            seed=seed,
            max_rows=max_rows,
            label=f"scoring {predictor.name}",
        )
        for predictor in job.predictors
    ]
    if json is not None:
        settings = {
            **job.settings,
            "seed": seed,
            "max_rows": max_rows,
            "data": data_path,
            "clock": reading.told[data_path]["clock"],
            "read": reading.told,
        }
        write_json(to_json(evaluations, settings), json)
    if json != "-":
        learning = "learning online" if online else "frozen"
        say(f"{evaluations[0].rows:,} sequences, {learning}")
        for line in evaluations[0].points.cuts.says():
            say(line)
        table(COLUMNS, score_rows(evaluations))
        say(LEGEND)
        ahead = verdict(evaluations)
        if ahead is not None:
            say(fill(f"Over all steps (± is a 95 % interval): {ahead.says()}", 96))
    if report is not None:
        note(f"report: {write_report(report, evaluations)}")


def _fitted(
    names: list[str],
    data_path: str,
    *,
    train_path: str | None,
    way: str,
    online: bool | None,
    seed: int,
    reading: Reading,
) -> Job:
    from sagellm_lifetime.cli.beside import say_left_out, trained
    from sagellm_lifetime.history.splits import split

    rows = reading.rows(data_path)
    clock = train_clock = reading.clock_of(data_path, rows)
    if train_path is not None:
        train, test, by = reading.rows(train_path), rows, None
        train_clock = reading.clock_of(train_path, train)
        how = f"trained on {len(train):,} rows of {train_path}, scored on {len(test):,}"
    else:
        parts = split(rows, way, clock=clock)
        train, test, by = parts.train, parts.test, parts.by
        how = f"split by {by}: trained on {len(train):,} rows, scored on the other {len(test):,}"
    _check_rows(test, online)
    if not _has_tokens(train):
        raise CommandError("nothing to train on: no row of the training part has generated tokens")
    with progress("training the baselines"):  # first: what they refuse costs no training
        rivals, left_out = trained(train)
    say_left_out(left_out)
    predictors = [fit(name, train, seed=seed, clock=train_clock) for name in names]
    settings = {"how": how, "split": by, "training_rows": len(train), "left_out": left_out}
    return Job(predictors, rivals, test, settings, clock)


def _check_rows(rows: pl.DataFrame, online: bool | None) -> None:
    """Refuse, before anything is trained, what could not be scored in the end."""
    from sagellm_lifetime.evaluation.points import known_lengths

    if not _has_tokens(rows):
        raise CommandError("nothing to evaluate: no row of the test part has generated tokens")
    if not known_lengths(rows)[rows["actual_length"].to_numpy() > 0].any():
        raise CommandError(
            "nothing to evaluate: no row of the test part ended by itself or at a cap that it "
            "names, so every length is a lower bound"
        )
    if online and not _has_clock(rows):
        raise CommandError(
            "--online needs 'arrival_time' in every row: add the column, or leave --online out"
        )


def _has_tokens(rows: pl.DataFrame) -> bool:
    return bool((rows["actual_length"] > 0).any())


def _has_clock(rows: pl.DataFrame) -> bool:
    return "arrival_time" in rows.columns and not rows["arrival_time"].null_count()


def _from_checkpoint(
    checkpoint: Path,
    data_path: str,
    train_path: str | None,
    online: bool | None,
    reading: Reading,
) -> Job:
    from sagellm_lifetime.cli.beside import cross_fitted, say_left_out, trained
    from sagellm_lifetime.predictor.checkpoint import load_predictor

    predictor = load_predictor(checkpoint)
    rows = reading.rows(data_path)
    clock = reading.clock_of(data_path, rows)
    _check_rows(rows, online)
    known = predictor.summary.get("rows")
    how = f"{predictor.name} of {checkpoint}, scored on {len(rows):,} rows"
    with progress("training the baselines"):
        if train_path is not None:
            rivals, left_out = trained(reading.rows(train_path))
            how += f"; baselines trained on {train_path}"
        else:
            rows, rivals, left_out = cross_fitted(rows, clock)
            how += "; each baseline trained on the half of these rows it is not scored on"
    say_left_out(left_out)
    settings = {"how": how, "split": None, "training_rows": known, "left_out": left_out}
    return Job([predictor], rivals, rows, settings, clock)
