"""The predictor of a live engine: the one place where it is made."""

from __future__ import annotations

from typing import Final

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.vllm.settings import LiveSettings

_WIDTH: Final = {"lstm": "hidden_size", "transformer": "d_model"}
"""What the width of a network is called."""


def make_predictor(settings: LiveSettings) -> Predictor:
    """The predictor an engine core starts from; a learner may go on from what it learned since.

    Raises:
        LifetimeError: there is no such predictor, or its checkpoint cannot be loaded.
    """
    from sagellm_lifetime.predictor.checkpoint import load_predictor
    from sagellm_lifetime.predictor.registry import create_predictor

    if settings.checkpoint:
        return load_predictor(settings.checkpoint)
    options = {_WIDTH[settings.predictor]: settings.width} if settings.width else {}
    return create_predictor(settings.predictor, **options)


def has_width(predictor: str) -> bool:
    """Whether ``--predictor-hidden-size`` means anything to it."""
    return predictor in _WIDTH


def width_of(predictor: Predictor) -> int | None:
    """Of a network; ``None`` for what has none."""
    found: int | None = predictor.options.get(_WIDTH.get(predictor.name, ""))
    return found


def warm_up(predictor: Predictor) -> None:
    """Let a copy do everything once: libraries are loaded at the first call."""
    twin = predictor.clone()
    twin.predict(PredictionRequest("warm", [1, 2, 3], 0, 64))
    twin.predict_batch([PredictionRequest("warm", list(range(64)), 64, 512)])
    twin.update("warm", 64, 1.0)
