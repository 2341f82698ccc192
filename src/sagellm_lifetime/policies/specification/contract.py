"""The types of the specification's pages 2.3 and 2.4, field for field; additions optional and last.

Objects of other classes with these fields are accepted; a missing addition has its default. On both
pages a higher priority is more important, but the scales differ, so each has its own enum. In vLLM
a lower priority is more important.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

from sagellm_lifetime.core.protocol import SequenceId


class EvictionPriority(IntEnum):
    """Priorities of page 2.3: higher is kept longer, and the middle is 1."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class SchedulePriority(IntEnum):
    """Priorities of page 2.4: higher goes sooner, and the middle is 0."""

    NORMAL = 0
    HIGH = 1
    URGENT = 2


class RequestPhase(Enum):
    """The phase of a request."""

    PREFILL = "prefill"
    DECODE = "decode"
    PAUSED = "paused"


@dataclass
class EvictionCandidate:
    """A sequence that holds memory.

    Attributes:
        sequence_id: the engine's id, an int or a string.
        block_ids: KV blocks that it holds; several sequences may hold the same block.
        last_access_time: seconds on any clock.
        access_count: number of accesses.
        priority: an :class:`EvictionPriority`, or its number; the higher is evicted later.
        is_pinned: True if it must never be evicted.
        estimated_lifetime: remaining seconds; set by the policy.
        sequence_length: tokens so far. The page leaves open whether they include the prompt: they
            do if ``prompt_length`` is given, and otherwise all of them count as generated.
        max_length: largest possible ``sequence_length``; 0 if unknown.
        prompt_length: tokens of the prompt (addition).
        cached_tokens: tokens that need not be computed again (addition).
        preemptions: number of its evictions, if the engine counts them (addition).
        prompt_features: for the predictor (addition).
    """

    sequence_id: SequenceId
    block_ids: list[int]
    last_access_time: float
    access_count: int
    priority: EvictionPriority | int
    is_pinned: bool
    estimated_lifetime: float | None = None
    sequence_length: int = 0
    max_length: int = 0
    prompt_length: int | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    prompt_features: dict[str, Any] | None = None


class EvictionPolicyProtocol(ABC):
    """The interface that a KV pool calls (page 2.3)."""

    @abstractmethod
    def select_victims(
        self, candidates: list[EvictionCandidate], required_blocks: int
    ) -> list[SequenceId]:
        """Return the ids of the sequences to evict, first victim first."""

    @abstractmethod
    def update_access(self, sequence_id: SequenceId) -> None:
        """Record an access to a sequence."""

    @abstractmethod
    def get_metrics(self) -> dict[str, Any]:
        """Return figures of the decisions so far."""


@dataclass
class ScheduleRequest:
    """A request that waits or runs.

    Attributes:
        request_id: the engine's id.
        token_ids: of the prompt.
        max_tokens: cap on generated tokens; 0 or ``None`` if unknown.
        priority: a :class:`SchedulePriority`, or its number; the higher goes sooner.
        arrived_time: seconds on the engine's clock.
        prefix_cache_hit: tokens of the prompt that are cached.
        kv_blocks_needed: blocks that it needs.
        phase: its phase.
        num_decoded_tokens: tokens generated so far.
        estimated_remaining_tokens: set by the pass (addition; the example sets it, undeclared).
        prompt_features: for the predictor (addition).
    """

    request_id: str
    token_ids: list[int]
    max_tokens: int | None
    priority: SchedulePriority | int = SchedulePriority.NORMAL
    arrived_time: float = 0.0
    prefix_cache_hit: int | None = None
    kv_blocks_needed: int = 0
    phase: RequestPhase = RequestPhase.PREFILL
    num_decoded_tokens: int = 0
    estimated_remaining_tokens: int | None = None
    prompt_features: dict[str, Any] | None = None


class OptimizationPass(ABC):
    """One step of a scheduler of page 2.4."""

    @abstractmethod
    def name(self) -> str:
        """Return the name of the pass."""

    @abstractmethod
    def apply(
        self,
        pending: list[ScheduleRequest],
        running: list[ScheduleRequest],
        available_memory: int,
    ) -> list[ScheduleRequest]:
        """Return the waiting requests in the order in which to schedule them."""
