"""Our settings in vLLM's engine arguments, for engines that our launcher has not started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import LifetimeError, RequestError, one_line
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.compat.interface import check_version
from sagellm_lifetime.vllm.engine_state import check_free
from sagellm_lifetime.vllm.launch.server import (
    CLIENTS,
    IN_PROCESS,
    MIDDLEWARE,
    OPTIONS,
    PROCESSOR,
    SCHEDULER,
    SHUTDOWN_S,
    STATE,
    WORKER,
    absolute,
    check_folders,
    check_predictor,
    check_worker,
    hide_password,
    unchecked_keys,
)
from sagellm_lifetime.vllm.launch.variable import VARIABLE, variable
from sagellm_lifetime.vllm.launch.vllm_args import LaunchError
from sagellm_lifetime.vllm.settings import (
    KEY,
    MODES,
    SWITCHBACK,
    LiveSettings,
    cannot_act,
    check_keys,
)

_ONE_PROCESS: Final = ("tensor_parallel_size", "pipeline_parallel_size")
_SPLIT: Final = ("enable_dbo", "ubatch_size", "prefill_context_parallel_size")


def switch_on_server(arguments: Any) -> None:
    """Switch prediction on in the parsed command line of vLLM's server, with our routes.

    A mistake ends the process with one line and exit code 2.

    Args:
        arguments: of ``vllm serve``; they are changed.
    """
    if arguments.scheduler_cls == SCHEDULER:
        return
    try:
        settings = switch_on(arguments, state=str(STATE))
        check_free(Path(settings.state))
    except LifetimeError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        raise SystemExit(2) from None
    middleware = list(getattr(arguments, "middleware", None) or ())
    for name, is_needed in ((MIDDLEWARE, settings.state), (CLIENTS, settings.client_from)):
        if is_needed and name not in middleware:
            middleware.append(name)
    arguments.middleware = middleware
    if unchecked_keys(settings, getattr(arguments, "api_key", None)):
        LOG.warning("%s", unchecked_keys(settings, None))


def switch_on(arguments: Any, *, state: str = "") -> LiveSettings:
    """Put our scheduler and settings into vLLM's engine arguments.

    Arguments that name our scheduler already, as our launcher's do, are left as they are.

    Args:
        arguments: an ``EngineArgs``, or the parsed command line; they are changed.
        state: state folder, unless the settings name one; empty for none.

    Returns:
        The settings in use.

    Raises:
        LifetimeError: one line with the problem and its remedy.
    """
    additional = dict(arguments.additional_config or {})
    if arguments.scheduler_cls == SCHEDULER:
        return LiveSettings.of(additional.get(KEY, {}))
    if arguments.scheduler_cls is not None:
        raise LaunchError(f"--scheduler-cls: ours takes its place; leave it or {KEY} out")
    values = {**from_environment(), **as_settings(additional.get(KEY, {}))}
    hide_password(values)
    values.setdefault("state", state)
    if values.get("checkpoint"):
        values.setdefault("predictor", "")  # a checkpoint names its predictor
    settings = LiveSettings.of({name: absolute(name, value) for name, value in values.items()})
    _check(arguments, settings)
    if settings.signals:
        _watch_end(arguments)
    if settings.hidden:
        _watch_states(arguments)
    if (settings.record or settings.learn) and not arguments.shutdown_timeout:
        # By default vLLM kills an engine core at once, before it has written and saved the rest.
        arguments.shutdown_timeout = SHUTDOWN_S
    additional[KEY] = settings.json()
    arguments.additional_config = additional
    arguments.scheduler_cls = SCHEDULER
    return settings


def from_environment() -> dict[str, Any]:
    """Return the settings in the environment variable, empty if it is not set.

    Raises:
        RequestError: if it is neither a mode nor a JSON object of settings.
    """
    text = variable()
    if not text:
        return {}
    value: Any = text
    if text not in MODES:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            if text.lstrip().startswith("{"):
                raise RequestError(f"{VARIABLE}: not valid JSON: {error}") from None
            value = text
    try:
        return as_settings(value)
    except RequestError as error:
        raise RequestError(f"{VARIABLE}: {error}") from None


def as_settings(value: object) -> dict[str, Any]:
    """Return an object of settings; a mode alone stands for that mode with learning.

    >>> as_settings("shadow")
    {'mode': 'shadow', 'learn': True}

    Raises:
        RequestError: if it is neither a mode nor an object, or a key is unknown.
    """
    if isinstance(value, str) and value in MODES:
        return {"mode": value, "learn": True}
    if not isinstance(value, Mapping):
        raise RequestError(
            f"lifetime settings: a mode ({', '.join(MODES)}) or an object of names and values, "
            f"got {one_line(str(value))[:60]!r}"
        )
    check_keys(value)
    return dict(value)


def _check(arguments: Any, settings: LiveSettings) -> None:
    """Refuse what would fail after the model is loaded, or have no effect."""
    check_version()
    check_folders(settings)
    policy = getattr(arguments, "scheduling_policy", "fcfs")
    if settings.mode in ("act", SWITCHBACK) and cannot_act(policy):
        raise LaunchError(cannot_act(policy))
    if settings.predict:
        check_predictor(settings)


def _watch_end(arguments: Any) -> None:
    """Add the logits processor that reads the model's signals in the engine core's process."""
    option = OPTIONS["signals"]
    if any(getattr(arguments, name, 1) not in (None, 1) for name in _ONE_PROCESS):
        raise LaunchError(f"{option}: not with several processes for one model")
    if getattr(arguments, "speculative_config", None):
        raise LaunchError(f"{option}: speculative decoding takes no logits processor")
    if os.environ.get(IN_PROCESS) not in (None, "0"):
        raise LaunchError(f"{option} sets {IN_PROCESS}=0; your environment has another")
    os.environ[IN_PROCESS] = "0"
    theirs = [name for name in arguments.logits_processors or () if name != PROCESSOR]
    arguments.logits_processors = [PROCESSOR, *theirs]
    arguments.distributed_executor_backend = arguments.distributed_executor_backend or "uni"


def _watch_states(arguments: Any) -> None:
    """Put the worker that reads hidden states in the place of vLLM's."""
    given = ((name, getattr(arguments, name, None)) for name in _SPLIT)
    split = next((name for name, value in given if value is True or (value or 1) > 1), None)
    check_worker(
        getattr(arguments, "worker_cls", None),
        getattr(arguments, "distributed_executor_backend", None),
        split,
    )
    arguments.worker_cls = WORKER
