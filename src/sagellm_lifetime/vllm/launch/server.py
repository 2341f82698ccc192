"""Conversion of our options to vLLM's command line, and all checks that need no engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sagellm_lifetime.core.errors import (
    CheckpointError,
    MissingExtraError,
    RequestError,
)
from sagellm_lifetime.core.values import is_path
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.fleet.connect import PASSWORD_VARIABLE, parted
from sagellm_lifetime.predictor.fleet.store import is_address
from sagellm_lifetime.predictor.registry import DEFAULT, predictor_class
from sagellm_lifetime.vllm.client_source import API_KEY
from sagellm_lifetime.vllm.compat.interface import check_version
from sagellm_lifetime.vllm.engine_state import check_free
from sagellm_lifetime.vllm.launch.address import check_address
from sagellm_lifetime.vllm.launch.vllm_args import (
    LaunchError,
    first_of,
    has_keys,
    json_option,
    list_option,
    option_of,
    plain,
    unfolded,
)
from sagellm_lifetime.vllm.live_predictor import has_width, make_predictor, width_of
from sagellm_lifetime.vllm.settings import (
    KEY,
    PATHS,
    PLACES,
    SWITCHBACK,
    LiveSettings,
    cannot_act,
    check_keys,
    shown_value,
)

SCHEDULER: Final = "sagellm_lifetime.vllm.live.scheduler"
MIDDLEWARE: Final = "sagellm_lifetime.vllm.observability.http.LifetimeMiddleware"
CLIENTS: Final = "sagellm_lifetime.vllm.client_source.ClientMiddleware"
PROCESSOR: Final = "sagellm_lifetime.vllm.logits_processor:EosWatch"
WORKER: Final = "sagellm_lifetime.vllm.hidden_worker.HiddenWorker"
"""Reads hidden states."""
RUNNER: Final = "sagellm_lifetime.vllm.launch.serve"
BACKEND: Final = "--distributed-executor-backend"
STATE: Final = Path("runs") / "engine"
"""Default state folder of a running engine."""
PREDICTOR: Final = DEFAULT
OPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "predict": "--enable-lifetime-prediction",
        "mode": "--lifetime-mode",
        "switchback_period_s": "--lifetime-switchback-period",
        "policy": "--lifetime-policy",
        "min_confidence": "--lifetime-min-confidence",
        "predictor": "--predictor-type",
        "width": "--predictor-hidden-size",
        "checkpoint": "--predictor-checkpoint",
        "learn": "--enable-online-learning",
        "fleet": "--lifetime-fleet",
        "signals": "--watch-eos",
        "hidden": "--watch-hidden",
        "record": "--record",
        "content": "--record-content",
        "state": "--state",
        "client_from": "--lifetime-client-from",
    }
)
"""Our options by setting; the other settings have none."""
_HUB: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
SHUTDOWN_S: Final = 10
_ADDITIONAL: Final = "--additional-config"
IN_PROCESS: Final = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""On a CPU vLLM starts a worker process even for "uni" unless this is off. In a server nothing else
reads it: the engine core has its own process anyway."""
_CONFIGS: Final = ("config.json", "params.json")
_PROCESSORS: Final = "--logits-processors"
_WORKER_CLASS: Final = "--worker-cls"
_SPLIT: Final = ("--enable-dbo", "--ubatch-size", "--prefill-context-parallel-size", "-pcp")
_SPECULATIVE: Final = (
    *("--speculative-config", "-sc"),
    *("--spec-method", "--spec-model", "--spec-tokens"),
)
_PASSWORD: Final = re.compile(r"(\w+://)[^\s\"'/@]*:[^\s\"'/@]*@")
"""User and password of an address, for instance of a fleet's store."""
_SECRET: Final = re.compile("--(api-k|hf-t|model-l)")
"""Prefixes of ``--api-key``, ``--hf-token`` and ``--model-loader-extra-config`` (which may contain
keys of S3), since vLLM accepts abbreviations; no other option of vLLM has them."""


