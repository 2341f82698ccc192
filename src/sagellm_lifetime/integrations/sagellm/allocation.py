"""Allocation of KV blocks ahead of need, against any pool of the specification's protocol."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagellm_lifetime.core.errors import RequestError, UnknownSequenceError, shown
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.integrations.sagellm.running import RunningSequences
from sagellm_lifetime.policies.reservation import FARTHEST, Peak
from sagellm_lifetime.policies.specification import BlockAllocationRequest, KVPoolProtocol
from sagellm_lifetime.policies.state import SurvivalForecast, gap_of

_NORMAL, _HIGH = 0, 1
"""Priorities of page 2.2."""


@dataclass(frozen=True)
class PlannedAllocation:
    """One allocation ahead of need.

    Attributes:
        request: for whom and how many.
        due_in: tokens until the sequence has no room left; 0 is now.
        probability: that the sequence lives to use the first of the blocks.
    """

    request: BlockAllocationRequest
    due_in: int
    probability: float


class LifetimeAllocationPlanner:
    """Decide for whom, how many and when to allocate, and carry it out.

    Admission keeps room for the predicted peak of all running sequences; blocks come one by one,
    before a sequence needs them and only if it will probably live to use them.

    Args:
        pool: any pool of the protocol.
        sequences: the running sequences, which hold age and prediction.
        block_size: tokens per block.
        lead: tokens before the need at which a block is allocated; a block's length by default.
        min_probability: of use, from which a block is allocated ahead. Below it a sequence that
            lives on waits for its allocation once.
        fit: required probability that the predicted peak of memory fits.
        horizon: tokens ahead over which that peak is taken.

    Example:
        >>> from sagellm_lifetime import PredictionRequest
        >>> from sagellm_lifetime.integrations.sagellm.running import RunningSequences
        >>> class Pool:
        ...     left = 100
        ...     def allocate(self, request):
        ...         self.left -= request.num_blocks
        ...         return list(range(self.left, self.left + request.num_blocks))
        ...     def free(self, block_ids):
        ...         self.left += len(block_ids)
        ...     def get_free_blocks(self):
        ...         return self.left
        >>> running, pool = RunningSequences(), Pool()
        >>> planner = LifetimeAllocationPlanner(pool, running, block_size=16)
        >>> result = running.arrived(PredictionRequest("a", [], 0, 500, {"prompt_length": 20}))
        >>> planner.start("a"), pool.left
        (2, 98)
        >>> running.progressed("a", 10)
        >>> [(p.request.num_blocks, p.due_in) for p in planner.plan()]
        [(1, 2)]
        >>> planner.carry_out(planner.plan()), planner.ended("a"), pool.left
        ([], 1, 100)

    Raises:
        RequestError: a size or a probability is out of range.
    """

    def __init__(
        self,
        pool: KVPoolProtocol,
        sequences: RunningSequences,
        *,
        block_size: int,
        lead: int | None = None,
        min_probability: float = 0.5,
        fit: float = 0.95,
        horizon: int = FARTHEST,
    ) -> None:
        if block_size < 1:
            raise RequestError(f"block_size must be 1 or more, got {shown(block_size)}")
        if lead is not None and lead < 0:
            raise RequestError(f"lead must be 0 or more, got {shown(lead)}")
        if not (0.0 <= min_probability <= 1.0 and 0.0 < fit < 1.0):
            raise RequestError("min_probability must be within 0–1, and fit above 0 and below 1")
        self.pool = pool
        self.sequences = sequences
        self._block_size = block_size
        self._lead = block_size if lead is None else lead
        self._min_probability = min_probability
        self._fit, self._horizon = fit, horizon
        self._blocks: dict[str, list[int]] = {}

    def admits(self, request_id: str) -> bool:
        """Return True if the predicted peak fits into the pool with this sequence.

        Raises:
            UnknownSequenceError: ``sequences`` does not know it.
        """
        newcomer = self._request(request_id)
        first = self._blocks_for(self._tokens(newcomer))
        free = self.pool.get_free_blocks()
        peak = Peak(self._block_size, self._fit, self._horizon)
        requests = [r for r in map(self.sequences.request, self._blocks) if r is not None]
        if not requests:
            return free >= first
        needed = np.array([self._blocks_for(self._tokens(request)) for request in requests])
        held = sum(len(self._blocks[str(request.sequence_id)]) for request in requests)
        ahead = held - int(needed.sum())
        peak.add(peak.terms(needed, self.sequences.forecast(requests)).sum(axis=0))
        terms = peak.terms(np.array([first]), self.sequences.forecast([newcomer]))
        # What was allocated ahead is room too.
        return free >= first and peak.fits(terms[0], free + ahead)

    def start(self, request_id: str) -> int:
        """Allocate for what a sequence holds now, and return the number of blocks.

        Raises:
            UnknownSequenceError: ``sequences`` does not know it.
            RequestError: it was started before, and has not ended.
            MemoryError: the pool has too few blocks. Nothing is allocated then.
        """
        request_id = str(request_id)
        request = self._request(request_id)
        if request_id in self._blocks:
            raise RequestError(
                f"sequence {shown(request_id)} was started before: call ended() for it first"
            )
        needed = self._blocks_for(self._tokens(request))
        wish = BlockAllocationRequest(needed, request_id, priority=_HIGH)
        self._blocks[request_id] = list(self.pool.allocate(wish))
        return needed

    def plan(self) -> list[PlannedAllocation]:
        """Return the allocations due within ``lead`` tokens, the likeliest to be used first.

        Sequences that probably end before they would use a block are left out.
        """
        due: list[tuple[str, PredictionRequest, int]] = []
        for request_id, blocks in self._blocks.items():
            request = self.sequences.request(request_id)
            if request is None:
                continue
            room = len(blocks) * self._block_size - self._tokens(request)
            if room < self._lead:
                due.append((request_id, request, max(room, 0)))
        if not due:
            return []
        forecast = self.sequences.forecast([request for _, request, _ in due])
        plans = []
        for i, (request_id, request, room) in enumerate(due):
            chances = self._chances(forecast, i, room, request)
            count = int(np.count_nonzero(chances >= self._min_probability))
            if count:
                wish = BlockAllocationRequest(count, request_id, priority=_NORMAL)
                plans.append(PlannedAllocation(wish, room, float(chances[0])))
        return sorted(plans, key=lambda plan: (-plan.probability, plan.due_in))

    def carry_out(self, plans: list[PlannedAllocation]) -> list[PlannedAllocation]:
        """Allocate as planned, and return the plans for which the pool had no room.

        Nothing is allocated for a sequence that has ended since it was planned for.
        """
        refused = []
        for plan in plans:
            if str(plan.request.sequence_id) not in self._blocks:
                continue
            try:
                blocks = self.pool.allocate(plan.request)
            except MemoryError:
                refused.append(plan)
            else:
                self._blocks[str(plan.request.sequence_id)].extend(blocks)
        return refused

    def make_room(self, request_id: str) -> int:
        """Allocate what a sequence needs now and was not given ahead: the engine waits for it.

        Returns:
            Blocks allocated; 0 where it has room for its next token.

        Raises:
            UnknownSequenceError: ``sequences`` does not know it, or it was not started.
            MemoryError: the pool has too few blocks: evict somebody, and call again.
        """
        request_id = str(request_id)
        request = self._request(request_id)
        if request_id not in self._blocks:
            raise UnknownSequenceError(f"sequence {shown(request_id)} was not started")
        missing = self._blocks_for(self._tokens(request) + 1) - len(self._blocks[request_id])
        if missing <= 0:
            return 0
        wish = BlockAllocationRequest(missing, request_id, priority=_HIGH)
        self._blocks[request_id].extend(self.pool.allocate(wish))
        return missing

    def ended(self, request_id: str) -> int:
        """Give all blocks of a sequence back, and return how many of them it never used.

        Call it before ``sequences.finished``, for an answer that ends, is cut or is evicted.
        """
        blocks = self._blocks.pop(str(request_id), [])
        request = self.sequences.request(request_id)
        used = len(blocks) if request is None else self._blocks_for(self._tokens(request))
        self.pool.free(blocks)
        return max(len(blocks) - used, 0)

    def held(self, request_id: str) -> int:
        """Return the number of blocks that a sequence holds."""
        return len(self._blocks.get(str(request_id), ()))

    def _chances(
        self, forecast: SurvivalForecast, i: int, room: int, request: PredictionRequest
    ) -> np.ndarray:
        """Return the probability that each block due within the lead is used, falling."""
        count = max(-(-(self._lead - room) // self._block_size), 1)
        starts = room + self._block_size * np.arange(count)
        chances = forecast.survival[i, [gap_of(float(start) + 1.0) for start in starts]]
        if request.max_length is not None:
            chances[starts >= request.max_length - request.current_length] = 0.0
        return chances

    def _request(self, request_id: str) -> PredictionRequest:
        request = self.sequences.request(request_id)
        if request is None:
            raise UnknownSequenceError(
                f"sequence {shown(request_id)} is not running: tell RunningSequences.arrived first"
            )
        return request

    def _tokens(self, request: PredictionRequest) -> int:
        features = request.prompt_features or {}
        prompt = features.get("prompt_length", max(len(request.token_ids), 0))
        return int(prompt) + request.current_length

    def _blocks_for(self, tokens: int) -> int:
        return max(-(-tokens // self._block_size), 1)
