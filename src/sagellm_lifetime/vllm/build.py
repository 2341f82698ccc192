"""A live engine's parts, put together."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagellm_lifetime.policies.plan import PLANS
from sagellm_lifetime.vllm.circuit_breaker import Breaker
from sagellm_lifetime.vllm.finish_reasons import Endings
from sagellm_lifetime.vllm.forecaster import LiveForecaster
from sagellm_lifetime.vllm.guard import LiveLifetime
from sagellm_lifetime.vllm.journal import name_of
from sagellm_lifetime.vllm.learner import Learner
from sagellm_lifetime.vllm.live_predictor import make_predictor, warm_up
from sagellm_lifetime.vllm.prediction_statistics import Tally
from sagellm_lifetime.vllm.recorder import Recorder
from sagellm_lifetime.vllm.request_adapter import Describer
from sagellm_lifetime.vllm.settings import LiveSettings, cannot_act


def make_lifetime(
    scheduler: Any, settings: LiveSettings, rank: int = 0, learned: Path | None = None
) -> tuple[LiveLifetime, Learner | None]:
    """What a scheduler asks, in mode ``off`` until it is told otherwise, and what learns for it.

    Args:
        scheduler: vLLM's, built.
        settings: what was asked for.
        rank: of the engine core.
        learned: where it keeps what it learns; ``None`` for a temporary place.
    """
    from sagellm_lifetime.predictor.registry import has_network

    config = scheduler.vllm_config
    tally = Tally()
    plan = replace(PLANS[settings.policy], min_confidence=settings.min_confidence)
    forecaster, learner, reads_tokens = None, None, False
    if settings.predict:
        predictor = make_predictor(settings)
        if settings.learn:
            learner = Learner(predictor, settings, learned)
        warm_up(predictor)
        doubting = plan.min_confidence > 0
        forecaster = LiveForecaster(predictor, tally, learn=settings.learn, doubting=doubting)
        reads_tokens = has_network(predictor.name)
    signals = None
    if settings.signals:
        from sagellm_lifetime.vllm.logit_signals import Signals

        signals = Signals()
    served = config.model_config.served_model_name
    lifetime = LiveLifetime(
        scheduler,
        plan=plan,
        forecaster=forecaster,
        reads_tokens=reads_tokens,
        describe=Describer(
            served[0] if isinstance(served, list) else str(served),
            scheduler.max_model_len,
            scheduler.hash_block_size,
            signals,
        ),
        endings=Endings(),
        breaker=Breaker(
            limit_s=settings.limit_s,
            share=settings.share,
            floor_s=settings.floor_s,
            pause_s=settings.pause_s,
            clock=time.monotonic,
        ),
        tally=tally,
        recorder=Recorder(Path(settings.record), name_of(rank), content=settings.content)
        if settings.record
        else None,
        signals=signals,
        watermark=settings.watermark,
        cannot_act=cannot_act(scheduler.scheduler_config.policy),
    )
    return lifetime, learner
