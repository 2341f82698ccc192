"""The specification's two integration examples, with decisions from ``policies``.

The pages 2.2 (KV pool), 2.3 (eviction), 2.4 (scheduler IR) and 2.5 (lifetime predictor) of the
SAGE documentation describe the types; page 2.5 has the two examples. They are importable from the
paths on the pages, ``sage.llm.engines.sagellm.kv_runtime.kv_pool``, ``….kv_policy.eviction`` and
``….scheduler_ir``, and without ``engines`` as well.
"""

from sagellm_lifetime.policies.specification.contract import (
    EvictionCandidate,
    EvictionPolicyProtocol,
    EvictionPriority,
    OptimizationPass,
    RequestPhase,
    SchedulePriority,
    ScheduleRequest,
)
from sagellm_lifetime.policies.specification.eviction import PredictiveEvictionWithML
from sagellm_lifetime.policies.specification.kv_pool import (
    BlockAllocationRequest,
    BlockInfo,
    KVPoolProtocol,
)
from sagellm_lifetime.policies.specification.ordering import LifetimeAwarePass

__all__ = [
    "BlockAllocationRequest",
    "BlockInfo",
    "EvictionCandidate",
    "EvictionPolicyProtocol",
    "EvictionPriority",
    "KVPoolProtocol",
    "LifetimeAwarePass",
    "OptimizationPass",
    "PredictiveEvictionWithML",
    "RequestPhase",
    "SchedulePriority",
    "ScheduleRequest",
]
