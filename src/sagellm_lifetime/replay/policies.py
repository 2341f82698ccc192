"""The policies a trace can be replayed with: one line each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.replay.trace import TraceRequest

WATERMARKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
UNCAPPED = 1 << 30
"""Priority of a request without a cap: behind all that have one, first come first served."""


@dataclass(frozen=True)
class ReplayPolicy:
    """How a run is set up.

    Attributes:
        name: what ``--policy`` and the report call it.
        says: one line of explanation.
        scheduler_cls: ``module:class`` of the scheduler; vLLM's own where empty.
        overrides: fields of :class:`~sagellm_lifetime.replay.engine.EngineSettings` it changes.
        grid: sets of further overrides, of which the best one *in the very setting that is
            replayed* is reported. An honest rival is a tuned one.
        priority: the request's priority (lower goes first), from what a client would know.
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
        """The scheduler's class, ``None`` for vLLM's own."""
        if not self.scheduler_cls:
            return None
        module, _, name = self.scheduler_cls.partition(":")
        return getattr(importlib.import_module(module), name)


def _cap(request: TraceRequest) -> int:
    return request.max_length if request.max_length is not None else UNCAPPED


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
)
POLICIES: dict[str, ReplayPolicy] = {policy.name: policy for policy in _POLICIES}


def policy(name: str) -> ReplayPolicy:
    """The policy of a name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in POLICIES:
        raise UnknownNameError("policy", name, list(POLICIES))
    return POLICIES[name]
