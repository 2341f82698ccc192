"""How long the engine's steps take: what a pause, a stalled process or one slow step leaves alone.

A step lasts from its ``schedule`` to the next one. When the output of the last step under way has
been taken, the engine computes nothing until the next ``schedule``: it reads new requests, it is
paused, it waits for a call to all workers, or its process is stopped. So of such a gap no more
counts than the step's own work took, which is far more than reading requests takes.
"""

from __future__ import annotations

from collections.abc import Callable


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
