"""How long the engine's steps take: what a pause, a stalled process or one slow step leaves alone.

A step lasts from its ``schedule`` to the next one. When the output of the last step under way has
been taken, the engine computes nothing until the next ``schedule``: it reads new requests, it is
paused, it waits for a call to all workers, or its process is stopped. So of such a gap no more
counts than the step's own work took, which is far more than reading requests takes.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Final

_NEWEST: Final = 0.002
"""Weight of the newest step in the moving average of its duration, at least: a step with a prefill
takes ten times as long as one without, and places in the line are settled by this figure."""
OUTLIER: Final = 100.0
"""Usual durations that one step may count for: more than any prefill takes."""
_FIRST: Final = 64
"""Steps among which an outlier is told by their median, for there is no average before them."""


class StepClock:
    """Measures the steps of one engine core by one clock.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        """When the step under way began; ``None`` where none that computes has."""
        self._ended: float | None = None
        """When its output was taken, if nothing else was under way then."""
        self._under_way = 0
        """Steps whose output has not been taken: several with asynchronous scheduling."""

    def begin(self) -> float | None:
        """Begin a step; return the seconds of the one before, or None where there was none."""
        now, began, ended = self._clock(), self._began, self._ended
        self._began, self._ended = now, None
        self._under_way += 1
        if began is None:
            return None
        if ended is None:
            return now - began
        work = ended - began
        return work + min(now - ended, work)

    def taken(self, tokens: int) -> None:
        """Take note that the output of a step was taken, in which so many tokens were computed."""
        self._under_way = max(self._under_way - 1, 0)
        if self._under_way:
            return
        if tokens:
            self._ended = self._clock()
        else:
            self._began = None  # nothing was scheduled: nobody runs, or the scheduler is paused


class Pace:
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
