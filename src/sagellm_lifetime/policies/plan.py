"""Named plans: one choice for each kind of decision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from sagellm_lifetime.core.errors import RequestError, UnknownNameError
from sagellm_lifetime.policies.eviction import VALUES
from sagellm_lifetime.policies.ordering import SERVICES
from sagellm_lifetime.policies.reservation import FARTHEST


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules by which a scheduler uses the predictions.

    Attributes:
        order: a key of ``ordering.SERVICES``.
        patience: seconds a sequence may be overtaken for, per second of its expected service;
            service in other units than memory-time counts as many seconds on average.
        slack: bound on overtaking. No sequence that arrives later than ``slack`` times the wait of
            a newcomer in arrival order, plus the duration of some typical answers, goes first.
        evict: a key of ``eviction.VALUES``, or ``""`` to leave the victim to the engine.
        fit: required probability that the predicted peak of memory fits, or 0 to admit as the
            engine does.
        horizon: steps ahead over which that peak is taken; a longer horizon reserves more.
        near_completion: tokens before its end from which a sequence is no longer preempted.
        max_preemptions: preemptions of one sequence, after which it is spared.
        min_confidence: confidence below which the engine's own rule decides.
        cached: share of a waiting prompt that the prefix cache must hold for it to go before all
            others of its class, however long they have waited; 0 for never.
    """

    order: str = "area"
    patience: float = 200.0
    slack: float = 0.6
    evict: str = "cost-aware"
    fit: float = 0.0
    horizon: int = FARTHEST
    near_completion: int = 32
    max_preemptions: int = 3
    min_confidence: float = 0.0
    cached: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in SERVICES:
            raise UnknownNameError("order", self.order, list(SERVICES))
        if self.evict and self.evict not in VALUES:
            raise UnknownNameError("evict", self.evict, list(VALUES))
        if not 0.0 <= self.fit < 1.0:
            raise RequestError(f"fit must be a probability below 1, got {self.fit}")
        if not 0.0 <= self.cached <= 1.0:
            raise RequestError(f"cached must be a share, got {self.cached}")
        if not self.horizon >= 1:
            raise RequestError(f"horizon must be 1 step or more, got {self.horizon}")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise RequestError(f"min_confidence must be a probability, got {self.min_confidence}")
        for name in ("patience", "slack", "near_completion", "max_preemptions"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}"
                )


NO_BOUND: Final = 1e15
"""A slack that never binds. With a patience of 1e9 a smaller slack would bind in a short queue and
keep part of the queue in arrival order."""

PLANS: Final[Mapping[str, Plan]] = MappingProxyType(
    {
        "lifetime": Plan(),
        "sjf": Plan(order="length", patience=1e9, slack=NO_BOUND, evict=""),
        "gittins": Plan(order="gittins"),
        "evict-shortest": Plan(evict="shortest"),
        "evict-longest": Plan(evict="longest"),
        "evict-engine": Plan(evict=""),
        "longest-first": Plan(order="longest", patience=1e9, slack=NO_BOUND, evict="", cached=0.5),
        "reserve": Plan(order="fcfs", evict="", fit=0.96, horizon=512),
    }
)
"""The plans that use a predictor, in a replay and in a running engine."""
