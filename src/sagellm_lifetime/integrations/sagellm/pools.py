"""sageLLM's ``KVPool`` behind the specification's ``KVPoolProtocol``."""

from __future__ import annotations

from typing import Any

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.integrations.sagellm.packages import KV_CACHE, require
from sagellm_lifetime.policies.specification import (
    BlockAllocationRequest,
    BlockInfo,
    KVPoolProtocol,
)

require(KV_CACHE, "a KV pool of sageLLM")

from sagellm_kv_cache.errors import KVBudgetExceededError  # noqa: E402


class SageLLMPool(KVPoolProtocol):
    """Give a ``KVPool`` or ``KVCacheManager`` of ``sagellm_kv_cache`` the specification's methods.

    Each allocation is one handle of whole blocks. The package frees a handle whole, so a block that
    is given back alone stays allocated until the others of its handle are, and counts as lost in
    between (:meth:`get_fragmentation_rate`).

    Args:
        pool: a ``KVPool``, or a ``KVCacheManager``, which evicts where the pool alone would refuse.
        dtype: of the allocations.
        device: of the allocations.
    """

    def __init__(self, pool: Any, *, dtype: str = "fp16", device: str = "cpu") -> None:
        self._allocator = pool
        self._pool = getattr(pool, "kv_pool", pool)
        self.block_size = int(self._pool.block_size)
        self._dtype, self._device = dtype, device
        self._blocks: dict[int, tuple[Any, BlockAllocationRequest]] = {}
        self._left: dict[str, set[int]] = {}
        """Blocks of each handle that were not given back."""
        self._next = 0

    def allocate(self, request: BlockAllocationRequest) -> list[int]:
        """Return the ids of newly allocated blocks.

        Raises:
            MemoryError: the pool has too few tokens left.
            RequestError: ``num_blocks`` is not positive.
        """
        if request.num_blocks <= 0:
            raise RequestError(f"num_blocks must be positive, got {shown(request.num_blocks)}")
        try:
            handle = self._allocator.alloc(
                request.num_blocks * self.block_size,
                self._dtype,
                "contiguous",
                self._device,
                {"request_id": str(request.sequence_id), "priority": request.priority},
            )
        except KVBudgetExceededError as error:
            raise MemoryError(str(error)) from error
        if request.pinned:
            self._pool.pin(handle)
        ids = list(range(self._next, self._next + request.num_blocks))
        self._next += request.num_blocks
        self._blocks.update(dict.fromkeys(ids, (handle, request)))
        self._left[str(handle.handle_id)] = set(ids)
        return ids

    def free(self, block_ids: list[int]) -> None:
        """Give blocks back; ids that are not allocated are left out."""
        for block_id in block_ids:
            handle, request = self._blocks.pop(block_id, (None, None))
            if handle is None or request is None:
                continue
            left = self._left[str(handle.handle_id)]
            left.discard(block_id)
            if not left:
                del self._left[str(handle.handle_id)]
                if request.pinned:
                    self._pool.unpin(handle)
                if handle.handle_id in self._pool.handles:  # else evicted by its manager since
                    self._allocator.free(handle)

    def get_block_info(self, block_id: int) -> BlockInfo:
        """Return what is known of a block.

        Raises:
            KeyError: it is not allocated.
        """
        handle, request = self._blocks[block_id]
        return BlockInfo(
            block_id=block_id,
            ref_count=int(handle.ref_count),
            sequence_id=request.sequence_id,
            device_id=request.device_id or 0,
            is_pinned=bool(handle.is_pinned),
            last_access_time=float(handle.last_access),
        )

    def defragment(self) -> int:
        """Return 0: blocks of this pool need not lie side by side, so there is nothing to move."""
        return 0

    def migrate_blocks(self, block_ids: list[int], target_device_id: int) -> list[int]:
        """Raise: a pool of this package is one device's.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a KVPool of sageLLM is on one device: use its KVTransferEngine")

    def get_free_blocks(self) -> int:
        """Return the blocks that could be allocated now, without evicting."""
        return int(self._pool.get_available_tokens()) // self.block_size

    def get_fragmentation_rate(self) -> float:
        """Return the share of the pool in blocks given back whose handles are still held."""
        held = int(self._pool.get_allocated_tokens()) // self.block_size
        lost = held - len(self._blocks)
        return max(lost, 0) * self.block_size / int(self._pool.max_tokens)
