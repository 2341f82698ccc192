"""The import path of the specification's page 2.4; everything lives in :mod:`sagellm_lifetime`."""

from sagellm_lifetime.policies.specification import (
    LifetimeAwarePass,
    OptimizationPass,
    RequestPhase,
    SchedulePriority,
    ScheduleRequest,
)

__all__ = [
    "LifetimeAwarePass",
    "OptimizationPass",
    "RequestPhase",
    "SchedulePriority",
    "ScheduleRequest",
]
