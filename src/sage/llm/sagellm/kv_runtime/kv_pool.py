"""The import path of the specification's page 2.2; everything lives in :mod:`sagellm_lifetime`."""

from sagellm_lifetime.policies.specification import (
    BlockAllocationRequest,
    BlockInfo,
    KVPoolProtocol,
)

__all__ = ["BlockAllocationRequest", "BlockInfo", "KVPoolProtocol"]
