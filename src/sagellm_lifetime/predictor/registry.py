"""Registry of predictors by name: those of this package, and models of other packages.

Another package registers its model class in the entry-point group :data:`GROUP`; every command,
checkpoint and benchmark then accepts its name.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.core.errors import RequestError, UnknownNameError, reason_of

if TYPE_CHECKING:
    from sagellm_lifetime.models.base import LengthModel
    from sagellm_lifetime.predictor.base import Predictor

GROUP: Final = "sagellm_lifetime.models"
"""Entry-point group of other packages: name of the model, and its class."""
DEFAULT: Final = "auto"
"""Predictor of every command and of an engine, where none is named."""
_CLASSES: Final = {
    "auto": "AutoLifetimePredictor",
    "baseline": "BaselineLifetimePredictor",
    "orca": "OrcaLifetimePredictor",
    "linear": "LinearLifetimePredictor",
    "survival": "SurvivalLifetimePredictor",
    "lstm": "LSTMLifetimePredictor",
    "transformer": "TransformerLifetimePredictor",
}
PREDICTORS: Final = tuple(_CLASSES)
"""Names of the predictors of this package; :func:`predictor_names` returns all names."""


@cache
def _registered() -> dict[str, EntryPoint]:
    entries: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        if entry.name in _CLASSES or (entry.name in entries and entries[entry.name] != entry):
            owner = "sagellm-lifetime" if entry.name in _CLASSES else _owner(entries[entry.name])
            warnings.warn(
                f"the model {entry.name!r} of {_owner(entry)} is not used: {owner} has one of "
                "that name",
                RuntimeWarning,
                stacklevel=2,
            )
            continue
        entries.setdefault(entry.name, entry)
    return entries


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def predictor_names() -> tuple[str, ...]:
    """Return the names of all predictors, those of this package first.

    Example:
        >>> predictor_names()[:2]
        ('auto', 'baseline')
    """
    return (*PREDICTORS, *_registered())


def model_class(name: str) -> type[LengthModel]:
    """Return the model class of a name.

    Raises:
        UnknownNameError: no predictor of that name.
        RequestError: the package that registers it cannot be imported, or names no model class.
    """
    if isinstance(name, str) and name in _CLASSES:
        builtin: type[LengthModel] = _builtin(name).model_class
        return builtin
    entry = _registered().get(name) if isinstance(name, str) else None
    if entry is None:
        raise UnknownNameError("predictor", name, list(predictor_names()))
    return _loaded(entry)


def _builtin(name: str) -> Any:
    return getattr(import_module("sagellm_lifetime.predictor.builtin"), _CLASSES[name])


@cache
def _loaded(entry: EntryPoint) -> type[LengthModel]:
    from sagellm_lifetime.models.base import LengthModel

    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # the import of another package may raise anything
        raise RequestError(
            f"predictor {entry.name!r} of {_owner(entry)} cannot be loaded ({reason_of(error)})"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, LengthModel)):
        problem = "is no LengthModel class"
    elif loaded.__abstractmethods__:
        problem = f"lacks {', '.join(sorted(loaded.__abstractmethods__))}"
    elif getattr(loaded, "name", None) != entry.name:
        problem = f"has the name {getattr(loaded, 'name', None)!r}"
    else:
        return loaded
    raise RequestError(f"predictor {entry.name!r} of {_owner(entry)}: {entry.value} {problem}")


def predictor_class(name: str) -> type[Predictor]:
    """Return the class of :func:`create_predictor`'s result; errors as of :func:`model_class`."""
    from sagellm_lifetime.predictor.base import Predictor

    model_class(name)
    cls: type[Predictor] = _builtin(name) if name in _CLASSES else Predictor
    return cls


def is_registered(predictor: Predictor) -> bool:
    """Return True if :func:`create_predictor` makes a predictor of these classes by its name."""
    try:
        classes = predictor_class(predictor.name), model_class(predictor.name)
    except UnknownNameError:
        return False
    return classes == (type(predictor), type(predictor.model))


def needs_torch(name: str) -> bool:
    """Return True if a predictor cannot be trained without PyTorch.

    Raises:
        LifetimeError: as of :func:`model_class`.
    """
    from sagellm_lifetime.networks.auto import AutoModel

    return has_network(name) and not issubclass(model_class(name), AutoModel)


def has_network(name: str) -> bool:
    """Return True if a predictor has a network, or may have one.

    Raises:
        LifetimeError: as of :func:`model_class`.
    """
    from sagellm_lifetime.networks.model import NetworkModel

    return issubclass(model_class(name), NetworkModel)


def create_predictor(name: str, *, seed: int = 0, **options: Any) -> Predictor:
    """Return a new predictor by name.

    Args:
        name: one of :func:`predictor_names`.
        seed: seeds everything random; equal seeds and calls give equal answers.
        options: options of the model, and ``capacity`` and ``expire_after`` of the predictor.

    Raises:
        UnknownNameError: no predictor of that name.
        RequestError: an unknown option, or an impossible value; or the package that registers it
            cannot be used.

    Example:
        >>> create_predictor("baseline", window_size=50).options["window_size"]
        50
    """
    cls, length_model = predictor_class(name), model_class(name)
    try:
        if name in _CLASSES:
            make: Any = cls
            predictor: Predictor = make(seed=seed, **options)
            return predictor
        from sagellm_lifetime.predictor.builtin import around

        return cls(**around(length_model, {"seed": seed, **options}))
    except TypeError as error:
        raise RequestError(f"predictor {name!r}: {error}") from error
