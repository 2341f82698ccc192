"""Shadow mode: what would have been done, beside what was done."""

from __future__ import annotations

from typing import Final

_AT_ONCE: Final = 32
"""Comparisons that may follow one another, step after step."""
_EVERY: Final = 32
"""Steps after which there may be one more. It takes some tenths of a millisecond, as it asks about
all that run or wait, and while memory is short there is one to be made in every other step."""


class Agreement:
    """Decisions of the engine of one kind, and how many of them would have been others.

    Where there are too many to compare them all, one that is compared stands for those since the
    last one.

    Attributes:
        made: decisions.
        differing: of them.
    """

    def __init__(self) -> None:
        self.made = 0
        self.differing = 0
        self._allowed = float(_AT_ONCE)
        self._step = 0
        self._passed_over = 0

    def is_due(self, decisions: int, step: int) -> bool:
        """Count decisions of a step; return True if they are to be compared."""
        self._allowed = min(self._allowed + (step - self._step) / _EVERY, _AT_ONCE)
        self._step = step
        self.made += decisions
        if self._allowed < 1.0:
            self._passed_over += decisions
            return False
        self._allowed -= 1.0
        return True

    def interrupt(self) -> None:
        """Let none of those passed over be stood for: there is no advisor for a while."""
        self._passed_over = 0

    def record(self, differing: int, decisions: int) -> None:
        """Record how many of the compared decisions differ."""
        stands_for, self._passed_over = decisions + self._passed_over, 0
        self.differing += round(min(differing / decisions, 1.0) * stands_for)


class ShadowAgreement:
    """Admissions and preemptions.

    An admission differs when another sequence would have been admitted in its place, or none; a
    preemption, when another would have lost its memory.
    """

    def __init__(self) -> None:
        self.admissions = Agreement()
        self.preemptions = Agreement()

    def interrupt(self) -> None:
        """Let none of those passed over be stood for."""
        self.admissions.interrupt()
        self.preemptions.interrupt()
