"""The two integration examples of page 2.5 and the scheduler of page 2.4, as they are described.

Told in our own words, step for step, faults included: what they import, take, set, sort and return
is what the pages' own code does. They stand beside the repaired classes and are not repaired.
"""

from __future__ import annotations

from sage.llm.sagellm.kv_policy.eviction import EvictionCandidate
from sage.llm.sagellm.kv_policy.lifetime import (
    LifetimePredictorProtocol,
    LSTMLifetimePredictor,
    PredictionRequest,
)
from sage.llm.sagellm.scheduler_ir import OptimizationPass, ScheduleRequest

NEVER = float("inf")


class ExampleEviction:
    """``PredictiveEvictionWithML`` of page 2.5; another predictor than its LSTM for the tests."""

    def __init__(self, lifetime_predictor: LifetimePredictorProtocol | None = None) -> None:
        self.lifetime_predictor = lifetime_predictor or LSTMLifetimePredictor()

    def select_victims(
        self, candidates: list[EvictionCandidate], required_blocks: int
    ) -> list[int]:
        for each in candidates:
            asked = PredictionRequest(
                sequence_id=each.sequence_id,
                token_ids=[],
                current_length=each.sequence_length,
                max_length=each.max_length,
            )
            each.estimated_lifetime = self.lifetime_predictor.predict(asked).estimated_time
        candidates.sort(key=lambda each: each.estimated_lifetime or NEVER)
        victims, freed = [], 0
        for each in candidates:
            if not each.is_pinned:
                victims.append(each.sequence_id)
                freed += len(each.block_ids)
                if freed >= required_blocks:
                    break
        return victims


class ExamplePass(OptimizationPass):
    """``LifetimeAwarePass`` of page 2.5."""

    def __init__(self, lifetime_predictor: LifetimePredictorProtocol) -> None:
        self.lifetime_predictor = lifetime_predictor

    def name(self) -> str:
        return "LifetimeAware"

    def apply(
        self,
        pending: list[ScheduleRequest],
        running: list[ScheduleRequest],
        available_memory: int,
    ) -> list[ScheduleRequest]:
        for each in pending:
            asked = PredictionRequest(
                sequence_id=int(each.request_id),
                token_ids=each.token_ids,
                current_length=each.num_decoded_tokens,
                max_length=each.max_tokens,
            )
            answer = self.lifetime_predictor.predict(asked)
            each.estimated_remaining_tokens = answer.estimated_remaining_tokens
        pending.sort(key=lambda each: getattr(each, "estimated_remaining_tokens", NEVER))
        return pending


class ExampleScheduler:
    """``BaseSchedulerIR.schedule`` of page 2.4: passes, then a sort by arrival, then what fits."""

    def __init__(self, *passes: OptimizationPass) -> None:
        self.passes = passes

    def schedule(
        self,
        pending: list[ScheduleRequest],
        running: list[ScheduleRequest],
        available_memory: int,
    ) -> list[ScheduleRequest]:
        line = pending.copy()
        for each in self.passes:
            line = each.apply(line, running, available_memory)
        line.sort(key=lambda request: request.arrived_time)
        scheduled, used = [], 0
        for request in line:
            used += len(request.token_ids) + request.max_tokens
            if used > available_memory:
                break
            scheduled.append(request)
        return scheduled


class ExamplePriorityPass(OptimizationPass):
    """``PriorityBasedPass`` of page 2.4."""

    def name(self) -> str:
        return "PriorityBased"

    def apply(self, pending, running, available_memory):
        pending.sort(key=lambda request: (-request.priority, request.arrived_time))
        return pending
