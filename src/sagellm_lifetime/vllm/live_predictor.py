"""The construction of a live engine's predictor."""

from __future__ import annotations

from typing import Final

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.vllm.settings import LiveSettings

_WIDTH: Final = {"auto": "hidden_size", "lstm": "hidden_size", "transformer": "d_model"}
"""Option of each network that sets its width."""


def make_predictor(settings: LiveSettings) -> Predictor:
    """Return the initial predictor of an engine core, which a learner may update later.

    Raises:
        LifetimeError: if there is no such predictor, or its checkpoint cannot be loaded.
    """
    from sagellm_lifetime.predictor.checkpoint import load_predictor
    from sagellm_lifetime.predictor.registry import create_predictor

    if settings.checkpoint:
        return load_predictor(settings.checkpoint)
    options = {_WIDTH[settings.predictor]: settings.width} if settings.width else {}
    predictor = create_predictor(settings.predictor, **options)
    predictor.draw_secret()
    return predictor


def has_width(predictor: str) -> bool:
    """Return True if ``--predictor-hidden-size`` applies to the predictor of this name."""
    return predictor in _WIDTH


def width_of(predictor: Predictor) -> int | None:
    """Return the width of a network, ``None`` for other predictors."""
    width: int | None = predictor.options.get(_WIDTH.get(predictor.name, ""))
    return width


def warm_up(predictor: Predictor) -> None:
    """Call every method of a copy once, as the first call loads libraries."""
    twin = predictor.clone()
    twin.predict(PredictionRequest("warm", [1, 2, 3], 0, 64))
    twin.predict_batch([PredictionRequest("warm", list(range(64)), 64, 512)])
    twin.update("warm", 64, 1.0)
