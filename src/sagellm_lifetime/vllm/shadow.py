"""Shadow mode: what would have been done, beside what was done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sagellm_lifetime.vllm.circuit_breaker import Breaker
from sagellm_lifetime.vllm.planner import Planner

_AT_ONCE: Final = 32
"""Comparisons that may follow one another, step after step."""
_EVERY: Final = 32
"""Steps after which there may be one more. It takes some tenths of a millisecond, as it asks about
all that run or wait, and while memory is short there is one to be made in every other step."""


class Compared:
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

    def due(self, decisions: int, step: int) -> bool:
        """Whether decisions in this step are to be compared; they are counted in any case."""
        self._allowed = min(self._allowed + (step - self._step) / _EVERY, _AT_ONCE)
        self._step = step
        self.made += decisions
        if self._allowed < 1.0:
            self._passed_over += decisions
            return False
        self._allowed -= 1.0
        return True

    def interrupted(self) -> None:
        """Nobody is there to ask for a while: who is compared after it stands for none before."""
        self._passed_over = 0

    def would(self, differ: int, decisions: int) -> None:
        """So many of those that were due would have been others."""
        stands_for, self._passed_over = decisions + self._passed_over, 0
        self.differing += round(min(differ / decisions, 1.0) * stands_for)


class Shadow:
    """An admission differs when another sequence would have been admitted in its place, or none; a
    preemption, when another would have lost its memory."""

    def __init__(self) -> None:
        self.admissions = Compared()
        self.preemptions = Compared()

    def interrupted(self) -> None:
        """There is no planner any more."""
        self.admissions.interrupted()
        self.preemptions.interrupted()

    def admitted(
        self,
        breaker: Breaker,
        planner: Planner,
        admitted: set[str],
        queue: Sequence[Any],
        held: int,
    ) -> None:
        """Compare the admission of some of ``queue`` (all that waited before the step).

        ``held`` of them would have had to wait for memory.
        """
        ours: Sequence[Any] | None = ()
        if len(queue) > len(admitted):
            ours = breaker.call(None, planner.first, queue, len(admitted))
        if ours is not None:
            others = sum(request.request_id not in admitted for request in ours)
            self.admissions.would(others + held, len(admitted))

    def preempted(
        self, breaker: Breaker, planner: Planner, victim: Any, others: Sequence[Any]
    ) -> None:
        """Compare the preemption of ``victim``, and not of one of the ``others``."""
        ours = breaker.call(None, planner.victims, [*others, victim]) if others else [victim]
        if ours is not None:
            self.preemptions.would(ours[-1] is not victim, 1)
