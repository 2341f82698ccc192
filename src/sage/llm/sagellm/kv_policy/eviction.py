"""The import path of the specification's page 2.3; everything lives in :mod:`sagellm_lifetime`."""

from sagellm_lifetime.policies.specification import (
    EvictionCandidate,
    EvictionPolicyProtocol,
    EvictionPriority,
    PredictiveEvictionWithML,
)

__all__ = [
    "EvictionCandidate",
    "EvictionPolicyProtocol",
    "EvictionPriority",
    "PredictiveEvictionWithML",
]
