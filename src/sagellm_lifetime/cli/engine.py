"""Command ``engine start``: vLLM's server with lifetime prediction."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sagellm_lifetime.cli.command_errors import CommandError, guarded
from sagellm_lifetime.cli.options import DEFAULT_PREDICTOR, PREDICTOR_HELP, WIDEST
from sagellm_lifetime.cli.output import note
from sagellm_lifetime.cli.paths import check_folder

COMMAND_LINE: Final = "sagellm_lifetime.vllm.launch.command_line"
PREDICTOR: Final = DEFAULT_PREDICTOR
"""Value of ``launch.PREDICTOR``, which is not imported so that the help is fast."""
_ALIKE: Final = 0.75
"""Least similarity of a word to one of our options that makes it a misspelling; all options of vLLM
are less similar."""
_SECONDS: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_FEWEST: Final = len("--lifetime")
"""Least number of characters of an abbreviated option of ours."""

app = typer.Typer(
    name="engine",
    help="Serve a model with lifetime prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class EngineKind(StrEnum):
    """Kinds of models that the engine serves."""

    llm = "llm"


class StartMode(StrEnum):
    """Initial modes of predictions."""

    shadow = "shadow"
    act = "act"
    switchback = "switchback"


@app.callback()
def engine() -> None:
    """Serve a model with lifetime prediction."""


def start(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of the hub, or a folder.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VLLM OPTIONS]",
            help="Options that are not below, and everything after --, go to vLLM.",
        ),
    ] = None,
    *,
    engine_kind: Annotated[EngineKind, typer.Option(help="What is served.")] = EngineKind.llm,
    enable_lifetime_prediction: Annotated[
        bool,
        typer.Option(
            "--enable-lifetime-prediction", help="Predict how long every sequence will live."
        ),
    ] = False,
    predictor_type: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=PREDICTOR_HELP, show_default=PREDICTOR),
    ] = None,
    predictor_hidden_size: Annotated[
        int | None,
        typer.Option(
            min=1, max=WIDEST, metavar="N", help="Width of a network.", show_default=False
        ),
    ] = None,
    predictor_checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A trained predictor: a directory, or an exported .pt or .safetensors.",
            show_default=False,
        ),
    ] = None,
    enable_online_learning: Annotated[
        bool, typer.Option("--enable-online-learning", help="Learn from what was served.")
    ] = False,
    lifetime_fleet: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Share what is learned with other replicas: redis://HOST:PORT/DB, or a folder.",
            show_default=False,
        ),
    ] = None,
    watch_eos: Annotated[
        bool,
        typer.Option(
            "--watch-eos",
            help="Tell the predictor how near its end the model itself sees each sequence "
            "(EOS log-probability, entropy).",
        ),
    ] = False,
    watch_hidden: Annotated[
        bool,
        typer.Option(
            "--watch-hidden",
            help="Tell the predictor what the model's hidden state says of the length "
            "(after prefill, at 32 and 64 tokens).",
        ),
    ] = False,
    lifetime_mode: Annotated[
        StartMode | None,
        typer.Option(
            metavar="MODE",
            help="shadow: predict and count what would differ; act: decide; switchback: alternate "
            "off and act, and measure the difference.",
            show_default="shadow",
        ),
    ] = None,
    lifetime_switchback_period: Annotated[
        str | None,
        typer.Option(
            "--lifetime-switchback-period",
            "--period",
            metavar="TIME",
            help="Length of a block of a switchback: 90s, 10m, 1h.",
            show_default="10m",
        ),
    ] = None,
    lifetime_policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What is decided. A wrong name lists them all.",
            show_default="lifetime",
        ),
    ] = None,
    lifetime_min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="P",
            help="Of a sequence whose prediction is less confident vLLM's own rule decides.",
            show_default="0",
        ),
    ] = None,
    lifetime_client_from: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="What names the client of a request: api-key, user (OpenAI's field) or "
            "header:NAME.",
            show_default="vllm_xargs of the request",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Record completions there, as a history.", show_default=False
        ),
    ] = None,
    record_content: Annotated[
        bool, typer.Option("--record-content", help="Record token ids, too.")
    ] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Statistics, switch, and what was learned.",
            show_default="runs/engine",
        ),
    ] = None,
) -> None:
    """Start vLLM's OpenAI server."""
    from sagellm_lifetime.vllm.launch.server import (
        OPTIONS,
        check,
        command,
        engine_settings,
        environment,
        remarks,
        shown,
    )

    theirs = list(options or ())
    if model.startswith("-"):
        raise CommandError(f"{model}: MODEL comes first, then options")
    check_names(theirs, ["--engine-kind", *OPTIONS.values()])
    if record_content and record is None:
        raise CommandError("--record-content needs --record DIR")
    only_with_prediction = {
        "--predictor-type": predictor_type,
        "--predictor-hidden-size": predictor_hidden_size,
        "--predictor-checkpoint": predictor_checkpoint,
        "--enable-online-learning": enable_online_learning,
        "--lifetime-fleet": lifetime_fleet,
        "--watch-eos": watch_eos,
        "--watch-hidden": watch_hidden,
        "--lifetime-mode": lifetime_mode,
        "--lifetime-switchback-period": lifetime_switchback_period,
        "--lifetime-policy": lifetime_policy,
        "--lifetime-min-confidence": lifetime_min_confidence,
    }
    if not enable_lifetime_prediction:
        for name, given in only_with_prediction.items():
            if given:
                raise CommandError(f"{name} needs --enable-lifetime-prediction")
    if lifetime_fleet and not enable_online_learning:
        raise CommandError("--lifetime-fleet needs --enable-online-learning")
    if lifetime_client_from and not (enable_lifetime_prediction or record):
        raise CommandError(
            "--lifetime-client-from needs --enable-lifetime-prediction or --record DIR"
        )
    explicit: dict[str, Any] = {
        "predict": enable_lifetime_prediction or None,
        "mode": lifetime_mode and lifetime_mode.value,
        "switchback_period_s": _period(lifetime_switchback_period),
        "policy": lifetime_policy,
        "min_confidence": lifetime_min_confidence,
        "predictor": predictor_type,
        "width": predictor_hidden_size,
        "checkpoint": predictor_checkpoint and str(predictor_checkpoint),
        "learn": enable_online_learning or None,
        "fleet": lifetime_fleet,
        "signals": watch_eos or None,
        "hidden": watch_hidden or None,
        "record": record and str(record),
        "content": record_content or None,
        "state": state and str(state),
        "client_from": lifetime_client_from,
    }
    settings = engine_settings(
        {name: value for name, value in explicit.items() if value is not None}, theirs
    )
    if settings is not None:
        for folder in (settings.record, settings.state):
            check_folder(Path(folder) if folder else None)
    check(model, settings, theirs)
    for remark in remarks(settings, theirs):
        note(remark)
    line = command(model, settings, theirs)
    os.environ.update(environment(settings))
    note(f"starting {shown(line[1:])}")
    sys.stdout.flush()
    # In the place of this process, so that signals reach the server.
    os.execv(line[0], line)


