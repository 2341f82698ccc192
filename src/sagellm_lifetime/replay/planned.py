"""The predictive policies: a plan and its forecaster."""

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
from sagellm_lifetime.replay.recorded_states import RecordedStates
from sagellm_lifetime.replay.trace import TraceRequest

SCHEDULER = "sagellm_lifetime.vllm.scheduler:LifetimeScheduler"
WATERMARK: Final = 0.05
"""Share of the pool that admission leaves free for the growth of running sequences."""
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
"""Plans that are replayed both with a predictor and with an oracle."""
UNCAPPED = 4096
"""Assumed cap of a request without one, tokens, for forecasts from caps."""

ForecasterFactory = Callable[[Sequence[TraceRequest]], Forecaster]


def planned_policies(predictor: Predictor, min_confidence: float = 0.0) -> dict[str, ReplayPolicy]:
    """Return the policies of this package by name, with oracles and predictor-free baselines.

    Args:
        predictor: fitted; each run gets a clone, which learns online in simulated time.
        min_confidence: threshold of the plans that use it (:class:`Plan`).
    """

    def predicted(plan: Plan) -> ForecasterFactory:
        uses_confidence = plan.min_confidence > 0
        return lambda trace: PredictedLengths(predictor.clone(), uses_confidence=uses_confidence)

    policies = []
    for name, says in OURS.items():
        oracle = PLANS[name]
        plan = replace(oracle, min_confidence=min_confidence)
        # A plan that fits the predicted peak needs no watermark.
        room = 0.0 if plan.fit else WATERMARK
        policies.append(planned_policy(name, says, plan, predicted(plan), room))
        policies.append(
            planned_policy(f"{name}-oracle", f"{says}; lengths known", oracle, known, room)
        )
    # These reserve the whole predicted length, however far ahead.
    whole = replace(PLANS["reserve"], horizon=FARTHEST)
    policies += (
        planned_policy(
            "fair-input",
            "no predictor: a bounded boost to short inputs (after UniBoost)",
            Plan(order="input", evict=""),
            average,  # only sets the length of the queue in arrival order
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
    """Return the oracle."""
    return KnownLengths({request.id: request.output_length for request in trace})


def capped(trace: Sequence[TraceRequest]) -> Forecaster:
    """Return the forecaster that assumes every request reaches its cap."""
    return MaxTokens(UNCAPPED)


def ratio(trace: Sequence[TraceRequest]) -> Forecaster:
    """Return the forecaster of SGLang."""
    return GlobalRatio(UNCAPPED)


def average(trace: Sequence[TraceRequest]) -> Forecaster:
    """Return the forecaster of LightLLM."""
    return GlobalAverage()


def planned_policy(
    name: str,
    says: str,
    plan: Plan,
    make_forecaster: ForecasterFactory,
    watermark: float = WATERMARK,
) -> ReplayPolicy:
    """Return a policy that carries a plan out.

    Args:
        name: its name in the report.
        says: one line of explanation.
        plan: rules by which the scheduler uses the predictions.
        make_forecaster: makes the forecaster of a run from its trace.
        watermark: share of the pool that admission leaves free.
    """

    def make(trace: Sequence[TraceRequest], pool: Pool) -> Advisor:
        return PlanAdvisor(
            plan,
            make_forecaster(trace),
            total_blocks=pool.blocks,
            block_size=pool.block_size,
            clock=pool.clock,
            watermark=watermark,
        )

    return advised_policy(name, says, make)


def advised_policy(
    name: str,
    says: str,
    make: Callable[[Sequence[TraceRequest], Pool], Advisor],
    read: Callable[[Sequence[TraceRequest], Any], RecordedStates] = RecordedStates,
) -> ReplayPolicy:
    """Return a policy that uses any advisor, through the scheduler of a live engine.

    Args:
        name: its name in the report.
        says: one line of explanation.
        make: makes the advisor of a run from its trace and the pool of KV blocks.
        read: makes what reads hidden states, of the trace and the engine's scheduler.
    """

    def install(scheduler: Any, trace: Sequence[TraceRequest], run: Any) -> None:
        from sagellm_lifetime.vllm.circuit_breaker import TransparentBreaker
        from sagellm_lifetime.vllm.finish_reasons import FinishReasons
        from sagellm_lifetime.vllm.guard import GuardedAdvisor
        from sagellm_lifetime.vllm.request_events import RequestEvents

        blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        advisor = make(trace, Pool(blocks, scheduler.block_size, scheduler.clock))
        guarded = GuardedAdvisor(
            lambda _: advisor,
            scheduler,
            clock=scheduler.clock,
            breaker=TransparentBreaker(),
            limits_admission=advisor.limits_admission,
        )
        states = read(trace, scheduler) or None
        events = RequestEvents(FinishReasons(), signals=states)
        scheduler.use(guarded, events, _TraceRequests(trace, states))
        guarded.set_mode("act")

    return ReplayPolicy(name, says, SCHEDULER, install=install)


@dataclass(frozen=True)
class Pool:
    """The facts about a run's engine that an advisor gets.

    Attributes:
        blocks: KV blocks in the pool.
        block_size: tokens per block.
        clock: simulated seconds.
    """

    blocks: int
    block_size: int
    clock: Callable[[], float]


class _TraceRequests:
    """Prediction requests of a trace's requests, without the made-up tokens."""

    def __init__(self, trace: Sequence[TraceRequest], states: RecordedStates | None = None) -> None:
        self._requests = {request.id: request for request in trace}
        self._states = states

    def __call__(self, request: Any) -> PredictionRequest:
        """Return the prediction request of a request, with what has been read of its state."""
        made = described(self._requests[request.request_id])
        if self._states is None:
            return made
        seen = self._states.seen(request.request_id)
        return replace(made, prompt_features={**(made.prompt_features or {}), **seen})

    at_arrival = __call__

    def since_arrival(self, request: Any) -> PredictionRequest:
        """Return the prediction request at its present age; the made-up tokens are left out."""
        made = self(request)
        if self._states is None:
            return made
        return replace(made, token_ids=[], current_length=request.num_output_tokens)


def described(request: TraceRequest) -> PredictionRequest:
    """Return the prediction request of a client's request: everything but its length."""
    values = {
        "prompt_length": request.prompt_length,
        "model": request.model,
        "client_id": request.client_id,
        "session_id": request.session_id,
        "turn": request.turn,
        "arrival_time": request.arrival,
        "prefix_hashes": list(request.prefix_hashes) or None,
    }
    features = {key: value for key, value in values.items() if value is not None}
    return PredictionRequest(request.id, list(request.given or ()), 0, request.max_length, features)
