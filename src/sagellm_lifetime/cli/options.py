"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.output import listed
from sagellm_lifetime.core.extras import is_installed
from sagellm_lifetime.predictor.registry import DEFAULT, predictor_names

PREDICTOR_HELP = listed(predictor_names(), "or")
DEFAULT_PREDICTOR = DEFAULT
WIDEST = 2048
"""A wider network is larger than a checkpoint may be."""


class OnBadRows(StrEnum):
    """Treatments of rows that break the history format."""

    refuse = "refuse"
    skip = "skip"


class CapReached(StrEnum):
    """Finish reason of a row that gives none and ends exactly at its own cap."""

    length = "length"
    stop = "stop"


class Clock(StrEnum):
    """Origin of the arrival times of a log."""

    auto = "auto"
    wall = "wall"
    session = "session"


class LifetimeCommand(TyperCommand):
    """Command with two extensions of the option syntax.

    ``--json`` without a file means stdout, and several values may follow a repeatable option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with ``-`` inserted after a bare ``--json``, and options before each value."""
        several = {name for option in self.params if _repeats(option) for name in option.opts}
        args = repeated(args, several)
        if any("--json" in option.opts for option in self.params):
            for i in reversed(range(len(args))):
                if args[i] == "--json" and (
                    i + 1 == len(args) or (args[i + 1].startswith("-") and args[i + 1] != "-")
                ):
                    args.insert(i + 1, "-")
        return super().parse_args(ctx, args)


def _repeats(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option" and parameter.multiple)


def repeated(args: Sequence[str], several: Collection[str]) -> list[str]:
    """Return arguments with an option before each of its values, as click wants it.

    >>> repeated(["--policy", "a", "b", "--offline"], {"--policy"})
    ['--policy', 'a', '--policy', 'b', '--offline']
    """
    result: list[str] = []
    option = ""
    for arg in args:
        if arg.startswith("-"):
            option = arg if arg in several else ""
        elif option and result[-1] != option:
            result.append(option)
        result.append(arg)
    return result


DataPath = Annotated[
    str,
    typer.Option(
        "--data-path",
        metavar="FILE",
        help="History, or a log of another program: CSV, JSONL, JSON or Parquet; a file, a glob, "
        "or a folder.",
        show_default=False,
    ),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Write the numbers as JSON to FILE, or to stdout instead of the text.",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="DIR",
        help="A trained predictor; by default the newest below runs/lifetime.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seeds everything random.")]
BadRows = Annotated[
    OnBadRows, typer.Option("--on-bad-rows", help="Refuse the history, or skip its bad rows.")
]
CapReachedOption = Annotated[
    CapReached,
    typer.Option(
        "--cap-reached",
        help="What a row counts as that gives no finish reason and ends exactly at its max_length: "
        "cut there (length), or ended by itself (stop).",
    ),
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="COLUMN=PATH,…",
        help="Where history columns stand in a log of any form: "
        "actual_length=usage.completion_tokens,client_id=user,actual_time=latency@ms; or a .toml "
        "file with them.",
        show_default=False,
    ),
]
QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query",
        metavar="SELECT",
        help="The rows to read, where --data-path is postgresql://… or sqlite:///….",
        show_default=False,
    ),
]
SaveMapOption = Annotated[
    Path | None,
    typer.Option(
        "--save-map",
        metavar="FILE",
        help="Write the mapping, with the units that were told, to a .toml file for the next time.",
        show_default=False,
    ),
]
ClockOption = Annotated[
    Clock,
    typer.Option(
        "--clock",
        help="Arrival times are on one clock (wall) or restart with every session (session).",
    ),
]


def can_train_networks() -> bool:
    """Return True if networks can be trained here; PyTorch is not loaded."""
    return is_installed("torch")


def chosen_predictors(given: Iterable[str]) -> list[str]:
    """Return names of predictors, each once; a value may hold several, with commas between.

    Raises:
        UnknownNameError: no predictor has the name.
        MissingExtraError: it needs PyTorch, which is not installed.
        CommandError: no name at all.
    """
    from sagellm_lifetime.core.errors import MissingExtraError
    from sagellm_lifetime.predictor.registry import needs_torch

    names = [name.strip() for several in given for name in several.split(",") if name.strip()]
    if not names:
        raise CommandError("no predictor is named: choose one with --predictor-type")
    for name in names:
        if needs_torch(name) and not can_train_networks():
            raise MissingExtraError(f"training {name!r} (auto does without)", "train")
    return list(dict.fromkeys(names))
