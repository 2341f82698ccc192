"""Conformance checks that every predictor must pass (they need ``hypothesis``).

    from sagellm_lifetime.testing import CHECKS, check_predictor

    def test_mine():
        check_predictor(MyModel)

or one test per check:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check(MyModel)

What is checked is a :class:`~sagellm_lifetime.LengthModel` class, or a function that returns a new,
untrained predictor each time, always with the same seed. It need not be registered. A check raises
``AssertionError`` with what was expected. Small options (a narrow network, few epochs) keep the
whole suite at a few seconds per predictor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final

from sagellm_lifetime.core.errors import MissingExtraError

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise MissingExtraError("the conformance suite", "testing") from error

from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.testing import (
    batches,
    contract,
    counting,
    fitting,
    inputs,
    knowledge,
    laws,
    learning,
    merges,
    purity,
)
from sagellm_lifetime.testing.common import Make, factory

Check = Callable[[Make | type[LengthModel]], None]


def _of_any(check: Callable[[Make], None]) -> Check:
    @wraps(check)
    def checked(make: Make | type[LengthModel]) -> None:
        check(factory(make))

    return checked


CHECKS: Final[list[Check]] = [
    _of_any(check)
    for group in (
        contract,
        inputs,
        purity,
        batches,
        laws,
        learning,
        counting,
        knowledge,
        fitting,
        merges,
    )
    for check in group.CHECKS
]
"""All checks, the cheap ones first."""


def check_predictor(make: Make | type[LengthModel]) -> None:
    """Run every check on a model class, or on the predictors that ``make`` returns.

    Raises:
        AssertionError: from the first check that fails.
    """
    for check in CHECKS:
        check(make)


__all__ = ["CHECKS", "Check", "Make", "check_predictor"]
