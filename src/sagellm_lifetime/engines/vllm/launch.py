"""From our options to vLLM's command line, and every refusal that needs no engine to be started."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import (
    CheckpointError,
    MissingExtraError,
    RequestError,
)
from sagellm_lifetime.engines.models.published import MODELS
from sagellm_lifetime.engines.vllm.interface import check_version
from sagellm_lifetime.engines.vllm.predictor import has_width, make_predictor, width_of
from sagellm_lifetime.engines.vllm.settings import KEY, LiveSettings, cannot_act
from sagellm_lifetime.engines.vllm.state import check_free
from sagellm_lifetime.engines.vllm.words import (
    LaunchError,
    first_of,
    is_option,
    option_of,
    plain,
    unfolded,
)
from sagellm_lifetime.predictors.registry import has_network, predictor_class

SCHEDULER: Final = "sagellm_lifetime.engines.vllm.live.scheduler"
MIDDLEWARE: Final = "sagellm_lifetime.engines.vllm.http.LifetimeMiddleware"
PROCESSOR: Final = "sagellm_lifetime.engines.vllm.eos:EosWatch"
RUNNER: Final = "sagellm_lifetime.engines.vllm.serve"
BACKEND: Final = "--distributed-executor-backend"
_HUB: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHUTDOWN_S: Final = 10
_CONFIGS: Final = ("config.json", "params.json")
_PROCESSORS: Final = "--logits-processors"
_SPECULATIVE: Final = (
    *("--speculative-config", "-sc"),
    *("--spec-method", "--spec-model", "--spec-tokens"),
)
_SECRET: Final = re.compile("--(api-k|hf-t|model-l)")
"""How ``--api-key``, ``--hf-token`` and ``--model-loader-extra-config`` (it may hold keys of S3)
begin, since vLLM takes abbreviations, too; no other option of vLLM begins like that."""


def check(model: str, settings: LiveSettings, options: Sequence[str]) -> None:
    """Refuse in one line what would fail later, or not do what it says.

    Args:
        model: a hub name (taken as it is: whether the hub has it is only known there) or a folder.
        settings: what was asked for.
        options: those that go to vLLM.

    Raises:
        LifetimeError: one line that says what to do.
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("the engine", "vllm")
    ours = settings.predict or bool(settings.record)
    if ours:
        check_version()
    check_model(model)
    options = unfolded(options)
    if ours and option_of(options, "--scheduler-cls") is not None:
        raise LaunchError("--scheduler-cls: ours takes its place; leave it out")
    policy = option_of(options, "--scheduling-policy") or "fcfs"
    if settings.mode == "act" and cannot_act(policy):
        raise LaunchError(cannot_act(policy))
    if settings.signals:
        check_processors(options)
        check_one_process(options)
    if settings.predict:
        made = check_predictor(settings)
        if settings.signals and not settings.record and not has_network(made):
            raise LaunchError(
                f"--watch-eos: {made} does not look at it; use lstm or transformer, or --record DIR"
            )
    if settings.state:
        check_free(Path(settings.state))


def check_model(model: str) -> None:
    """Refuse a folder without a model, a file that is none, and a name that cannot be one.

    vLLM takes whatever is not there for a name of the hub, and says so a minute later.
    """
    path = Path(model)
    owner = model.partition("/")[0]
    if path.is_dir():
        if not any((path / name).is_file() for name in _CONFIGS):
            raise LaunchError(f"{model}: no model in this folder ({_CONFIGS[0]} is missing)")
    elif path.is_file():
        if path.suffix != ".gguf":
            raise LaunchError(f"{model}: a file, but not a .gguf; give the folder of a model")
    elif "://" in model:
        return
    elif model.startswith((".", "/", "~")):
        raise LaunchError(f"{model}: no such folder{_fetched(model)}")
    elif Path(owner).is_dir():
        raise LaunchError(f"{model}: no such folder in {owner}{_fetched(model)}")
    elif not _HUB.fullmatch(model):
        raise LaunchError(f"{model}: no such folder, and not a name of the hub (OWNER/NAME)")


def _fetched(model: str) -> str:
    """How to come by a model that can be fetched, if it is named like one."""
    name = next((name for name in MODELS if name in model.lower()), None)
    if name is None:
        return ""
    return f"; `sage llm engine fetch {name} {shlex.quote(model)}` fetches one"


