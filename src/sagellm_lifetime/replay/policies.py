"""The replay policies without a predictor, one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.replay.trace import TraceRequest

WATERMARKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
UNCAPPED = 1 << 30
"""Priority of a request without a cap: after all with one, first come, first served."""


@dataclass(frozen=True)
class ReplayPolicy:
    """The set-up of a run.

    Attributes:
        name: its name in ``--policy`` and in the report.
        says: one line of explanation.
        scheduler_cls: ``module:class`` of the scheduler; vLLM's own if empty.
        overrides: changed fields of :class:`~sagellm_lifetime.replay.engine.EngineSettings`.
        grid: sets of further overrides, of which the best one *on the replayed trace* is reported,
            so that a baseline is compared at its best.
        priority: the request's priority (lower goes first), from data that a client has.
        install: called once, ``install(scheduler, trace, run)``, before the first request.
    """

    name: str
    says: str = ""
    scheduler_cls: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    grid: Sequence[Mapping[str, Any]] = ()
    priority: Callable[[TraceRequest], int] | None = None
    install: Callable[[Any, Sequence[TraceRequest], Any], None] | None = None

    def scheduler(self) -> Any:
        """Return the scheduler's class, ``None`` for vLLM's own."""
        if not self.scheduler_cls:
            return None
        module, _, name = self.scheduler_cls.partition(":")
        return getattr(importlib.import_module(module), name)


def _cap(request: TraceRequest) -> int:
    return request.max_length if request.max_length is not None else UNCAPPED


def _prompt(request: TraceRequest) -> int:
    return request.prompt_length


_POLICIES = (
    ReplayPolicy("fcfs", "vLLM's default: first come, first served"),
    ReplayPolicy(
        "fcfs-watermark",
        "first come, first served; the watermark that gives the lowest mean latency here",
        grid=tuple({"watermark": share} for share in WATERMARKS),
    ),
    ReplayPolicy(
        "priority-max-tokens",
        "vLLM's priority policy, the smallest max_tokens first",
        overrides={"policy": "priority"},
        priority=_cap,
    ),
    ReplayPolicy(
        "priority-prompt-length",
        "vLLM's priority policy, the shortest prompt first: no prediction",
        overrides={"policy": "priority"},
        priority=_prompt,
    ),
)
POLICIES: dict[str, ReplayPolicy] = {policy.name: policy for policy in _POLICIES}


def policy(name: str) -> ReplayPolicy:
    """Return the policy of a name.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in POLICIES:
        raise UnknownNameError("policy", name, list(POLICIES))
    return POLICIES[name]
