"""Conformance checks that every predictor must pass (they need ``hypothesis``).

    from sagellm_lifetime.testing import CHECKS, check_predictor

    def test_mine():
        check_predictor(lambda: MyPredictor(seed=0))

or one test per check:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_mine(check):
        check(lambda: MyPredictor(seed=0))

``make`` returns a new, untrained predictor each time, always with the same seed. A check raises
``AssertionError`` with what was expected. Small options (a narrow network, few epochs) keep the
whole suite at a few seconds per predictor. Checkpoints are loaded by name, so the predictor must be
in ``predictor.registry``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sagellm_lifetime.core.errors import MissingExtraError

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise MissingExtraError("the conformance suite", "dev") from error

from sagellm_lifetime.testing import (
    batches,
    contract,
    counting,
    fitting,
    inputs,
    knowledge,
    laws,
    learning,
    purity,
)
from sagellm_lifetime.testing.common import Make

Check = Callable[[Make], None]

CHECKS: Final[list[Check]] = [
    *contract.CHECKS,
    *inputs.CHECKS,
    *purity.CHECKS,
    *batches.CHECKS,
    *laws.CHECKS,
    *learning.CHECKS,
    *counting.CHECKS,
    *knowledge.CHECKS,
    *fitting.CHECKS,
]
"""All checks, the cheap ones first."""


def check_predictor(make: Make) -> None:
    """Run every check on the predictors that ``make`` returns.

    Raises:
        AssertionError: from the first check that fails.
    """
    for check in CHECKS:
        check(make)


__all__ = ["CHECKS", "Check", "Make", "check_predictor"]
