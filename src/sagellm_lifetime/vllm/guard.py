"""Any advisor, with modes, a circuit breaker, a time budget and counts around it.

Without an advisor, because predictions are off or something went wrong, every question gets the
answer that leaves the engine as it is. Nothing here touches an engine: :class:`Engine` says what is
asked of the side that does.

Events are collected and handed on many at a time where many sequences run, always before a
question: what runs once in a step runs with cold caches, at several times its cost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from time import perf_counter
from typing import Any, Final, Protocol

from sagellm_lifetime.policies.advisor import (
    AdviceError,
    Advisor,
    Permutation,
    check_count,
    check_order,
)
from sagellm_lifetime.policies.events import Admitted, Arrived, Event, Finished, Progressed
from sagellm_lifetime.policies.plan_advisor import PIECE
from sagellm_lifetime.policies.sequence_view import SequenceView
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.vllm.agreement import ShadowAgreement
from sagellm_lifetime.vllm.circuit_breaker import LOG, CircuitBreaker
from sagellm_lifetime.vllm.forecaster import CheckedForecaster
from sagellm_lifetime.vllm.prediction_statistics import PredictionStatistics
from sagellm_lifetime.vllm.settings import Mode
from sagellm_lifetime.vllm.step_time import StepClock

_MANY: Final = 32
"""Running sequences from which on events are handed on several at a time."""
_MOST_EVENTS: Final = 384
"""Events that are collected; a step is one."""
_REPORT_EVERY: Final = 128
"""Steps after which the circuit breaker hears of them though nothing was called."""
_EVERYTHING: Final = sys.maxsize
"""Free blocks that no queue fills: nobody goes first because another does not fit."""


class Engine(Protocol):
    """What a guard asks of the side that touches the engine."""

    def sequences(self) -> tuple[Sequence[Arrived], Sequence[Admitted]]:
        """Return all that is there, as it would have come, and of it what runs."""

    def present(self) -> Container[str]:
        """Return the ids of all that is there; drop what is kept of others."""

    def take_over(self) -> None:
        """Change orders and free blocks from now on."""

    def give_back(self) -> None:
        """Leave free what the engine does by itself; orders stay while a step is under way."""

    def restore(self) -> None:
        """Put queue and running sequences in the engine's order, if they are in another one."""


