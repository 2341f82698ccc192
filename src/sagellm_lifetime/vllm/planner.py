"""A controller that is asked and never acts: its answers are carried out by who asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nsmallest
from typing import Any

from sagellm_lifetime.vllm.beam_search import is_beam_step
from sagellm_lifetime.vllm.circuit_breaker import NonsenseError
from sagellm_lifetime.vllm.controller import _RECENT, LifetimeController
from sagellm_lifetime.vllm.events import CAME, OVER, RUNS, Event


class Planner(LifetimeController):
    """Takes copies, and checks that what comes back is the same in another order."""

    def note(self, events: Sequence[Event]) -> None:
        """All of this has happened; the predictor hears of it from somebody else."""
        for kind, of, at, _ in events:
            if kind is CAME:
                self._meet(of)
            elif kind is OVER:
                self.part(of)
            elif kind is RUNS:
                self.admitted(of, at)
            else:
                self.preempted(of, at)

    def _meet(self, request: Any) -> None:
        super()._meet(request)
        self._known[request.request_id].is_sequence = not is_beam_step(request)

    def adopt(self, waiting: Iterable[Any], running: Iterable[Any]) -> None:
        """Get to know sequences that came before; they have been predicted already."""
        for request in (*waiting, *running):
            self._meet(request)
        self._unplaced = {each.request_id: self._known[each.request_id] for each in waiting}
        for request in running:
            self.admitted(request.request_id, request.arrival_time)  # since when, nobody knows

    def admitted(self, request_id: str, at: float | None = None) -> None:
        """It runs, and perhaps it never had a place: nobody else was waiting."""
        known = self._known[request_id]
        if not known.survival.size:
            if self.plan.fit:
                self._look([known])
            else:
                known.looked = -_RECENT  # when somebody must be preempted
        super().admitted(request_id, at)

    def ordered(self, waiting: Sequence[Any]) -> list[Any]:
        """The queue in our order."""
        order = list(waiting)
        self.line_up(order)
        return _permuted(order, waiting)

    def filled(self, head: Sequence[Any], free: int) -> list[Any]:
        """The head of the queue, those that fit first where the first does not."""
        queue = _Queue(head)
        self.fill(queue, free)
        return queue if queue == head else _permuted(queue, head)

    def first(self, waiting: Sequence[Any], count: int) -> list[Any]:
        """Whom we would admit first, of a queue that is in another order."""
        self.line_up([])
        if self.plan.order == "fcfs":
            return list(waiting[:count])
        self._settle(waiting)
        return nsmallest(count, waiting, key=self._key(waiting))

    def victims(self, running: Sequence[Any]) -> list[Any]:
        """The running sequences, the first victim last."""
        return _permuted(self.victims_last(list(running)), running)

    def may_admit(self, running: int, waiting: Any, free: int) -> int:
        """How many of the queue may be admitted."""
        self.line_up([])
        room = self.room(running, waiting, free)
        if not 0 <= room <= len(waiting):
            raise NonsenseError(f"room for {room} of {len(waiting)}")
        return room


class _Queue(list[Any]):
    """As much of vLLM's queue as a controller uses."""

    def prepend_request(self, request: Any) -> None:
        """Put it first."""
        self.insert(0, request)


def _permuted(order: list[Any], of: Sequence[Any]) -> list[Any]:
    if len(order) != len(of) or set(map(id, order)) != set(map(id, of)):
        raise NonsenseError(f"an order of {len(order)} for {len(of)} sequences, or of others")
    return order