def engine_settings(explicit: Mapping[str, Any], options: Sequence[str]) -> LiveSettings | None:
    """Merge our options with the settings under "lifetime" in ``--additional-config``.

    Args:
        explicit: settings given by our options.
        options: of vLLM.

    Returns:
        The settings, or ``None`` without prediction and without a record.

    Raises:
        LifetimeError: if the two contradict each other, or a value is of a wrong type or range.
    """
    options = unfolded(options)
    _, additional = json_option(options, _ADDITIONAL)
    if not (explicit.get("predict") or explicit.get("record")):
        if KEY in additional and option_of(options, "--scheduler-cls") != SCHEDULER:
            raise LaunchError(
                f'{_ADDITIONAL}: "{KEY}" does nothing without {OPTIONS["predict"]} or --record DIR'
            )
        return None
    theirs = additional.get(KEY, {})
    if not isinstance(theirs, dict):
        return LiveSettings.of(theirs)  # raises
    check_keys(theirs)
    _check_agree(theirs, explicit)
    values = {**theirs, **explicit}
    hide_password(values)
    values.setdefault("predict", False)
    values.setdefault("mode", "shadow" if values["predict"] else "off")
    # A checkpoint names its predictor.
    values.setdefault("predictor", "" if values.get("checkpoint") else PREDICTOR)
    values.setdefault("state", str(STATE))
    return LiveSettings.of({name: absolute(name, value) for name, value in values.items()})


