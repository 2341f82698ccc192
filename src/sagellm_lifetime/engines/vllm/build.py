"""A live engine's parts, put together. The one place where its predictor is made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.engines.vllm.breaker import LOG, Breaker
from sagellm_lifetime.engines.vllm.describe import Describer
from sagellm_lifetime.engines.vllm.endings import Endings
from sagellm_lifetime.engines.vllm.forecaster import LiveForecaster
from sagellm_lifetime.engines.vllm.guarded import LiveLifetime
from sagellm_lifetime.engines.vllm.journal import name_of
from sagellm_lifetime.engines.vllm.recorder import Recorder
from sagellm_lifetime.engines.vllm.settings import LiveSettings
from sagellm_lifetime.engines.vllm.tally import Tally
from sagellm_lifetime.policies.plan import PLANS
from sagellm_lifetime.predictors.base import Predictor

_WIDTH: Final = {"lstm": "hidden_size", "transformer": "d_model"}
"""What the width of a network is called."""


def make_predictor(settings: LiveSettings, learned: Path | None = None) -> Predictor:
    """The predictor of an engine core.

    Args:
        settings: which one.
        learned: where an earlier run has left what it learned: it goes before the checkpoint, from
            which it started.

    Raises:
        LifetimeError: there is no such predictor, or its checkpoint cannot be loaded.
    """
    from sagellm_lifetime.predictors.checkpoint import load_predictor
    from sagellm_lifetime.predictors.registry import create_predictor

    if learned is not None and learned.is_dir():
        try:
            found = load_predictor(learned)
        except CheckpointError as error:
            LOG.error("what was learned before is lost: %s", error)
        else:
            if settings.checkpoint or found.name == settings.predictor:
                LOG.info("lifetime prediction goes on with what was learned in %s", learned)
                return found
            LOG.warning("%s holds a %s predictor: not used", learned, found.name)
    if settings.checkpoint:
        return load_predictor(settings.checkpoint)
    options = {_WIDTH[settings.predictor]: settings.width} if settings.width else {}
    return create_predictor(settings.predictor, **options)


def has_width(predictor: str) -> bool:
    """Whether ``--predictor-hidden-size`` means anything to it."""
    return predictor in _WIDTH


def warm_up(predictor: Predictor) -> None:
    """Let a copy do everything once: libraries are loaded at the first call."""
    twin = predictor.clone()
    twin.predict(PredictionRequest("warm", [1, 2, 3], 0, 64))
    twin.predict_batch([PredictionRequest("warm", list(range(64)), 64, 512)])
    twin.update("warm", 64, 1.0)


def make_lifetime(
    scheduler: Any, settings: LiveSettings, rank: int = 0, learned: Path | None = None
) -> LiveLifetime:
    """What a scheduler asks; in mode ``off`` until it is told otherwise.

    Args:
        scheduler: vLLM's, built.
        settings: what was asked for.
        rank: of the engine core.
        learned: see :func:`make_predictor`.
    """
    from sagellm_lifetime.predictors.registry import has_network

    config = scheduler.vllm_config
    tally = Tally()
    forecaster, reads_tokens = None, False
    if settings.predict:
        predictor = make_predictor(settings, learned)
        warm_up(predictor)
        forecaster = LiveForecaster(predictor, tally, learn=settings.learn)
        reads_tokens = has_network(predictor.name)
    served = config.model_config.served_model_name
    return LiveLifetime(
        scheduler,
        plan=PLANS[settings.policy],
        forecaster=forecaster,
        reads_tokens=reads_tokens,
        describe=Describer(
            served[0] if isinstance(served, list) else str(served),
            scheduler.max_model_len,
            scheduler.hash_block_size,
        ),
        endings=Endings(),
        breaker=Breaker(
            limit_s=settings.limit_s,
            share=settings.share,
            pause_s=settings.pause_s,
            clock=time.monotonic,
        ),
        tally=tally,
        recorder=Recorder(Path(settings.record), name_of(rank), content=settings.content)
        if settings.record
        else None,
        watermark=settings.watermark,
        cannot_act=cannot_act(scheduler.scheduler_config.policy),
    )


def cannot_act(policy: str) -> str:
    """Why our order cannot be kept under a scheduling policy of vLLM, or nothing."""
    if policy == "fcfs":
        return ""
    return f"--scheduling-policy {policy} keeps an order of its own: use fcfs to act"