def check_processors(options: Sequence[str]) -> None:
    """Refuse what would take the place of our logits processor, or what vLLM refuses beside it."""
    if first_of(options, (_PROCESSORS,)):
        raise LaunchError(
            f"--watch-eos: not with {_PROCESSORS}: it is one itself, and vLLM keeps the last list"
        )
    speculative = first_of(options, _SPECULATIVE)
    if speculative:
        raise LaunchError(
            f"--watch-eos: not with {speculative}: speculative decoding takes no logits processor"
        )


def check_one_process(options: Sequence[str]) -> None:
    """Refuse what would keep the model, and its signals, out of the engine core's process."""
    for name in ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"):
        if option_of(options, name) not in (None, "1"):
            raise LaunchError(f"--watch-eos: not with {name}, which has worker processes")
    if option_of(options, BACKEND) not in (None, "uni"):
        raise LaunchError(f"--watch-eos needs {BACKEND} uni: the model in the engine's process")


def check_predictor(settings: LiveSettings) -> str:
    """The predictor's name; refuse one, or a checkpoint, that cannot be made.

    Raises:
        LifetimeError: it is unknown, another than was asked for, or cannot be loaded.
    """
    if settings.predictor:
        predictor_class(settings.predictor)
        if settings.width and not has_width(settings.predictor):
            raise RequestError(f"--predictor-hidden-size: {settings.predictor} has no hidden layer")
    made = make_predictor(settings)
    if settings.checkpoint and settings.predictor and made.name != settings.predictor:
        raise CheckpointError(
            f"{settings.checkpoint}: holds a {made.name} predictor, not {settings.predictor}"
        )
    width = width_of(made)
    if settings.width and width not in (None, settings.width):
        raise CheckpointError(
            f"{settings.checkpoint}: --predictor-hidden-size is {width} there, not {settings.width}"
        )
    return made.name


def command(model: str, settings: LiveSettings | None, options: Sequence[str]) -> list[str]:
    """What is run: vLLM's server with our scheduler and routes, or vLLM's alone.

    Args:
        model: a hub name or a folder.
        settings: what was asked for, ``None`` for nothing.
        options: those that go to vLLM.

    Raises:
        LaunchError: an ``--additional-config`` that is no JSON object.
    """
    line = [sys.executable, "-m", RUNNER, model]
    if settings is None:
        return [*line, *options]
    said = unfolded(options)
    rest, additional = _additional_config(options, said)
    additional[KEY] = settings.json()
    line += ["--scheduler-cls", SCHEDULER]
    if settings.signals:
        line += [_PROCESSORS, PROCESSOR]
        if option_of(said, BACKEND) is None:
            line += [BACKEND, "uni"]  # vLLM on a CPU has a worker process even for one rank
    if settings.state:
        line += ["--middleware", MIDDLEWARE]
    if (settings.record or settings.learn) and option_of(said, "--shutdown-timeout") is None:
        # vLLM kills an engine core at once, and with it what was not written or saved yet.
        line += ["--shutdown-timeout", str(_SHUTDOWN_S)]
    return [*line, *rest, "--additional-config", json.dumps(additional)]


def shown(line: Sequence[str]) -> str:
    """A command as it may be printed: without what is secret in it."""
    words = []
    secret = False
    for word in line:
        if word.startswith("-"):
            key, mark, _ = word.partition("=")
            secret = _SECRET.match(plain(key)) is not None
            words.append(f"{key}=***" if secret and mark else word)
        else:  # there may be several keys
            words.append("***" if secret else word)
    return shlex.join(words)


def environment(settings: LiveSettings | None) -> dict[str, str]:
    """What the server's environment must say besides."""
    # On a CPU vLLM makes a worker process of "uni" unless this is off. In a server nothing else
    # reads it: the engine core is a process of its own either way.
    watched = settings is not None and settings.signals
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if watched else {}


def _additional_config(
    options: Sequence[str], said: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """The user's, taken out of the options, so that ours goes into the same one.

    Args:
        options: of the command line.
        said: these and those of a file.
    """
    name = "--additional-config"
    if any(option.startswith(name + ".") for option in said):
        raise LaunchError(f"{name}.KEY: give {name} as one JSON object")
    text = option_of(said, name)
    if text is None:
        return list(options), {}
    try:
        additional = json.loads(text)
    except ValueError:
        additional = None
    if not isinstance(additional, dict):
        raise LaunchError(f"{name}: not a JSON object: {text}")
    rest = list(options)
    for i, option in enumerate(rest):
        key, mark, _ = option.partition("=")
        if is_option(key, name):
            del rest[i : i + (1 if mark else 2)]
            break
    return rest, additional