def _check_agree(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse two values of one setting."""
    for name, value in ours.items():
        if name in theirs and absolute(name, theirs[name]) != absolute(name, value):
            option = OPTIONS.get(name, name)
            given = "" if value is True else f" {value}"
            raise LaunchError(
                f"{option}{given}: {_ADDITIONAL} has {KEY}.{name} = {shown_value(theirs[name])}; "
                "leave one of them out"
            )


def absolute(name: str, value: Any) -> Any:
    """Return a setting as an engine gets it: with absolute paths, and without a password."""
    if name in PATHS and isinstance(value, str) and is_path(value):
        return os.path.realpath(value)  # also ends in a loop of links
    if name in PLACES and isinstance(value, str) and is_path(value):
        return parted(value)[0] if is_address(value) else os.path.realpath(value)
    return value


def hide_password(values: Mapping[str, Any]) -> None:
    """Move the password of a fleet's store into the environment, since vLLM logs its arguments.

    :func:`absolute` leaves it out of the address. A password that the environment has stays.
    """
    place = values.get("fleet")
    password = parted(place)[1] if isinstance(place, str) else ""
    if password:
        os.environ.setdefault(PASSWORD_VARIABLE, password)


def check(model: str, settings: LiveSettings | None, options: Sequence[str]) -> None:
    """Refuse options that would fail later, or have no effect.

    Args:
        model: a hub name (not looked up) or a folder.
        settings: of the engine, ``None`` for vLLM alone.
        options: of vLLM.

    Raises:
        LifetimeError: one line with the problem and its remedy.
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("the engine", "vllm")
    check_model(model)
    options = unfolded(options)
    other = option_of(options, "--model")
    if other not in (None, model):
        raise LaunchError(f"--model {other}: the model is {model} already; leave one of them out")
    check_address(options)
    if settings is None:
        return
    check_version()
    check_folders(settings)
    if option_of(options, "--scheduler-cls") is not None:
        raise LaunchError("--scheduler-cls: ours takes its place; leave it out")
    policy = option_of(options, "--scheduling-policy") or "fcfs"
    if settings.mode in ("act", SWITCHBACK) and cannot_act(policy):
        raise LaunchError(cannot_act(policy))
    if settings.signals:
        check_processors(options)
        check_one_process(options)
        if os.environ.get(IN_PROCESS) not in (None, "0"):
            raise LaunchError(f"--watch-eos sets {IN_PROCESS}=0; your environment has another")
    if settings.hidden:
        check_worker(
            option_of(options, _WORKER_CLASS),
            option_of(options, BACKEND),
            first_of(options, _SPLIT),
        )
    if settings.predict:
        predictor = check_predictor(settings)
        if settings.signals and not settings.record and not predictor.model.reads_content:
            raise LaunchError(
                f"--watch-eos: {predictor.name} does not look at it; use lstm or transformer, "
                "a checkpoint with a network, or --record DIR"
            )
    if settings.state:
        check_free(Path(settings.state))


def remarks(settings: LiveSettings | None, options: Sequence[str]) -> list[str]:
    """Return lines that a user should read before the engine starts."""
    remark = unchecked_keys(settings, option_of(unfolded(options), "--api-key"))
    return [remark] if remark else []


def unchecked_keys(settings: LiveSettings | None, key: object) -> str:
    """Return a remark if clients are named by API keys that the server does not check.

    Args:
        settings: of the engine, ``None`` for vLLM alone.
        key: of the server, as given; the environment may have one.
    """
    if settings is None or settings.client_from != API_KEY:
        return ""
    if key or os.environ.get("VLLM_API_KEY"):
        return ""
    return (
        f"{OPTIONS['client_from']} {API_KEY}: the server itself checks no key (--api-key), so "
        "whoever reaches it can invent one, unless a gateway before it checks them"
    )


def check_model(model: str) -> None:
    """Refuse a folder without a model, a file that is no model, and an invalid name.

    vLLM takes any missing path for a name of the hub, and fails a minute later.
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
        raise LaunchError(f"{model}: no such folder")
    elif Path(owner).is_dir():
        raise LaunchError(f"{model}: no such folder in {owner}")
    elif not _HUB.fullmatch(model):
        raise LaunchError(f"{model}: no such folder, and not a name of the hub (OWNER/NAME)")


def check_folders(settings: LiveSettings) -> None:
    """Refuse a file, or a path below one, where a setting names a folder; nothing is made."""
    for name in ("state", "record", "fleet"):
        place = getattr(settings, name)
        if not place or (name == "fleet" and is_address(place)):
            continue
        found = Path(place)
        while not os.path.lexists(found) and found != found.parent:
            found = found.parent
        if not found.is_dir():
            raise LaunchError(f"lifetime settings: {name}: {found} is not a folder")


def check_processors(options: Sequence[str]) -> None:
    """Refuse options that vLLM does not accept with a logits processor."""
    speculative = first_of(options, _SPECULATIVE)
    if speculative:
        raise LaunchError(
            f"--watch-eos: not with {speculative}: speculative decoding takes no logits processor"
        )


def check_one_process(options: Sequence[str]) -> None:
    """Refuse options that move the model, and its signals, out of the engine core's process."""
    for name in ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"):
        if option_of(options, name) not in (None, "1"):
            raise LaunchError(f"--watch-eos: not with {name}, which has worker processes")
    if option_of(options, BACKEND) not in (None, "uni"):
        raise LaunchError(f"--watch-eos needs {BACKEND} uni: the model in the engine's process")


def check_worker(worker: object, backend: object, split: str | None) -> None:
    """Refuse what would keep our worker from reading hidden states.

    Args:
        worker: ``--worker-cls``, None if it is not given.
        backend: ``--distributed-executor-backend``, None if it is not given.
        split: an option that splits the tokens of a step, None for none.
    """
    watch = OPTIONS["hidden"]
    if worker not in (None, "auto", WORKER):
        raise LaunchError(
            f"{_WORKER_CLASS}: {watch} has a worker of its own; leave one of them out"
        )
    if backend not in (None, "uni", "mp"):
        raise LaunchError(f"{watch}: not with {BACKEND} {backend}: use mp")
    if split is not None:
        raise LaunchError(f"{watch}: not with {split}, which splits the tokens of a step")


def check_predictor(settings: LiveSettings) -> Predictor:
    """Return the predictor; refuse a predictor or checkpoint that cannot be used.

    Raises:
        LifetimeError: if it is unknown, differs from the requested one, or cannot be loaded.
    """
    if settings.predictor:
        predictor_class(settings.predictor)
        if settings.width and not has_width(settings.predictor):
            raise RequestError(f"--predictor-hidden-size: {settings.predictor} has no hidden layer")
    predictor = make_predictor(settings)
    if settings.checkpoint and settings.predictor and predictor.name != settings.predictor:
        raise CheckpointError(
            f"{settings.checkpoint}: holds a {predictor.name} predictor, not {settings.predictor}"
        )
    width = width_of(predictor)
    if settings.width and width not in (None, settings.width):
        raise CheckpointError(
            f"{settings.checkpoint}: --predictor-hidden-size is {width} there, not {settings.width}"
        )
    return predictor


def command(model: str, settings: LiveSettings | None, options: Sequence[str]) -> list[str]:
    """Return the command: vLLM's server with our scheduler and routes, or vLLM's alone.

    Lists and ``--additional-config`` of the user are merged with ours; :func:`check` refuses other
    conflicts, or the user's value counts.

    Args:
        model: a hub name or a folder.
        settings: of the engine, ``None`` for vLLM alone.
        options: of vLLM.

    Raises:
        LaunchError: if ``--additional-config`` is no JSON object, or contradicts the settings.
    """
    line = [sys.executable, "-m", RUNNER, model]
    if settings is None:
        return [*line, *options]
    words = unfolded(options)
    rest, _ = json_option(options, _ADDITIONAL)
    _, additional = json_option(words, _ADDITIONAL)
    if has_keys(words[: len(words) - len(options)], _ADDITIONAL):
        # vLLM puts these after all others, where they would replace ours.
        raise LaunchError(f"{_ADDITIONAL}.KEY in a --config file: write it as one object there")
    theirs, ours = additional.get(KEY, {}), settings.json()
    if not isinstance(theirs, dict):
        LiveSettings.of(theirs)  # raises
    _check_agree(theirs, ours)
    additional[KEY] = {**theirs, **ours}
    LiveSettings.of(additional[KEY])
    line += ["--scheduler-cls", SCHEDULER]
    if settings.signals:
        rest, _ = list_option(rest, _PROCESSORS)
        _, processors = list_option(words, _PROCESSORS)
        line += [_PROCESSORS, *dict.fromkeys([PROCESSOR, *processors])]
        if option_of(words, BACKEND) is None:
            # By default an engine on a CPU starts a worker process, even for one rank.
            line += [BACKEND, "uni"]
    if settings.hidden:
        line += [_WORKER_CLASS, WORKER]
    given = {word.rpartition("=")[2] for word in words}
    for middleware, is_needed in ((MIDDLEWARE, settings.state), (CLIENTS, settings.client_from)):
        if is_needed and middleware not in given:
            line += ["--middleware", middleware]
    if (settings.record or settings.learn) and option_of(words, "--shutdown-timeout") is None:
        # By default vLLM kills an engine core at once, before it has written and saved the rest.
        line += ["--shutdown-timeout", str(SHUTDOWN_S)]
    return [*line, *rest, _ADDITIONAL, json.dumps(additional)]


def shown(line: Sequence[str]) -> str:
    """Return a command as text without its secrets."""
    words = []
    secret = False
    for word in line:
        if word.startswith("-"):
            key, mark, _ = word.partition("=")
            secret = _SECRET.match(plain(key)) is not None
            words.append(f"{key}=***" if secret and mark else word)
        else:  # also after a secret value, as an option may have several
            words.append("***" if secret else _PASSWORD.sub(r"\1***@", word))
    return shlex.join(words)


def environment(settings: LiveSettings | None) -> dict[str, str]:
    """Return the environment variables to add for the server."""
    return {IN_PROCESS: "0"} if settings is not None and settings.signals else {}
