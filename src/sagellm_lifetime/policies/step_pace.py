"""The mean duration of an engine's steps, in which outliers count for little."""

from __future__ import annotations

from statistics import median
from typing import Final

_NEWEST: Final = 0.002
"""Smallest weight of the newest step in the moving average of the duration: a step with a prefill
takes ten times as long as one without, and the places in the queue depend on this average."""
OUTLIER: Final = 100.0
"""Upper bound on one step, in usual durations: longer than any prefill takes."""
_FIRST: Final = 64
"""Number of first steps, whose outliers are found by their median: no earlier average exists."""


class StepPace:
    """Mean duration of a step, over all steps at first and over the last hundreds later.

    Attributes:
        seconds: mean seconds per step.
    """

    def __init__(self) -> None:
        self.seconds = 0.02
        self._steps = 0
        self._first: list[float] = []

    def learn(self, seconds: float) -> float:
        """Update the mean with one step and return it; ignore a negative duration (clock set back).

        Args:
            seconds: duration of the step.
        """
        if seconds < 0.0:
            return self.seconds
        self._steps += 1
        share = max(_NEWEST, 1.0 / self._steps)
        if self._steps <= _FIRST:
            self._first.append(seconds)
        elif self.seconds:
            seconds = min(seconds, OUTLIER * self.seconds)
        self.seconds += share * (seconds - self.seconds)
        if self._steps == _FIRST:
            self._bound_first()
        return self.seconds

    def _bound_first(self) -> None:
        """Bound the outliers among the first steps, which are start-up and compilation."""
        limit = OUTLIER * median(self._first)
        if max(self._first) > limit > 0.0:
            self.seconds = sum(min(duration, limit) for duration in self._first) / _FIRST
        self._first.clear()
