"""The highest load that passes a test, by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sagellm_lifetime.assessment.intervals import Range

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


def middle(several: Sequence[Highest]) -> Highest:
    """Return the median of the windows; its end is ``less`` or ``more`` where it is a bound.

    >>> middle([Highest(0.1, "less"), Highest(0.3), Highest(0.5)])
    Highest(load=0.3, end='found')
    >>> middle([Highest(0.1, "less"), Highest(0.3)]).end
    'less'
    """
    ordered = sorted(several, key=lambda highest: highest.load)
    half = len(ordered) // 2
    both = ordered[half : half + 1] if len(ordered) % 2 else ordered[half - 1 : half + 1]
    ends = {highest.end for highest in both} - {"found"}
    load = sum(highest.load for highest in both) / len(both)
    return Highest(load, ends.pop() if len(ends) == 1 else "found")


@dataclass(frozen=True, slots=True)
class Gain:
    """Share by which one policy serves more load than another.

    Attributes:
        share: over the windows in which it is known, or bounded on one side.
        bound: which side of the truth the shares are, where a load was not found: the truth is
            ``more`` than they are, ``less``, or ``either``.
        windows: number of these windows.
    """

    share: Range
    bound: Literal["", "more", "less", "either"]
    windows: int


def gain(mine: Sequence[Highest], theirs: Sequence[Highest]) -> Gain | None:
    """Return how much more load is served, window by window; None if no window tells.

    A window tells nothing where both pass at no load that was tried, or both at all.

    >>> gain([Highest(1.0)], [Highest(0.5, "less")])
    Gain(share=Range(middle=1.0, low=1.0, high=1.0), bound='more', windows=1)
    >>> gain([Highest(0.5, "less")], [Highest(0.5, "less")])
    """
    pairs = [
        (a, b) for a, b in zip(mine, theirs, strict=True) if a.end == "found" or a.end != b.end
    ]
    if not pairs:
        return None
    more = any(a.end == "more" or b.end == "less" for a, b in pairs)
    less = any(a.end == "less" or b.end == "more" for a, b in pairs)
    share = Range.of([a.load / b.load - 1 for a, b in pairs])
    side: Literal["", "more", "less", "either"] = "less" if less else ""
    if more:
        side = "either" if less else "more"
    return Gain(share, side, len(pairs))


def highest_load(
    passes: Callable[[float], bool],
    *,
    start: float = 1.0,
    lowest: float = 1 / 16,
    most: float = 16.0,
    precision: float = PRECISION,
) -> Highest:
    """Return the highest load that passes, to a relative precision.

    The load is doubled (up to ``most``) or halved from ``start`` until one passes and one fails,
    then the interval is halved on a logarithmic scale. ``passes`` should hold below a load and fail
    above it.

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
        good, bad = start, min(start * 2, most)
        while good < most and passes(bad):
            good, bad = bad, min(bad * 2, most)
        if good >= most:
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
