"""The policies that look ahead: a plan, and whom it asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.policies.advisor import Advisor
from sagellm_lifetime.policies.forecast import (
    Forecaster,
    GlobalAverage,
    GlobalRatio,
    KnownLengths,
    MaxTokens,
    PredictedLengths,
)
from sagellm_lifetime.policies.plan import PLANS, Plan
from sagellm_lifetime.policies.plan_advisor import PlanAdvisor
from sagellm_lifetime.policies.reservation import FARTHEST
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.replay.policies import ReplayPolicy
from sagellm_lifetime.replay.trace import TraceRequest

SCHEDULER = "sagellm_lifetime.vllm.scheduler:LifetimeScheduler"
WATERMARK: Final = 0.05
"""Share of the pool that admission leaves free for the growth of what runs."""
OURS: Mapping[str, str] = {
    "lifetime": "our default",
    "sjf": "shortest expected first, no ageing",
    "gittins": "Gittins index",
    "evict-shortest": "the specification's victims",
    "evict-longest": "longest remaining preempted",
    "evict-engine": "vLLM's victims",
    "longest-first": "longest first, for offline batches",
    "reserve": "arrival order; the predicted peak fits",
}
"""Plans that are replayed with a predictor and, beside it, with an oracle."""
UNCAPPED = 4096
"""What a request without a cap counts as where caps are all that is known."""

Asked = Callable[[Sequence[TraceRequest]], Forecaster]


def planned_policies(predictor: Predictor, min_confidence: float = 0.0) -> dict[str, ReplayPolicy]:
    """The policies of this package by name, and their all-knowing and predictor-free rivals.

    Args:
        predictor: fitted; each run gets a clone, which learns online in simulated time.
        min_confidence: of the plans that ask it (:class:`Plan`).
    """

    def predicted(plan: Plan) -> Asked:
        doubting = plan.min_confidence > 0
        return lambda trace: PredictedLengths(predictor.clone(), doubting=doubting)

    policies = []
    for name, says in OURS.items():
        oracle = PLANS[name]
        plan = replace(oracle, min_confidence=min_confidence)
        # Who makes room by the peak needs no watermark.
        room = 0.0 if plan.fit else WATERMARK
        policies.append(planned_policy(name, says, plan, predicted(plan), room))
        policies.append(
            planned_policy(f"{name}-oracle", f"{says}; lengths known", oracle, known, room)
        )
    # Set all of it aside, however far ahead.
    whole = replace(PLANS["reserve"], horizon=FARTHEST)
    policies += (
        planned_policy(
            "fair-input",
            "no predictor: a bounded boost to short inputs (after UniBoost)",
            Plan(order="input", evict=""),
            average,  # how long the queue is, in arrival order; nothing else
        ),
        planned_policy(
            "reserve-max-tokens", "arrival order; max_tokens set aside", whole, capped, 0.0
        ),
        planned_policy(
            "reserve-ratio", "one share of max_tokens for all (as SGLang)", whole, ratio, 0.0
        ),
        planned_policy("reserve-average", "one average for all (as LightLLM)", whole, average, 0.0),
    )
    return {policy.name: policy for policy in policies}


def known(trace: Sequence[TraceRequest]) -> Forecaster:
    """The oracle."""
    return KnownLengths({request.id: request.output_length for request in trace})


def capped(trace: Sequence[TraceRequest]) -> Forecaster:
    """Caps, as far as there are any."""
    return MaxTokens(UNCAPPED)


def ratio(trace: Sequence[TraceRequest]) -> Forecaster:
    """SGLang's."""
    return GlobalRatio(UNCAPPED)


def average(trace: Sequence[TraceRequest]) -> Forecaster:
    """LightLLM's."""
    return GlobalAverage()


def planned_policy(
    name: str,
    says: str,
    plan: Plan,
    asked: Asked,
    watermark: float = WATERMARK,
) -> ReplayPolicy:
    """Return a policy that carries a plan out.

    Args:
        name: what the report calls it.
        says: one line of explanation.
        plan: what the scheduler does with the predictions.
        asked: makes the forecaster of a run from its trace.
        watermark: share of the pool that admission leaves free.
    """

    def make(trace: Sequence[TraceRequest], pool: Pool) -> Advisor:
        return PlanAdvisor(
            plan,
            asked(trace),
            total_blocks=pool.blocks,
            block_size=pool.block_size,
            clock=pool.clock,
            watermark=watermark,
        )

    return advised_policy(name, says, make)


def advised_policy(
    name: str, says: str, make: Callable[[Sequence[TraceRequest], Pool], Advisor]
) -> ReplayPolicy:
    """Return a policy that asks any advisor, through the scheduler that a live engine has.

    Args:
        name: what the report calls it.
        says: one line of explanation.
        make: makes the advisor of a run from its trace and the pool of KV blocks.
    """

    def install(scheduler: Any, trace: Sequence[TraceRequest], run: Any) -> None:
        from sagellm_lifetime.vllm.circuit_breaker import OpenLine
        from sagellm_lifetime.vllm.finish_reasons import FinishReasons
        from sagellm_lifetime.vllm.guard import GuardedAdvisor
        from sagellm_lifetime.vllm.request_events import RequestEvents

        blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        advisor = make(trace, Pool(blocks, scheduler.block_size, scheduler.clock))
        lifetime = GuardedAdvisor(
            lambda _: advisor,
            scheduler,
            clock=scheduler.clock,
            breaker=OpenLine(),
            limits_admission=advisor.limits_admission,
        )
        scheduler.use(lifetime, RequestEvents(FinishReasons()), _TraceQuestions(trace))
        lifetime.want("act")

    return ReplayPolicy(name, says, SCHEDULER, install=install)


@dataclass(frozen=True)
class Pool:
    """What an advisor of a run may know of its engine.

    Attributes:
        blocks: of KV, in the pool.
        block_size: tokens per block.
        clock: simulated seconds.
    """

    blocks: int
    block_size: int
    clock: Callable[[], float]


class _TraceQuestions:
    """What clients' requests say, at any time; of the made-up tokens nothing is told."""

    def __init__(self, trace: Sequence[TraceRequest]) -> None:
        self._requests = {request.id: request for request in trace}

    def __call__(self, request: Any) -> PredictionRequest:
        """Return the question of a request."""
        return described(self._requests[request.request_id])

    came = grown = __call__


def described(request: TraceRequest) -> PredictionRequest:
    """Return what a client's request says: everything but its length."""
    said = {
        "prompt_length": request.prompt_length,
        "model": request.model,
        "client_id": request.client_id,
        "session_id": request.session_id,
        "turn": request.turn,
        "arrival_time": request.arrival,
        "prefix_hashes": list(request.prefix_hashes) or None,
    }
    features = {key: value for key, value in said.items() if value is not None}
    return PredictionRequest(request.id, list(request.given or ()), 0, request.max_length, features)
