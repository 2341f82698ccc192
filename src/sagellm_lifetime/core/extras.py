"""Checks for optional dependencies, made before the work that needs them starts."""

from __future__ import annotations

from importlib.util import find_spec

from sagellm_lifetime.core.errors import MissingExtraError


def is_installed(module: str) -> bool:
    """Return True if a module can be imported; it is not imported.

    >>> is_installed("numpy"), is_installed("no_such_module")
    (True, False)
    """
    return find_spec(module) is not None


def require(module: str, what: str, extra: str) -> None:
    """Raise :class:`MissingExtraError` unless a module can be imported.

    Args:
        module: top-level name.
        what: the feature that needs it, the beginning of the message.
        extra: the extra of this package that installs it.

    >>> require("no_such_module", "a report", "report")
    Traceback (most recent call last):
    ...
    sagellm_lifetime.core.errors.MissingExtraError: a report needs: pip install \
'isagellm-lifetime[report]'
    """
    if not is_installed(module):
        raise MissingExtraError(what, extra)


def require_plots(what: str = "a report with plots") -> None:
    """Raise :class:`MissingExtraError` if matplotlib is not installed."""
    require("matplotlib", what, "report")
