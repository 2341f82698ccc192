"""Shadow mode: what would have been done, beside what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagellm_lifetime.engines.vllm.breaker import Breaker
from sagellm_lifetime.engines.vllm.planner import Planner


@dataclass(slots=True)
class Shadow:
    """Decisions of the engine, and how many of them would have been others.

    An admission differs when another sequence would have been admitted in its place, or none; a
    preemption, when another would have lost its memory.
    """

    admissions: int = 0
    admissions_differing: int = 0
    preemptions: int = 0
    preemptions_differing: int = 0

    def admitted(
        self, breaker: Breaker, planner: Planner, admitted: set[str], queue: Sequence[Any]
    ) -> None:
        """The engine has admitted some of ``queue`` (all that waited before the step)."""
        self.admissions += len(admitted)
        if len(queue) > len(admitted):
            ours = breaker.call(None, planner.first, queue, len(admitted))
            if ours is not None:
                self.admissions_differing += sum(r.request_id not in admitted for r in ours)

    def held(self, count: int) -> None:
        """So many of the admitted would have had to wait for memory."""
        self.admissions_differing += count

    def preempting(
        self, breaker: Breaker, planner: Planner, victim: Any, others: Sequence[Any]
    ) -> None:
        """The engine is about to preempt ``victim``, and not one of the ``others``."""
        self.preemptions += 1
        if planner.plan.evict and others:
            ours = breaker.call(None, planner.victims, [*others, victim])
            self.preemptions_differing += ours is not None and ours[-1] is not victim
