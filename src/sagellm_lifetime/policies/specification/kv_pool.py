"""The types of the specification's page 2.2 (KV pool), field for field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from sagellm_lifetime.core.protocol import SequenceId


@dataclass
class BlockAllocationRequest:
    """A wish for blocks.

    Attributes:
        num_blocks: blocks to allocate.
        sequence_id: the engine's id, an int or a string.
        priority: 0 is normal, 1 high, 2 urgent.
        pinned: True if the blocks must not be evicted.
        device_id: target device, None for the pool's own.
    """

    num_blocks: int
    sequence_id: SequenceId
    priority: int = 0
    pinned: bool = False
    device_id: int | None = None


@dataclass
class BlockInfo:
    """What a pool knows of a block.

    Attributes:
        block_id: of the block.
        ref_count: holders.
        sequence_id: that it was allocated for.
        device_id: where it lies.
        is_pinned: True if it must not be evicted.
        last_access_time: seconds on the pool's clock.
    """

    block_id: int
    ref_count: int
    sequence_id: SequenceId
    device_id: int
    is_pinned: bool
    last_access_time: float


class KVPoolProtocol(ABC):
    """The interface of a pool of KV blocks (page 2.2)."""

    @abstractmethod
    def allocate(self, request: BlockAllocationRequest) -> list[int]:
        """Return the ids of newly allocated blocks; a ``MemoryError`` where there are too few."""

    @abstractmethod
    def free(self, block_ids: list[int]) -> None:
        """Give blocks back."""

    @abstractmethod
    def get_block_info(self, block_id: int) -> BlockInfo:
        """Return what is known of a block."""

    @abstractmethod
    def defragment(self) -> int:
        """Compact the pool, and return the number of blocks gained."""

    @abstractmethod
    def migrate_blocks(self, block_ids: list[int], target_device_id: int) -> list[int]:
        """Move blocks to another device, and return their new ids."""

    @abstractmethod
    def get_free_blocks(self) -> int:
        """Return the number of free blocks."""

    @abstractmethod
    def get_fragmentation_rate(self) -> float:
        """Return the share of the pool that is lost between allocations, 0 to 1."""
