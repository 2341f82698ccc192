"""The predictor of a live engine: the one place where it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.engines.vllm.breaker import LOG
from sagellm_lifetime.engines.vllm.settings import LiveSettings
from sagellm_lifetime.learning.checkpoint import MANIFEST
from sagellm_lifetime.predictors.base import Predictor

_WIDTH: Final = {"lstm": "hidden_size", "transformer": "d_model"}
"""What the width of a network is called."""


def make_predictor(settings: LiveSettings, learned: Path | None = None) -> Predictor:
    """The predictor of an engine core.

    Args:
        settings: which one.
        learned: where an earlier run has left what it learned; it goes before an older checkpoint,
            from which that run started.

    Raises:
        LifetimeError: there is no such predictor, or its checkpoint cannot be loaded.
    """
    from sagellm_lifetime.predictors.checkpoint import load_predictor
    from sagellm_lifetime.predictors.registry import create_predictor

    made: Predictor
    if settings.checkpoint:
        made = load_predictor(settings.checkpoint)
    else:
        options = {_WIDTH[settings.predictor]: settings.width} if settings.width else {}
        made = create_predictor(settings.predictor, **options)
    if learned is None or not learned.is_dir():
        return made
    if settings.checkpoint and _age(Path(settings.checkpoint)) > _age(learned):
        LOG.info("%s is newer than %s, which is not used", settings.checkpoint, learned)
        return made
    try:
        found = load_predictor(learned)
    except CheckpointError as error:
        LOG.error("what was learned before is lost: %s", error)
        return made
    if found.name != made.name:
        LOG.warning("%s holds a %s predictor, which is not used", learned, found.name)
        return made
    LOG.info("lifetime prediction goes on with what was learned in %s", learned)
    return found


def _age(path: Path) -> float:
    """When a checkpoint was written."""
    return (path / MANIFEST if path.is_dir() else path).stat().st_mtime


def has_width(predictor: str) -> bool:
    """Whether ``--predictor-hidden-size`` means anything to it."""
    return predictor in _WIDTH


def warm_up(predictor: Predictor) -> None:
    """Let a copy do everything once: libraries are loaded at the first call."""
    twin = predictor.clone()
    twin.predict(PredictionRequest("warm", [1, 2, 3], 0, 64))
    twin.predict_batch([PredictionRequest("warm", list(range(64)), 64, 512)])
    twin.update("warm", 64, 1.0)