def _period(text: str | None) -> float | None:
    """Return the seconds of a length of time such as 90s, 10m or 1h; a number alone is seconds.

    Raises:
        CommandError: it is none, or out of the range of the setting.
    """
    if text is None:
        return None
    from sagellm_lifetime.vllm.settings import RANGES

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)?", text.strip())
    seconds = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    allowed = RANGES["switchback_period_s"]
    if seconds not in allowed:
        raise CommandError(
            f"--lifetime-switchback-period {text}: give a time such as 90s, 10m or 1h, from "
            f"{allowed.least:g} s to {allowed.most:g} s"
        )
    return seconds


def check_names(words: Sequence[str], ours: Sequence[str]) -> None:
    """Raise :class:`CommandError` for an option of ours among vLLM's: misspelled, or after ``--``.

    Args:
        words: arguments for vLLM.
        ours: names of our options.

    Raises:
        CommandError: it names the option that was meant.
    """
    for word in words:
        name = word.partition("=")[0].partition(".")[0].replace("_", "-")
        if not name.startswith("--"):
            continue
        if name in ours:
            raise CommandError(f"{name} is no option of vLLM's: give it before --")
        near = [option for option in ours if len(name) >= _FEWEST and option.startswith(name)]
        near += difflib.get_close_matches(name, ours, n=1, cutoff=_ALIKE)
        if near:
            raise CommandError(f"no such option: {name} (did you mean {near[0]}?)")


def vllm(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND …", help="As the command vllm takes it.")
    ] = None,
) -> None:
    """Run a command of vLLM's, such as bench serve, without what cannot load beside PyTorch."""
    from importlib.util import find_spec

    from sagellm_lifetime.core.errors import MissingExtraError

    if find_spec("vllm") is None:
        raise MissingExtraError("vLLM's commands", "vllm")
    sys.stdout.flush()
    line = [sys.executable, "-m", COMMAND_LINE, *(arguments or ["--help"])]
    os.execv(line[0], line)


_PASS_THROUGH: Final = {"ignore_unknown_options": True}
app.command(context_settings=_PASS_THROUGH)(guarded(start))
app.command(context_settings={**_PASS_THROUGH, "help_option_names": []})(guarded(vllm))
