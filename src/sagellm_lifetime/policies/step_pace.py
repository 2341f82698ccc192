"""The mean duration of an engine's steps, in which outliers count for little."""

from __future__ import annotations

from statistics import median
from typing import Final

_NEWEST: Final = 0.002
"""Weight of the newest step in the moving average of its duration, at least: a step with a prefill
takes ten times as long as one without, and places in the line are settled by this figure."""
OUTLIER: Final = 100.0
"""Usual durations that one step may count for: more than any prefill takes."""
_FIRST: Final = 64
"""Steps among which an outlier is told by their median, for there is no average before them."""


class StepPace:
    """Mean duration of a step: of all at first, of the last hundreds later.

    Attributes:
        seconds: per step.
    """

    def __init__(self) -> None:
        self.seconds = 0.02
        self._steps = 0
        self._first: list[float] = []

    def learn(self, seconds: float) -> float:
        """Take in a step and return the mean; one below 0 (the clock was set back) is none."""
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
            self._look_back()
        return self.seconds

    def _look_back(self) -> None:
        """Bound outliers among the first steps: starts and compilations."""
        most = OUTLIER * median(self._first)
        if max(self._first) > most > 0.0:
            self.seconds = sum(min(each, most) for each in self._first) / _FIRST
        self._first.clear()