class GuardedAdvisor:
    """An :class:`~sagellm_lifetime.Advisor` that never raises, hangs or answers nonsense.

    Args:
        make: makes an advisor, told whether its answers are carried out; ``None`` where nothing is
            predicted.
        engine: the side that touches the engine.
        clock: the engine's, seconds.
        breaker: goes round every call.
        statistics: counts predictions; ``None`` for none.
        forecaster: whose answers are counted; ``None`` for nobody's.
        limits_admission: whether the advisor is asked how many may be admitted.
        cannot_act: why ``act`` is impossible here, or nothing.

    Attributes:
        mode: of the present step: ``off``, ``shadow`` (only compare) or ``act``.
        wanted: what the mode is from the next step on.
        acting: whether decisions are the advisor's.
        agreement: decisions compared in shadow mode.
        steps: of the engine so far.
        seconds: that they took.
    """

    def __init__(
        self,
        make: Callable[[bool], Advisor] | None,
        engine: Engine,
        *,
        clock: Callable[[], float],
        breaker: CircuitBreaker,
        statistics: PredictionStatistics | None = None,
        forecaster: CheckedForecaster | None = None,
        limits_admission: bool = False,
        cannot_act: str = "",
    ) -> None:
        self.mode: Mode = "off"
        self.wanted: Mode = "off"
        self.cannot_act = cannot_act
        self.breaker = breaker
        self.statistics = statistics
        self.agreement = ShadowAgreement()
        self.limits_admission = limits_admission
        self.acting = False
        self.steps = 0
        self.seconds = 0.0
        self._make = make
        self._engine = engine
        self._forecaster = forecaster
        self._advisor: Advisor | None = None
        self._time = clock
        self._running = 0
        self._events: list[Event] = []
        """That happened and are not handed on, in their order."""
        self._unheard: list[str] = []
        """Predicted sequences that ended while nobody told the predictor."""
        self._reserve = 0
        self._admit_limit = sys.maxsize
        self._hurried = False
        self._clock, self._engine_clock = StepClock(perf_counter), StepClock(clock)
        self._reported = (0, 0.0)
        """Steps and their seconds that the circuit breaker has heard of."""
        self._missed = False
        """Whether something failed that takes note of what happens: some may have ended unseen."""

    # -- the switch --------------------------------------------------------------------------

    def want(self, mode: Mode) -> None:
        """Be in a mode from the next step on; any thread may ask."""
        if self._make is None:
            return
        if mode == "act" and self.cannot_act:
            LOG.error("lifetime prediction does not act: %s", self.cannot_act)
            return
        self.wanted = mode

    def hurry(self) -> None:
        """Hand all events on in the next step; any thread may ask."""
        self._hurried = True

    @property
    def predictor(self) -> Predictor | None:
        """Return who is asked."""
        return self._forecaster.predictor if self._forecaster is not None else None

    @property
    def lessons(self) -> int:
        """Return the completions learned from."""
        return self._forecaster.lessons if self._forecaster is not None else 0

    # -- a step ------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Return True if it is off, and stays so: then a step is the engine's alone."""
        return self.mode == self.wanted == "off"

    @property
    def is_asked(self) -> bool:
        """Return True if there is an advisor to ask about the queue."""
        return self._advisor is not None and (self.acting or self.limits_admission)

    def begin_step(self, running: int, grown: tuple[SequenceView, ...] = ()) -> None:
        """Account for the last step, change the mode, come back from a fault.

        Args:
            running: sequences that run.
            grown: those whose generated tokens are new evidence to the predictor.
        """
        self._running = running
        if self.is_idle:  # whatever is wanted meanwhile, the mode stays
            self.passed(busy=running > 0)
            return
        seconds = self.passed(busy=running > 0)
        self._admit_limit = sys.maxsize
        # What runs once a step runs cold, at several times its cost: so in nearly all, nothing of
        # this is called.
        if self._advisor is None or self.breaker.state != "closed" or self.mode != self.wanted:
            self._change()
        if self._advisor is not None:
            self._events.append(Progressed(seconds, self._time(), grown))
            if grown or self._hurried or len(self._events) >= _MOST_EVENTS:
                self.catch_up()

    def passed(self, *, busy: bool) -> float | None:
        """Account for the last step.

        Returns:
            Seconds that it took by the engine's clock, or None if there was none.
        """
        breaker = self.breaker
        seconds, by_engine = self._clock.begin(), self._engine_clock.begin()
        if seconds is None or not busy:
            breaker.excuse()
            self._reported = (self.steps, self.seconds)
            return None
        self.steps += 1
        self.seconds += seconds
        if breaker.spent or self.steps - self._reported[0] >= _REPORT_EVERY:
            steps, before = self._reported
            self._reported = (self.steps, self.seconds)
            if not self.is_idle:
                breaker.steps(self.steps - steps, self.seconds - before)
        return by_engine

    def output_taken(self, tokens: int, running: int) -> None:
        """Take note that a step's output was taken, in which so many tokens were computed."""
        self._running = running
        self._clock.taken(tokens)
        self._engine_clock.taken(tokens)

    # -- an advisor ----------------------------------------------------------------------------

    def on_events(self, events: Sequence[Event]) -> None:
        """Collect events; where few sequences run they are handed on at once."""
        self._events += events
        if self._advisor is None or self._running < _MANY:
            self.catch_up()

    def order(self, waiting: Sequence[SequenceView], free_blocks: int) -> Permutation | None:
        """Return the order of admission, in ``act``."""
        self.catch_up()
        advisor = self._advisor
        if advisor is None or not self.acting:
            return None
        return self._call(None, _order, advisor, waiting, free_blocks)

    def victims(self, running: Sequence[SequenceView]) -> Permutation | None:
        """Return the running sequences, the first victim last, in ``act``."""
        self.catch_up()
        advisor = self._advisor
        if advisor is None or not self.acting:
            return None
        return self._call(None, _victims, advisor, running)

    def reserve(self) -> int:
        """Return the blocks to keep free: as many as the advisor said when it heard last."""
        return self._reserve

    def admit_limit(self, running: int, waiting: Sequence[SequenceView], free_blocks: int) -> int:
        """Return how many of the queue may be admitted; in ``shadow`` that is only kept."""
        self.catch_up()
        advisor, everybody = self._advisor, len(waiting)
        if advisor is None:
            return everybody
        count = self._call(None, _limit, advisor, running, waiting, free_blocks)
        if count is None:
            return everybody
        self._admit_limit = count
        return count if self.acting else everybody

    def growth(self) -> int:
        """Return the blocks that newcomers are refused, where an advisor tells (measurements)."""
        if not self.limits_admission:
            return 0
        self.catch_up()
        growth = getattr(self._advisor, "growth", None)
        return self._call(0, growth) if growth is not None and self.acting else 0

    def catch_up(self) -> None:
        """Hand on all that has happened; before any question."""
        self._hurried = False
        events, self._events = self._events, []
        if not events:
            return
        advisor, reserve = self._advisor, None
        if advisor is not None:
            reserve = self.breaker.call(None, _tell, advisor, events)
            if reserve is not None:
                self._reserve = reserve
        self._count(events, heard=reserve is not None)
        self._check_advisor()

    def _count(self, events: Sequence[Event], *, heard: bool) -> None:
        """Count predictions and ends.

        A first prediction counts when the sequence arrives, even if its name is used again among
        these events.
        """
        statistics, forecaster = self.statistics, self._forecaster
        if statistics is None:
            return
        answers = forecaster.take_answers() if forecaster is not None else []
        next_answer = iter((*answers, None))
        answer = next(next_answer)
        for event in events:
            if isinstance(event, Progressed) and not event.grown:
                continue
            if isinstance(event, Finished):
                if not event.is_answer:
                    statistics.beam_step()
                    continue
                name = event.sequence_id
                was_predicted = statistics.ended(name, event.length, event.seconds, event.reason)
                if was_predicted and not heard and self.breaker.state != "stuck":
                    self._unheard.append(name)
                continue
            asked: Sequence[SequenceView] = ()
            if isinstance(event, Arrived):
                asked = (event.sequence,)
            elif isinstance(event, Progressed):
                asked = event.grown
            for view in asked:
                if answer is not None and answer[0] == view.id:
                    statistics.predicted(*answer)
                    answer = next(next_answer)

    # -- shadow mode -----------------------------------------------------------------------------

    def all_admitted(self, count: int) -> None:
        """Count admissions that could have been no others: nobody else waited."""
        if self._advisor is not None:
            self.agreement.admissions.made += count

    @property
    def is_limiting(self) -> bool:
        """Return True if the advisor was asked how many may be admitted in this step."""
        return self._admit_limit != sys.maxsize

    def compares_admission(self, admitted: int) -> bool:
        """Count admissions of a step; return True if :meth:`compare_admission` is to be called."""
        return self._advisor is not None and self.agreement.admissions.is_due(admitted, self.steps)

    def compare_admission(
        self, admitted: Sequence[SequenceView], left: Sequence[SequenceView]
    ) -> None:
        """Compare the admission of some of a queue, the others of which were ``left``."""
        self.catch_up()
        advisor, count = self._advisor, len(admitted)
        if advisor is None:  # there was a fault
            return
        differing = 0
        if left:
            order = self._call(None, _order, advisor, (*admitted, *left), _EVERYTHING)
            if self._advisor is None:
                return
            first = range(count) if order is None else order[:count]
            differing = sum(place >= count for place in first)
        held = max(count - self._admit_limit, 0)
        self.agreement.admissions.record(differing + held, count)

    def compare_preemption(
        self, victim: SequenceView, others: Callable[[], Sequence[SequenceView]]
    ) -> None:
        """Compare the preemption of ``victim``, and not of one of the ``others``."""
        preemptions = self.agreement.preemptions
        if self._advisor is None or not preemptions.is_due(1, self.steps):
            return
        self.catch_up()
        if self._advisor is None:
            return
        running = (*others(), victim)
        order = self._call(None, _victims, self._advisor, running)
        if self._advisor is not None:
            differs = order is not None and order[-1] != len(running) - 1
            preemptions.record(int(differs), 1)

    # -- modes and faults --------------------------------------------------------------------

    def _call(self, fallback: Any, function: Callable[..., Any], *args: Any) -> Any:
        answer = self.breaker.call(fallback, function, *args)
        self._check_advisor()
        return answer

    def _check_advisor(self) -> None:
        """Drop the advisor after a fault: nothing of it is trusted any more."""
        if self._advisor is not None and not self.breaker.allows:
            self._stop()

    def failed(self, error: Exception) -> None:
        """Leave all to the engine for a while: something beside the advisor raised.

        What it has changed is put back but for the order of queue and running sequences, which
        must stay while a step of the engine's is under way.
        """
        self._missed = True
        self.breaker.fault(error)
        self._events = [each for each in self._events if not isinstance(each, Progressed)]
        self._stop()

    def _change(self) -> None:
        """Be in the mode that is wanted, with an advisor where that is possible."""
        self._check_advisor()
        if self._missed:
            self._drop_ended()
        if self.wanted != self.mode:
            self._switch(self.wanted)
        if self._advisor is None and self.mode != "off" and self.breaker.ready():
            self._start()
        if not self.acting:
            self._engine.restore()

    def _drop_ended(self) -> None:
        """Count as ended whoever is not there any more, after something was missed."""
        present = self._engine.present()
        if self.statistics is not None:
            for name in self.statistics.running():
                if name not in present:
                    self.statistics.ended(name, 0, 0.0, "error")
                    self._unheard.append(name)
        self._missed = False

    def _switch(self, mode: Mode) -> None:
        LOG.info("lifetime prediction: %s -> %s", self.mode, mode)
        self.catch_up()
        self.mode = mode
        if mode == "off":
            if self.statistics is not None:
                self._unheard += self.statistics.running()
            self.breaker.call(None, self._forget)  # while it is open, when it is closed again
            self._stop()
        elif self._advisor is not None:
            self._start()  # the order of the queue may be anything by now

    def _start(self) -> None:
        """Begin with a new advisor, which is told of all that is there, in pieces: a queue may be
        tens of thousands long, and a call that takes long counts as a hang, which is for good."""
        if self._make is None:
            return
        self._stop()
        self.catch_up()
        acts = self.mode == "act"
        advisor = self.breaker.call(None, self._made, acts)
        arrived, admitted = self._engine.sequences()
        if advisor is not None:
            for events in (arrived, admitted):
                for start in range(0, len(events), PIECE):
                    piece = events[start : start + PIECE]
                    heard = self.breaker.call(None, _tell, advisor, piece)
                    self._count(piece, heard=heard is not None)
        if advisor is not None and self.breaker.allows:
            self._advisor, self.acting = advisor, acts
            if acts:
                self._engine.take_over()
            self._reserve = self.breaker.call(0, advisor.reserve)
            self._check_advisor()
        self.breaker.excuse()

    def _made(self, acts: bool) -> Advisor:
        assert self._make is not None
        self._forget()
        return self._make(acts)

    def _forget(self) -> None:
        """Tell the predictor of those who ended while nobody did."""
        if self._forecaster is not None:
            self._forecaster.forget(self._unheard)
        self._unheard.clear()

    def _stop(self) -> None:
        self._advisor, self.acting, self._reserve = None, False, 0
        self.agreement.interrupt()
        self._engine.give_back()


def _tell(advisor: Advisor, events: Sequence[Event]) -> int:
    """Hand events on; return the blocks to keep free from now on."""
    advisor.on_events(events)
    return check_count(advisor.reserve(), sys.maxsize, "blocks to keep free")


def _order(advisor: Advisor, waiting: Sequence[SequenceView], free: int) -> Permutation | None:
    return check_order(advisor.order(waiting, free), len(waiting))


def _victims(advisor: Advisor, running: Sequence[SequenceView]) -> Permutation | None:
    order = check_order(advisor.victims(running), len(running))
    if order is not None and len(order) != len(running):
        raise AdviceError(f"an order of {len(order)} victims for {len(running)} running sequences")
    return order


def _limit(advisor: Advisor, running: int, waiting: Sequence[SequenceView], free: int) -> int:
    return check_count(advisor.admit_limit(running, waiting, free), len(waiting), "admissions")
