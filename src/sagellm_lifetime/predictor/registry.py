"""Predictors by name. A new predictor is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.core.errors import RequestError, UnknownNameError

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.base import Predictor

_WHERE: Final = {
    "baseline": "baseline:BaselineLifetimePredictor",
    "orca": "orca:OrcaLifetimePredictor",
    "linear": "linear:LinearLifetimePredictor",
    "survival": "survival:SurvivalLifetimePredictor",
    "lstm": "lstm:LSTMLifetimePredictor",
    "transformer": "transformer:TransformerLifetimePredictor",
}
PREDICTORS: Final = tuple(_WHERE)


def predictor_class(name: str) -> type[Predictor]:
    """The class of a name. Raises :class:`UnknownNameError`."""
    if not isinstance(name, str) or name not in _WHERE:
        raise UnknownNameError("predictor", name, list(PREDICTORS))
    module, attribute = _WHERE[name].split(":")
    found: type[Predictor] = getattr(
        import_module(f"sagellm_lifetime.predictor.{module}"), attribute
    )
    return found


def has_network(name: str) -> bool:
    """Whether the predictor of a name is a network, which takes PyTorch to train."""
    from sagellm_lifetime.predictor.neural import NeuralPredictor

    return issubclass(predictor_class(name), NeuralPredictor)


def create_predictor(name: str, *, seed: int = 0, **options: Any) -> Predictor:
    """A new predictor by name.

    Raises:
        UnknownNameError: no predictor of that name.
        RequestError: an option it does not take, or an impossible value.
    """
    cls = predictor_class(name)
    try:
        return cls(seed=seed, **options)
    except TypeError as error:
        raise RequestError(f"predictor {name!r}: {error}") from error
