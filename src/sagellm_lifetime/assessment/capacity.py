"""The highest load that passes a test, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

PRECISION: Final = 1.08
"""Largest ratio of the lowest load that failed to the highest that passed."""


@dataclass(frozen=True, slots=True)
class Highest:
    """The highest load that passes.

    Attributes:
        load: multiple of the present load; where none passed, the lowest that was tried.
        end: ``found``, ``more`` (all that were tried passed) or ``less`` (none did).
    """

    load: float
    end: Literal["found", "more", "less"] = "found"


def highest_load(
    passes: Callable[[float], bool],
    *,
    start: float = 1.0,
    lowest: float = 1 / 16,
    most: float = 16.0,
    precision: float = PRECISION,
) -> Highest:
    """Return the highest load that passes, to a relative precision.

    The load is doubled or halved from ``start`` until one passes and one fails, then the interval
    is halved on a logarithmic scale. ``passes`` should hold below a load and fail above it.

    Args:
        passes: the test of a load.
        start: first load, within ``lowest`` and ``most``.
        lowest: lowest load that is tried.
        most: highest load that is tried.
        precision: see :data:`PRECISION`.

    >>> round(highest_load(lambda load: load <= 3.3).load, 2)
    3.22
    >>> highest_load(lambda load: True).end
    'more'
    """
    if passes(start):
        good, bad = start, start * 2
        while bad <= most and passes(bad):
            good, bad = bad, bad * 2
        if bad > most:
            return Highest(good, "more")
    else:
        good, bad = start / 2, start
        while good >= lowest and not passes(good):
            good, bad = good / 2, good
        if good < lowest:
            return Highest(bad, "less")
    while bad / good > precision:
        middle = math.sqrt(good * bad)
        if passes(middle):
            good = middle
        else:
            bad = middle
    return Highest(good)
