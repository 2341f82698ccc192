"""Adapters to the published sageLLM packages, behind the extra ``sagellm``.

The packages are proprietary and for Python 3.11 only. Nothing of them is imported before a name
that needs them is used; a missing one is an error of one line with the command that installs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sagellm_lifetime.integrations.sagellm.allocation import (
        LifetimeAllocationPlanner as LifetimeAllocationPlanner,
    )
    from sagellm_lifetime.integrations.sagellm.control_plane import (
        RequestLifetimePredictor as RequestLifetimePredictor,
    )
    from sagellm_lifetime.integrations.sagellm.eviction import (
        LifetimeAwareEviction as LifetimeAwareEviction,
    )
    from sagellm_lifetime.integrations.sagellm.ir_pass import LifetimeIRPass as LifetimeIRPass
    from sagellm_lifetime.integrations.sagellm.kv_predictor import (
        KVLifetimePredictor as KVLifetimePredictor,
    )
    from sagellm_lifetime.integrations.sagellm.order_policy import (
        LifetimeOrderPolicy as LifetimeOrderPolicy,
    )
    from sagellm_lifetime.integrations.sagellm.orders import Order as Order
    from sagellm_lifetime.integrations.sagellm.orders import Polarity as Polarity
    from sagellm_lifetime.integrations.sagellm.pools import SageLLMPool as SageLLMPool
    from sagellm_lifetime.integrations.sagellm.running import (
        RunningSequences as RunningSequences,
    )
    from sagellm_lifetime.integrations.sagellm.scheduler import (
        LifetimeSchedulerPlugin as LifetimeSchedulerPlugin,
    )

_HOME: Final = {
    "KVLifetimePredictor": "kv_predictor",
    "LifetimeAllocationPlanner": "allocation",
    "LifetimeAwareEviction": "eviction",
    "LifetimeIRPass": "ir_pass",
    "LifetimeOrderPolicy": "order_policy",
    "LifetimeSchedulerPlugin": "scheduler",
    "Order": "orders",
    "Polarity": "orders",
    "RequestLifetimePredictor": "control_plane",
    "RunningSequences": "running",
    "SageLLMPool": "pools",
}

__all__ = [
    "KVLifetimePredictor",
    "LifetimeAllocationPlanner",
    "LifetimeAwareEviction",
    "LifetimeIRPass",
    "LifetimeOrderPolicy",
    "LifetimeSchedulerPlugin",
    "Order",
    "Polarity",
    "RequestLifetimePredictor",
    "RunningSequences",
    "SageLLMPool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
