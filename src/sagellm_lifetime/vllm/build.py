"""The assembly of a live engine's parts."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.policies.plan import PLANS, Plan
from sagellm_lifetime.policies.plan_advisor import PlanAdvisor
from sagellm_lifetime.vllm.circuit_breaker import CircuitBreaker
from sagellm_lifetime.vllm.finish_reasons import FinishReasons
from sagellm_lifetime.vllm.forecaster import CheckedForecaster
from sagellm_lifetime.vllm.guard import GuardedAdvisor
from sagellm_lifetime.vllm.journal import name_of
from sagellm_lifetime.vllm.learner import Learner
from sagellm_lifetime.vllm.live_predictor import make_predictor, warm_up
from sagellm_lifetime.vllm.model_signals import AllSignals, HiddenSignals, ModelSignals
from sagellm_lifetime.vllm.prediction_statistics import PredictionStatistics
from sagellm_lifetime.vllm.recorder import Recorder
from sagellm_lifetime.vllm.request_adapter import RequestAdapter
from sagellm_lifetime.vllm.request_events import RequestEvents
from sagellm_lifetime.vllm.settings import LiveSettings, cannot_act

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.scheduler import LifetimeMixin


def make_live(
    scheduler: LifetimeMixin, settings: LiveSettings, rank: int = 0, learned: Path | None = None
) -> tuple[GuardedAdvisor, Learner | None]:
    """Set the advisor of a scheduler; return it, in mode ``off``, and its learner if any.

    Args:
        scheduler: vLLM's with our mixin, built.
        settings: of the engine.
        rank: of the engine core.
        learned: directory of the learned state; ``None`` for a temporary one.
    """
    plan = replace(PLANS[settings.policy], min_confidence=settings.min_confidence)
    forecaster, learner, make, reads_tokens = None, None, None, False
    if settings.predict:
        predictor = make_predictor(settings)
        if settings.learn:
            learner = Learner(predictor, settings, learned)
        warm_up(predictor)
        uses_confidence = plan.min_confidence > 0
        forecaster = CheckedForecaster(
            predictor, learn=settings.learn, uses_confidence=uses_confidence
        )
        reads_tokens = predictor.model.reads_content
        make = partial(_plan_advisor, scheduler, plan, forecaster, settings.watermark)
    signals = _signals(settings, scheduler.vllm_config)
    adapter = RequestAdapter(
        served_name(scheduler.vllm_config),
        scheduler.max_model_len,
        scheduler.hash_block_size,
        signals,
        trusts_body=not settings.client_from,
    )
    breaker = CircuitBreaker(
        limit_s=settings.limit_s,
        share=settings.share,
        floor_s=settings.floor_s,
        pause_s=settings.pause_s,
        clock=time.monotonic,
    )
    advisor = GuardedAdvisor(
        make,
        scheduler,
        clock=scheduler.clock,
        breaker=breaker,
        statistics=PredictionStatistics(),
        forecaster=forecaster,
        limits_admission=plan.fit > 0.0,
        cannot_act=cannot_act(scheduler.scheduler_config.policy),
    )
    recorder = None
    if settings.record:
        recorder = Recorder(Path(settings.record), name_of(rank), content=settings.content)
    events = RequestEvents(
        FinishReasons(),
        adapter=adapter,
        recorder=recorder,
        signals=signals,
        reads_tokens=reads_tokens,
    )
    scheduler.use(advisor, events, adapter)
    return advisor, learner


def _signals(settings: LiveSettings, vllm_config: Any) -> ModelSignals | None:
    """Return what the model itself is watched for, ``None`` for nothing."""
    parts: list[ModelSignals] = []
    if settings.signals:
        from sagellm_lifetime.vllm.logit_signals import LogitSignals

        parts.append(LogitSignals())
    if settings.hidden:
        parts.append(HiddenSignals(vllm_config))
    return AllSignals(parts) if len(parts) > 1 else parts[0] if parts else None


def served_name(vllm_config: Any) -> str:
    """Return the name under which the model is served, vLLM's label ``model_name``."""
    served = vllm_config.model_config.served_model_name
    return served[0] if isinstance(served, list) else str(served)


def _plan_advisor(
    scheduler: LifetimeMixin,
    plan: Plan,
    forecaster: CheckedForecaster,
    watermark: float,
    is_applied: bool,
) -> PlanAdvisor:
    return PlanAdvisor(
        plan,
        forecaster,
        total_blocks=scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
        block_size=scheduler.block_size,
        clock=scheduler.clock,
        watermark=watermark,
        is_applied=is_applied,
    )
