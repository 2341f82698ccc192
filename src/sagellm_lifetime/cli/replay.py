"""Command ``replay``: a history through vLLM's own scheduler, policy by policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import (
    DEFAULT_PREDICTOR,
    PREDICTOR_HELP,
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
    chosen_predictors,
)
from sagellm_lifetime.cli.output import note, progress, say, table, write_json
from sagellm_lifetime.cli.paths import check_json, check_report
from sagellm_lifetime.cli.reading import Mapping, Reading, check_query

if TYPE_CHECKING:
    from sagellm_lifetime.replay.experiment import Experiment, ExperimentSettings
    from sagellm_lifetime.replay.report import Comparison

POLICIES: Final = ("fcfs", "fcfs-watermark", "lifetime", "lifetime-oracle")
REFERENCES: Final = ("fcfs", "fcfs-watermark", "priority-max-tokens", "priority-prompt-length")
"""Policies of vLLM itself."""
PLANS: Final = (
    "lifetime",
    "sjf",
    "gittins",
    "evict-shortest",
    "evict-longest",
    "evict-engine",
    "longest-first",
    "reserve",
)
"""Policies with a predictor, each also as ``-oracle``; listed here so that ``--help`` is fast."""
RIVALS: Final = ("fair-input", "reserve-max-tokens", "reserve-ratio", "reserve-average")
"""Policies of this package without a predictor."""
POLICY_HELP: Final = (
    "Policies, with spaces or commas between. vLLM's: "
    f"{', '.join(REFERENCES)}. With the predictor, or with known lengths as NAME-oracle: "
    f"{', '.join(PLANS)}. Without either: {', '.join(RIVALS)}."
)
LOAD: Final = "knee"
COST: Final = "a100-7b"
BLOCKS: Final = 6000
REQUESTS: Final = 300
MOST_BLOCKS: Final = 4_000_000
"""Maximum number of blocks, 64 million tokens: vLLM makes an object of each in every run, which
takes 8 s and 1 GB."""
NEEDS_VLLM: Final = "replay needs vLLM: pip install 'isagellm-lifetime[vllm]'"


def replay(
    *,
    data_path: DataPath,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=POLICY_HELP,
            show_default=", ".join(POLICIES),
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="LOAD",
            help="How fast the requests come: relaxed, knee, overload, or requests a second.",
            show_default=LOAD,
        ),
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=2, max=MOST_BLOCKS, help="KV blocks of 16 tokens in the pool.")
    ] = BLOCKS,
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**8,
            help="Tokens of prompt and output together that the engine takes.",
            show_default="what the longest request may come to",
        ),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Replay so many neighbouring requests of the history.")
    ] = REQUESTS,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=1000, help="Draw the requests so many times, and report the medians."
        ),
    ] = 1,
    offline: Annotated[
        bool, typer.Option("--offline", help="All requests are there from the start.")
    ] = False,
    train_path: Annotated[
        str | None,
        typer.Option(
            "--train-path",
            metavar="FILE",
            help="Train on this history, and draw the requests from all of --data-path.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Ask this trained predictor; the requests come from all of --data-path.",
            show_default=False,
        ),
    ] = None,
    predictor_type: Annotated[
        str | None,
        typer.Option(
            "--predictor-type",
            metavar="NAME",
            help=f"{PREDICTOR_HELP}.",
            show_default=DEFAULT_PREDICTOR,
        ),
    ] = None,
    min_confidence: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="P",
            help="Of a request whose prediction is less confident vLLM's own rule decides.",
        ),
    ] = 0.0,
    cost_model: Annotated[
        str,
        typer.Option(
            "--cost-model", metavar="NAME", help="Seconds of a step: a100-7b, h100-70b, cpu-small."
        ),
    ] = COST,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the table and two plots into this folder.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
    mapping: MapOption = None,
    save_map: SaveMapOption = None,
    query: QueryOption = None,
    on_bad_rows: BadRows = OnBadRows.refuse,
    cap_reached: CapReachedOption = CapReached.length,
    clock: ClockOption = Clock.auto,
    hash_block_size: Annotated[
        int | None,
        typer.Option(
            "--hash-block-size",
            min=1,
            max=10**8,
            metavar="TOKENS",
            help="Prompt tokens behind one id of prefix_hashes.",
            show_default="told from the prompt lengths",
        ),
    ] = None,
) -> None:
    """Replay a history through vLLM's own scheduler, without a model, and compare policies.

    Without --train-path and --checkpoint the history itself is cut by time: the predictor is
    trained on the earlier 70 %, the requests come from the rest. It learns online in simulated
    time. Prefix caching is on where the history has prefix_hashes or prompt_token_ids.
    """
    if checkpoint is not None and train_path is not None:
        raise CommandError("--train-path and --checkpoint: choose one")
    if checkpoint is not None and predictor_type is not None:
        raise CommandError("a checkpoint is of one type: leave --predictor-type out")
    if offline and load is not None:
        raise CommandError("--offline has all requests there at once: leave --load out")
    predictor = _predictor(predictor_type)
    from sagellm_lifetime.replay.experiment import OFFLINE, ExperimentSettings, describe
    from sagellm_lifetime.replay.report import FILES, write_report

    settings = ExperimentSettings(
        policies=_policies(policy or POLICIES),
        load=OFFLINE if offline else load or LOAD,
        blocks=blocks,
        max_model_len=max_model_len,
        max_requests=max_requests,
        seeds=seeds,
        predictor=predictor,
        min_confidence=min_confidence,
        cost_model=cost_model,
        hash_block_size=hash_block_size,
    )
    check_report(report, FILES)
    written = [report / name for name in FILES] if report is not None else []
    check_json(json, data_path, train_path, checkpoint, *written)
    check_query(query, data_path, train_path)
    columns = Mapping.of(mapping, save_map, data_path, json, train_path, checkpoint, *written)
    reading = Reading(on_bad_rows, cap_reached, clock, columns, query)
    experiment = _experiment(reading, data_path, train_path, checkpoint, settings)
    _load_vllm()
    for line in (experiment.how, *experiment.notes):
        note(line)
    with progress("replay") as step:
        comparison = experiment.run(step)
    _show(comparison, json, reading.logs(data_path, train_path))
    if report is not None:
        note(f"report: {write_report(report, comparison, how=describe(comparison.settings))}")


def _predictor(given: str | None) -> str:
    """Return the name of the predictor. Raises :class:`CommandError` for several names."""
    names = chosen_predictors([given or DEFAULT_PREDICTOR])
    if len(names) > 1:
        raise CommandError("one --predictor-type at a time")
    return names[0]


def _policies(given: Sequence[str]) -> list[str]:
    """Return names of policies, each once; an option may hold several, with commas between."""
    names = [name.strip() for several in given for name in several.split(",") if name.strip()]
    return list(dict.fromkeys(names))


def _experiment(
    reading: Reading,
    data_path: str,
    train_path: str | None,
    checkpoint: Path | None,
    settings: ExperimentSettings,
) -> Experiment:
    """Return the experiment of the histories and the checkpoint that the options name."""
    from sagellm_lifetime.replay.experiment import Experiment

    if checkpoint is None:
        data = reading.dataset(data_path)
        train = None if train_path is None else reading.dataset(train_path)
        return Experiment(data, settings, train=train)
    from sagellm_lifetime.predictor.checkpoint import load_predictor

    predictor = load_predictor(checkpoint)
    data = reading.dataset(data_path)
    return Experiment(data, settings, predictor=predictor, origin=str(checkpoint))


def _load_vllm() -> None:
    """Import vLLM without its messages, and check its version.

    Raises:
        CommandError: vLLM is not installed.
        LifetimeError: its version is not supported.
    """
    from sagellm_lifetime.core.errors import MissingExtraError
    from sagellm_lifetime.vllm.compat.interface import check_interface

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM would log to stdout
    logging.getLogger("vllm").setLevel(logging.ERROR)  # and to stderr before it reads the variable
    try:
        with progress("loading vLLM"):
            check_interface()
    except MissingExtraError:
        raise CommandError(NEEDS_VLLM) from None


def _show(comparison: Comparison, json: str | None, logs: dict[str, Any]) -> None:
    """Write the JSON, and print the table where the JSON does not go to stdout."""
    from sagellm_lifetime.replay.experiment import describe, not_reached
    from sagellm_lifetime.replay.report import COLUMNS, LEGEND, cost_lines

    settings = comparison.settings
    if not settings["load_reached"]:
        note(not_reached(settings["load"]))
    if json is not None:
        write_json({**comparison.to_json(), **logs}, json)
    if json == "-":
        return
    say(describe(settings))
    table(COLUMNS, comparison.rows())
    for line in (LEGEND, *comparison.says(), *cost_lines(comparison.cost), comparison.pace()):
        say(line)
