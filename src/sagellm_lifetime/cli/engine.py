"""``engine start``: vLLM's server with lifetime prediction."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sagellm_lifetime.cli.fetch import fetch
from sagellm_lifetime.cli.guard import CommandError, guarded
from sagellm_lifetime.cli.options import PREDICTOR_HELP, WIDEST
from sagellm_lifetime.cli.output import note
from sagellm_lifetime.cli.places import check_folder

if TYPE_CHECKING:
    from sagellm_lifetime.engines.vllm.settings import LiveSettings

STATE: Final = Path("runs") / "engine"
"""Where a running engine is watched and switched by default."""
PREDICTOR: Final = "survival"

app = typer.Typer(
    name="engine",
    help="Serve a model with lifetime prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class EngineKind(StrEnum):
    """What the engine serves."""

    llm = "llm"


class StartMode(StrEnum):
    """What predictions do at first."""

    shadow = "shadow"
    act = "act"


@app.callback()
def engine() -> None:
    """Serve a model with lifetime prediction."""


def start(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of the hub, or a folder.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM OPTIONS]", help="Everything after -- goes to vLLM."),
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
        typer.Option(min=1, max=WIDEST, help="Width of a network.", show_default=False),
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
    watch_eos: Annotated[
        bool,
        typer.Option(
            "--watch-eos",
            help="Tell the predictor how near its end the model itself sees each sequence "
            "(EOS log-probability, entropy).",
        ),
    ] = False,
    lifetime_mode: Annotated[
        StartMode | None,
        typer.Option(
            help="shadow: predict and count what would differ; act: decide.",
            show_default="shadow",
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
        Path,
        typer.Option(metavar="DIR", help="Statistics, switch, and what was learned."),
    ] = STATE,
) -> None:
    """Start vLLM's OpenAI server."""
    from sagellm_lifetime.engines.vllm.launch import check, command, environment, shown

    if record_content and record is None:
        raise CommandError("--record-content needs --record DIR")
    only_with_prediction = {
        "--predictor-type": predictor_type,
        "--predictor-hidden-size": predictor_hidden_size,
        "--predictor-checkpoint": predictor_checkpoint,
        "--enable-online-learning": enable_online_learning,
        "--watch-eos": watch_eos,
        "--lifetime-mode": lifetime_mode,
        "--lifetime-policy": lifetime_policy,
        "--lifetime-min-confidence": lifetime_min_confidence,
    }
    if not enable_lifetime_prediction:
        for name, given in only_with_prediction.items():
            if given:
                raise CommandError(f"{name} needs --enable-lifetime-prediction")
    asked = enable_lifetime_prediction or record is not None
    settings = _settings(
        predict=enable_lifetime_prediction,
        mode=lifetime_mode,
        policy=lifetime_policy,
        min_confidence=lifetime_min_confidence,
        predictor=predictor_type,
        width=predictor_hidden_size,
        checkpoint=predictor_checkpoint,
        learn=enable_online_learning,
        signals=watch_eos,
        record=record,
        content=record_content,
        state=state if asked else None,
    )
    if asked:
        for folder in (record, state):
            check_folder(folder)
    check(model, settings, options or [])
    line = command(model, settings if asked else None, options or [])
    os.environ.update(environment(settings))
    note(f"starting {shown(line[1:])}")
    sys.stdout.flush()
    # In the place of this process, so that signals reach the server.
    os.execv(line[0], line)


def _settings(
    *,
    predict: bool,
    mode: StartMode | None,
    policy: str | None,
    min_confidence: float | None,
    predictor: str | None,
    width: int | None,
    checkpoint: Path | None,
    learn: bool,
    signals: bool,
    record: Path | None,
    content: bool,
    state: Path | None,
) -> LiveSettings:
    from sagellm_lifetime.engines.vllm.settings import LiveSettings

    def place(path: Path | None) -> str:
        return str(path.resolve()) if path is not None else ""

    return LiveSettings(
        predict=predict,
        mode="off" if not predict else "act" if mode is StartMode.act else "shadow",
        policy=policy or "lifetime",
        min_confidence=min_confidence or 0.0,
        # A checkpoint says itself what it holds.
        predictor=predictor or ("" if checkpoint is not None else PREDICTOR),
        width=width or 0,
        checkpoint=place(checkpoint),
        learn=learn,
        signals=signals,
        content=content,
        state=place(state),
        record=place(record),
    )


for _command in (start, fetch):
    app.command()(guarded(_command))
