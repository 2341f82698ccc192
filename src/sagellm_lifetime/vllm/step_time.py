"""The duration of the engine's steps, robust against pauses and stalls.

A step lasts from its ``schedule`` to the next one. After the output of the last pending step, the
engine computes nothing until the next ``schedule``: it reads new requests, is paused, waits for a
call to all workers, or its process is stopped. So such a gap counts up to the duration of the
step's own work, which is far longer than reading requests takes.
"""

from __future__ import annotations

from collections.abc import Callable


class StepClock:
    """A clock of one engine core's steps.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        """Start of the present step; ``None`` if none computes."""
        self._ended: float | None = None
        """Time of its output, if no other step was pending then."""
        self._pending = 0
        """Steps with pending output: several with asynchronous scheduling."""

    def begin(self) -> float | None:
        """Begin a step; return the seconds of the previous one, or None if there was none."""
        now, began, ended = self._clock(), self._began, self._ended
        self._began, self._ended = now, None
        self._pending += 1
        if began is None:
            return None
        if ended is None:
            return now - began
        work = ended - began
        return work + min(now - ended, work)

    def output_processed(self, tokens: int) -> None:
        """Record that the output of a step with ``tokens`` computed tokens was processed."""
        self._pending = max(self._pending - 1, 0)
        if self._pending:
            return
        if tokens:
            self._ended = self._clock()
        else:
            self._began = None  # nothing was scheduled: no sequence runs, or vLLM is paused
