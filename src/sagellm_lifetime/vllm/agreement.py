"""Shadow mode: comparison of the engine's decisions with the advisor's."""

from __future__ import annotations

from typing import Final

_AT_ONCE: Final = 32
"""Largest number of comparisons in consecutive steps."""
_EVERY: Final = 32
"""Steps after which one more comparison is allowed. It takes some tenths of a millisecond, as it
covers all running or waiting sequences, and short memory would cause one in every other step."""


class Agreement:
    """Counts of one kind of decisions, and of those that differ from the advisor's.

    If there are too many to compare them all, a compared decision also represents the skipped ones
    before it.

    Attributes:
        made: number of decisions.
        differing: estimated number of decisions that differ.
    """

    def __init__(self) -> None:
        self.made = 0
        self.differing = 0
        self._allowed = float(_AT_ONCE)
        self._step = 0
        self._skipped = 0

    def is_due(self, decisions: int, step: int) -> bool:
        """Count decisions of a step; return True if they must be compared."""
        self._allowed = min(self._allowed + (step - self._step) / _EVERY, _AT_ONCE)
        self._step = step
        self.made += decisions
        if self._allowed < 1.0:
            self._skipped += decisions
            return False
        self._allowed -= 1.0
        return True

    def interrupt(self) -> None:
        """Drop the skipped decisions, since there is no advisor for a while."""
        self._skipped = 0

    def record(self, differing: int, decisions: int) -> None:
        """Record how many of the compared decisions differ."""
        represented, self._skipped = decisions + self._skipped, 0
        self.differing += round(min(differing / decisions, 1.0) * represented)


class ShadowAgreement:
    """The agreement on admissions and on preemptions.

    An admission differs if the advisor would have admitted another sequence or none; a preemption
    differs if it would have chosen another victim.
    """

    def __init__(self) -> None:
        self.admissions = Agreement()
        self.preemptions = Agreement()

    def interrupt(self) -> None:
        """Drop the skipped decisions of both kinds."""
        self.admissions.interrupt()
        self.preemptions.interrupt()
