"""Command ``train``: a predictor from a history file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import (
    DEFAULT_PREDICTOR,
    PREDICTOR_HELP,
    WIDEST,
    BadRows,
    CapReached,
    CapReachedOption,
    Clock,
    ClockOption,
    DataPath,
    Json,
    MapOption,
    OnBadRows,
    QueryOption,
    SaveMapOption,
    Seed,
    chosen_predictors,
)
from sagellm_lifetime.cli.output import listed, number, progress, say, write_json
from sagellm_lifetime.cli.paths import (
    check_checkpoint_path,
    check_folder,
    check_json,
    default_output,
)
from sagellm_lifetime.cli.reading import Mapping, Reading, check_query
from sagellm_lifetime.core.extras import require

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.predictor.base import Predictor
    from sagellm_lifetime.predictor.ray_fit import RayFit

WIDTHS: Final = ("hidden_size", "d_model")
"""Names of a network's width among its options; the specification has two."""


def train(
    *,
    data_path: DataPath,
    predictor_type: Annotated[
        str, typer.Option("--predictor-type", metavar="NAME", help=PREDICTOR_HELP)
    ] = DEFAULT_PREDICTOR,
    output_path: Annotated[
        Path | None,
        typer.Option(
            "--output-path",
            metavar="DIR",
            help="Where the checkpoint goes; by default runs/lifetime/NAME.",
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            metavar="DIR",
            help="Write the losses of training there, for TensorBoard.",
            show_default=False,
        ),
    ] = None,
    hidden_size: Annotated[
        int | None,
        typer.Option(
            "--hidden-size",
            min=1,
            max=WIDEST,
            help="Width of the network of a predictor that has one.",
            show_default="128",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs", min=1, help="Passes over the history, at most.", show_default="12"
        ),
    ] = None,
    seed: Seed = 0,
    mapping: MapOption = None,
    save_map: SaveMapOption = None,
    query: QueryOption = None,
    on_bad_rows: BadRows = OnBadRows.refuse,
    cap_reached: CapReachedOption = CapReached.length,
    clock: ClockOption = Clock.auto,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Fit the parts of a history as tasks of a Ray cluster, and all rows of it: auto, "
            "HOST:PORT, ray://HOST:PORT, or local for one on this machine.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Train a predictor on a history and save it as a checkpoint."""
    names = chosen_predictors([predictor_type])
    if len(names) > 1:
        raise CommandError("train takes one predictor; evaluate compares several")
    name = names[0]
    options = _network_options(name, hidden_size, epochs, tensorboard)
    target = check_checkpoint_path(output_path or default_output(name))
    check_folder(tensorboard)
    if tensorboard is not None and tensorboard.resolve().is_relative_to(target.resolve()):
        raise CommandError("--tensorboard: choose a folder outside of the checkpoint's")
    check_json(json, data_path, target)

    if ray is not None:
        _refuse_with_ray({"--map": mapping, "--save-map": save_map, "--query": query})
        if on_bad_rows is not OnBadRows.refuse or tensorboard is not None:
            raise CommandError("--ray takes neither --on-bad-rows skip nor --tensorboard")
        from sagellm_lifetime.predictor import ray_fit

        chosen = {key: value for key, value in options.items() if value is not None}
        fit_on = ray_fit.RayFit(ray, name, {"seed": seed, **chosen}, cap_reached.value, clock.value)
        _train_on_ray(fit_on, data_path, target, json)
        return
    check_query(query, data_path)
    columns = Mapping.of(mapping, save_map, data_path, json, target)
    reading = Reading(on_bad_rows, cap_reached, clock, columns, query)
    rows, origin = reading.training_rows(data_path)
    started = perf_counter()
    with ExitStack() as stack:
        prepare = None if tensorboard is None else _logger(tensorboard, stack)
        predictor = fit(name, rows, seed=seed, prepare=prepare, clock=origin, **options)
    seconds = perf_counter() - started
    losses = getattr(predictor.model, "training", {})
    if losses:
        predictor.summary["held_out_loss"] = losses["loss"]
    decision = _keep_decision(predictor)
    read = reading.read(data_path)
    if read["cap_reached"]:
        reached = {"rows": read["cap_reached"], "as": read["cap_reached_as"]}
        predictor.summary["cap_reached"] = reached
    predictor.save(target)

    result = {
        "predictor": name,
        **{key: predictor.summary[key] for key in ("rows", "censored", "length_quantiles")},
        "held_out_loss_before": losses.get("loss_before"),
        "held_out_loss": losses.get("loss"),
        "network": decision,
        "seconds_per_token": predictor.get_metrics()["seconds_per_token"],
        "seconds_per_token_assumed": not _has_durations(rows),
        "seconds": round(seconds, 3),
        "checkpoint": str(target),
        "read": reading.notes,
        "log": reading.log(data_path),
    }
    if json is not None:
        write_json(result, json)
    if json != "-":
        _show(result)


def _refuse_with_ray(given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value is not None:
            raise CommandError(
                f"--ray does not take {option}: convert the log to Parquet first (convert IN OUT)"
            )


def _keep_decision(predictor: Predictor) -> str | None:
    """Note in the summary, and return, what ``auto`` decided about its network, and why."""
    decision: str = getattr(predictor.model, "decision", "")
    if decision:
        predictor.summary["network"] = decision
    return decision or None


def _train_on_ray(fit_on: RayFit, source: str, target: Path, json: str | None) -> None:
    """Fit on a cluster, save the checkpoint and show the result."""
    started = perf_counter()
    with progress(f"training {fit_on.predictor} on Ray") as step:
        predictor = fit_on.run(source, step)
    decision = _keep_decision(predictor)
    predictor.save(target)
    losses = getattr(predictor.model, "training", {})
    summary = predictor.summary
    result = {
        "predictor": fit_on.predictor,
        **{key: summary[key] for key in ("rows", "censored", "length_quantiles", "parts")},
        "held_out_loss_before": losses.get("loss_before"),
        "held_out_loss": losses.get("loss"),
        "network": decision,
        "seconds_per_token": predictor.get_metrics()["seconds_per_token"],
        "seconds_per_token_assumed": "actual_time" not in summary["columns"],
        "seconds": round(perf_counter() - started, 3),
        "checkpoint": str(target),
    }
    if json is not None:
        write_json(result, json)
    if json != "-":
        _show(result)


def fit(
    name: str,
    rows: pl.DataFrame,
    *,
    seed: int,
    prepare: Callable[[Any], None] | None = None,
    clock: Literal["auto", "wall", "session"] = "auto",
    **options: Any,
) -> Predictor:
    """Return a new predictor, fitted on rows.

    Args:
        name: name of the predictor.
        rows: checked rows of a history.
        seed: seed of everything random.
        prepare: called with the predictor before it is fitted.
        clock: origin of the arrival times.
        options: options of the predictor; None stands for the default.
    """
    from sagellm_lifetime.history import History
    from sagellm_lifetime.predictor.registry import create_predictor

    chosen = {key: value for key, value in options.items() if value is not None}
    predictor = create_predictor(name, seed=seed, **chosen)
    if prepare is not None:
        prepare(predictor)
    with progress(f"training {name}") as step:
        # The rows were validated when they were read; a History is not validated again.
        predictor.fit(History(rows), progress=step, clock=clock)
    return predictor


def _network_options(
    name: str, hidden_size: int | None, epochs: int | None, tensorboard: Path | None
) -> dict[str, Any]:
    from sagellm_lifetime.predictor.registry import has_network, model_class, predictor_names

    values = {"--hidden-size": hidden_size, "--epochs": epochs, "--tensorboard": tensorboard}
    is_network = has_network(name)
    for option, value in values.items():
        if value is not None and not is_network:
            others = listed([other for other in predictor_names() if has_network(other)], "and")
            raise CommandError(f"{option} is for {others}; {name} has no network")
    if tensorboard is not None:
        require("tensorboard", "--tensorboard", "train")
    options = signature(model_class(name)).parameters
    width = next((width for width in WIDTHS if width in options), None)
    if width is None and hidden_size is not None:
        raise CommandError(f"--hidden-size: the network of {name} has no width to choose")
    return {"epochs": epochs} if width is None else {width: hidden_size, "epochs": epochs}


def _logger(folder: Path, stack: ExitStack) -> Callable[[Any], None]:
    """Return a function that makes a predictor log to TensorBoard until the stack is closed."""

    def prepare(predictor: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = stack.enter_context(SummaryWriter(str(folder)))
        predictor.model.log = writer.add_scalar

    return prepare


def _has_durations(rows: pl.DataFrame) -> bool:
    """Return True if any row has a duration and tokens."""
    if "actual_time" not in rows.columns:
        return False
    timed = rows.filter((rows["actual_time"] > 0) & (rows["actual_length"] > 0))
    return not timed.is_empty()


def _show(result: dict[str, Any]) -> None:
    lengths = result["length_quantiles"]
    say(f"Trained {result['predictor']} in {result['seconds']:.1f} s")
    share = result["censored"] / max(result["rows"], 1)
    say(
        f"  Rows:            {result['rows']:,} ({share:.1%} censored: only a lower bound is known)"
    )
    say(f"  Lengths:         median {lengths['0.5']:,.0f}, p90 {lengths['0.9']:,.0f} tokens")
    if result["network"]:
        say(f"  Decision:        {result['network']}")
    if result["held_out_loss"] is not None:
        before, after = (
            number(result["held_out_loss_before"], ".4f"),
            number(result["held_out_loss"], ".4f"),
        )
        say(f"  Held-out loss:   {before} before training, {after} after (nats per sequence)")
    pace = f"{result['seconds_per_token']:.4g} s"
    if result["seconds_per_token_assumed"]:
        pace = f"unknown ({pace} assumed)"
    say(f"  Time per token:  {pace}")
    say(f"  Saved to:        {result['checkpoint']}")
