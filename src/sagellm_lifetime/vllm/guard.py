"""A guard around any advisor, with modes, a circuit breaker, a time budget and counts.

Without an advisor, because prediction is off or after a fault, every method returns the answer that
leaves the engine unchanged. This module does not touch an engine; :class:`Engine` is the interface
of the side that does.

If many sequences run, events are collected and passed on in batches, and always before a decision:
code that runs once per step runs with cold caches, at several times its cost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np

from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.policies.advisor import (
    AdviceError,
    Advisor,
    Permutation,
    check_count,
    check_order,
)
from sagellm_lifetime.policies.events import Admitted, Arrived, Event, Finished, Progressed
from sagellm_lifetime.policies.plan_advisor import PIECE, PlanAdvisor
from sagellm_lifetime.policies.sequence_view import SequenceView
from sagellm_lifetime.policies.state import SurvivalForecast
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.vllm.agreement import ShadowAgreement
from sagellm_lifetime.vllm.circuit_breaker import LOG, CircuitBreaker
from sagellm_lifetime.vllm.decision_counts import DecisionCounts
from sagellm_lifetime.vllm.forecaster import CheckedForecaster
from sagellm_lifetime.vllm.prediction_statistics import PredictionStatistics
from sagellm_lifetime.vllm.settings import Mode
from sagellm_lifetime.vllm.step_time import StepClock

_MANY: Final = 32
"""Number of running sequences from which events are passed on in batches."""
_MOST_EVENTS: Final = 384
"""Largest batch of events; a step counts as one."""
_REPORT_EVERY: Final = 128
"""Steps after which they are reported to the circuit breaker even without a call."""
_WITHHELD_EVERY: Final = 8
"""Steps between two calls for the blocks that a limit on admissions withholds."""
_EVERYTHING: Final = sys.maxsize
"""A number of free blocks into which every queue fits, so that no smaller sequence goes first."""


class Engine(Protocol):
    """The interface of the side that touches the engine."""

    def sequences(self) -> tuple[Sequence[Arrived], Sequence[Admitted]]:
        """Return arrivals of all present sequences, and admissions of the running ones."""

    def present(self) -> Container[str]:
        """Return the ids of all present sequences; drop the data of others."""

    def take_over(self) -> None:
        """Begin to change orders and the watermark."""

    def give_back(self) -> None:
        """Restore the engine's watermark; orders stay, as a step may be in progress."""

    def restore(self) -> None:
        """Put queue and running sequences in the engine's order if they are in another."""


class GuardedAdvisor:
    """An :class:`~sagellm_lifetime.Advisor` that never raises, hangs or gives an invalid answer.

    Args:
        make: makes an advisor from a flag, True if its answers are carried out; ``None`` without
            prediction.
        engine: the side that touches the engine.
        clock: the engine's, seconds.
        breaker: protects every call of the advisor.
        statistics: counts predictions; ``None`` for none.
        forecaster: source of the counted predictions; ``None`` for none.
        limits_admission: True if the advisor limits admissions.
        cannot_act: why ``act`` is impossible here; empty if it is possible.

    Attributes:
        mode: of the present step: ``off``, ``shadow`` (only compare) or ``act``.
        next_mode: mode from the next step on.
        acting: True if the advisor's decisions are carried out.
        agreement: decisions compared in shadow mode.
        counts: what acting changes.
        outcomes: called with all events at once, in the engine's thread; ``None`` for nobody.
        steps: number of steps of the engine so far.
        seconds: total duration of these steps.
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
        self.next_mode: Mode = "off"
        self.cannot_act = cannot_act
        self.breaker = breaker
        self.statistics = statistics
        self.agreement = ShadowAgreement()
        self.counts = DecisionCounts()
        self.outcomes: Callable[[Sequence[Event]], None] | None = None
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
        """Events that are not passed on yet, in their order."""
        self._unreported: list[str] = []
        """Ids of predicted sequences whose end was not reported to the predictor."""
        self._reserve = 0
        self._withheld = 0
        """Blocks that the advisor's limit on admissions withheld when it was last asked."""
        self._admit_limit = sys.maxsize
        self._flush_requested = False
        self._clock, self._engine_clock = StepClock(perf_counter), StepClock(clock)
        self._reported = (0, 0.0)
        """Steps, and their seconds, that are reported to the circuit breaker."""
        self._has_missed_events = False
        """True after a failed event handler, since ends of sequences may be missing."""

    # -- the switch --------------------------------------------------------------------------

    def set_mode(self, mode: Mode) -> None:
        """Set the mode from the next step on; any thread may call it."""
        if self._make is None:
            return
        if mode == "act" and self.cannot_act:
            LOG.error("lifetime prediction does not act: %s", self.cannot_act)
            return
        self.next_mode = mode

    def request_flush(self) -> None:
        """Pass on all events in the next step; any thread may call it."""
        self._flush_requested = True

    @property
    def predictor(self) -> Predictor | None:
        """Return the predictor, or None without prediction."""
        return self._forecaster.predictor if self._forecaster is not None else None

    @property
    def lessons(self) -> int:
        """Return the number of completions behind the predictor's state."""
        return self._forecaster.lessons if self._forecaster is not None else 0

    def queue_key(self, sequence_id: str) -> tuple[float, ...] | None:
        """Return what the advisor sorted a waiting sequence by last; None if it did not.

        Any thread may call it.
        """
        advisor = self._advisor
        return advisor.queue_key(sequence_id) if isinstance(advisor, PlanAdvisor) else None

    # -- a step ------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Return True if the mode is ``off`` and stays so, and a step needs no work."""
        return self.mode == self.next_mode == "off"

    @property
    def is_consulted(self) -> bool:
        """Return True if the advisor must be called for the queue."""
        return self._advisor is not None and (self.acting or self.limits_admission)

    def begin_step(self, running: int, grown: tuple[SequenceView, ...] = ()) -> None:
        """Account for the last step, change the mode, and resume after a fault.

        Args:
            running: number of running sequences.
            grown: those whose generated tokens are new evidence to the predictor.
        """
        self._running = running
        if self.is_idle:  # another thread may change ``next_mode``, so it is read once
            self.account_step(busy=running > 0)
            return
        seconds = self.account_step(busy=running > 0)
        self.counts.step(seconds)
        self._admit_limit = sys.maxsize
        # Code that runs once per step runs with cold caches, so nearly all steps skip this call.
        if self._advisor is None or self.breaker.state != "closed" or self.mode != self.next_mode:
            self._change()
        if self._advisor is not None:
            self._events.append(Progressed(seconds, self._time(), grown))
            if grown or self._flush_requested or len(self._events) >= _MOST_EVENTS:
                self.flush()

    def account_step(self, *, busy: bool) -> float | None:
        """Account for the last step.

        Returns:
            Its duration in seconds by the engine's clock, or None if there was none.
        """
        breaker = self.breaker
        seconds, by_engine = self._clock.begin(), self._engine_clock.begin()
        if seconds is None or not busy:
            breaker.exclude_step()
            self._reported = (self.steps, self.seconds)
            return None
        self.steps += 1
        self.seconds += seconds
        if breaker.spent or self.steps - self._reported[0] >= _REPORT_EVERY:
            steps, before = self._reported
            self._reported = (self.steps, self.seconds)
            if not self.is_idle:
                breaker.record_steps(self.steps - steps, self.seconds - before)
        return by_engine

    def output_processed(self, tokens: int, running: int) -> None:
        """Record that the output of a step was processed.

        Args:
            tokens: computed in the step.
            running: number of running sequences.
        """
        self._running = running
        self._clock.output_processed(tokens)
        self._engine_clock.output_processed(tokens)

    # -- an advisor ----------------------------------------------------------------------------

    def on_events(self, events: Sequence[Event]) -> None:
        """Collect events; pass them on at once if few sequences run."""
        self.counts.on_events(events)
        if self.outcomes is not None:
            self.outcomes(events)
        self._events += events
        if self._advisor is None or self._running < _MANY:
            self.flush()

    def order(self, waiting: Sequence[SequenceView], free_blocks: int) -> Permutation | None:
        """Return the order of admission in ``act``, else None."""
        self.flush()
        advisor = self._advisor
        if advisor is None or not self.acting:
            return None
        return self._call(None, _checked_order, advisor, waiting, free_blocks)

    def victims(self, running: Sequence[SequenceView]) -> Permutation | None:
        """Return the order of the running sequences in ``act``, first victim last, else None."""
        self.flush()
        advisor = self._advisor
        if advisor is None or not self.acting:
            return None
        return self._call(None, _checked_victims, advisor, running)

    def reserve(self) -> int:
        """Return the blocks to keep free, from the advisor's last answer."""
        return self._reserve

    def admit_limit(self, running: int, waiting: Sequence[SequenceView], free_blocks: int) -> int:
        """Return how many of the queue may be admitted; ``shadow`` only keeps it to compare.

        Where nothing runs, an advisor's 0 counts as 1.
        """
        self.flush()
        advisor, queue_length = self._advisor, len(waiting)
        if advisor is None:
            return queue_length
        count = self._call(None, _checked_limit, advisor, running, waiting, free_blocks)
        if count is None:
            return queue_length
        if not running:  # nothing would ever change, so the engine would wait for ever
            count = max(count, min(queue_length, 1))
        self._admit_limit = count
        return count if self.acting else queue_length

    def growth(self) -> int:
        """Return the blocks that admission withholds, for measurements; 0 if unknown."""
        if not self.limits_admission:
            return 0
        self.flush()
        return self._call(0, _growth, self._advisor) if self.acting else 0

    def hold_back(self, stock: int) -> None:
        """Count the blocks held back in this step, in ``act``, or that ``act`` would hold back.

        Args:
            stock: blocks of the engine's own watermark.
        """
        advisor = self._advisor
        if advisor is None:
            return
        if self.limits_admission and self.steps % _WITHHELD_EVERY == 0:
            self._withheld = self._call(0, _withheld, advisor)
        held = max(self._reserve - stock, 0)
        self.counts.held_blocks = held + (self._withheld if self.limits_admission else 0)

    @property
    def forecast_beside(self) -> Callable[[Sequence[str], np.ndarray], SurvivalForecast] | None:
        """Return the function that forecasts for another thread; None without prediction."""
        return self._forecaster.forecast if self._forecaster is not None else None

    def blocks_withheld(self, watermark: int) -> int:
        """Return the blocks that admission leaves free now, for another thread.

        Args:
            watermark: the engine's present one.
        """
        return max(watermark, self._withheld if self.acting else 0)

    def flush(self) -> None:
        """Pass on all collected events; called before every decision."""
        self._flush_requested = False
        events, self._events = self._events, []
        if not events:
            return
        advisor, reserve = self._advisor, None
        if advisor is not None:
            reserve = self.breaker.call(None, _pass_on, advisor, events)
            if reserve is not None:
                self._reserve = reserve
        self._count(events, was_received=reserve is not None)
        self._check_advisor()

    def _count(self, events: Sequence[Event], *, was_received: bool) -> None:
        """Count predictions and ends; ``was_received`` is True if the advisor got the events.

        A first prediction counts when the sequence arrives, even if another sequence with the same
        id follows among these events.
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
                if not event.is_predicted:
                    statistics.beam_step()
                    continue
                name = event.sequence_id
                was_predicted = statistics.ended(name, event.length, event.seconds, event.reason)
                if was_predicted and not was_received and self.breaker.state != "stuck":
                    self._unreported.append(name)
                continue
            views: Sequence[SequenceView] = ()
            if isinstance(event, Arrived):
                views = (event.sequence,)
            elif isinstance(event, Progressed):
                views = event.grown
            for view in views:
                if answer is not None and answer[0] == view.id:
                    statistics.predicted(*answer)
                    answer = next(next_answer)

    # -- shadow mode -----------------------------------------------------------------------------

    def all_admitted(self, count: int) -> None:
        """Count admissions that cannot differ, as no other sequence waited."""
        if self._advisor is not None:
            self.agreement.admissions.made += count

    @property
    def is_limiting(self) -> bool:
        """Return True if the advisor has limited the admissions of this step."""
        return self._admit_limit != sys.maxsize

    def compares_admission(self, admitted: int) -> bool:
        """Count admissions of a step; return True if :meth:`compare_admission` must be called."""
        return self._advisor is not None and self.agreement.admissions.is_due(admitted, self.steps)

    def compare_admission(
        self, admitted: Sequence[SequenceView], left: Sequence[SequenceView]
    ) -> None:
        """Compare the admissions of a step with the advisor's order.

        Args:
            admitted: sequences that were admitted.
            left: sequences that still wait.
        """
        self.flush()
        advisor, count = self._advisor, len(admitted)
        if advisor is None:  # there was a fault
            return
        differing = 0
        if left:
            order = self._call(None, _checked_order, advisor, (*admitted, *left), _EVERYTHING)
            if self._advisor is None:
                return
            first = range(count) if order is None else order[:count]
            differing = sum(place >= count for place in first)
        limited = max(count - self._admit_limit, 0)
        self.agreement.admissions.record(differing + limited, count)

    def compare_preemption(
        self, victim: SequenceView, others: Callable[[], Sequence[SequenceView]]
    ) -> None:
        """Compare the preemption of ``victim`` with the advisor's choice.

        Args:
            victim: preempted sequence.
            others: returns the other running sequences.
        """
        preemptions = self.agreement.preemptions
        if self._advisor is None or not preemptions.is_due(1, self.steps):
            return
        self.flush()
        if self._advisor is None:
            return
        running = (*others(), victim)
        order = self._call(None, _checked_victims, self._advisor, running)
        if self._advisor is not None:
            differs = order is not None and order[-1] != len(running) - 1
            preemptions.record(int(differs), 1)

    # -- modes and faults --------------------------------------------------------------------

    def _call(self, fallback: Any, function: Callable[..., Any], *args: Any) -> Any:
        answer = self.breaker.call(fallback, function, *args)
        self._check_advisor()
        return answer

    def _check_advisor(self) -> None:
        """Drop the advisor after a fault, as its state may be wrong."""
        if self._advisor is not None and not self.breaker.allows:
            self._stop()

    def failed(self, error: Exception) -> None:
        """Open the circuit breaker after an error outside the advisor.

        The watermark is restored; the order of queue and running sequences stays, as a step of the
        engine may be in progress.
        """
        self._has_missed_events = True
        self.breaker.fault(error)
        self._events = [event for event in self._events if not isinstance(event, Progressed)]
        self._stop()

    def _change(self) -> None:
        """Change to the wanted mode, and start an advisor if that is possible."""
        self._check_advisor()
        if self._has_missed_events:
            self._drop_ended()
        if self.next_mode != self.mode:
            self._switch(self.next_mode)
        if self._advisor is None and self.mode != "off" and self.breaker.ready():
            self._start()
        if not self.acting:
            self._engine.restore()

    def _drop_ended(self) -> None:
        """Count absent sequences as ended, after events were missed."""
        present = self._engine.present()
        if self.statistics is not None:
            for name in self.statistics.running():
                if name not in present:
                    self.statistics.ended(name, 0, 0.0, "error")
                    self._unreported.append(name)
        self._has_missed_events = False

    def _switch(self, mode: Mode) -> None:
        LOG.info("lifetime prediction: %s -> %s", self.mode, mode)
        self.flush()
        self.mode = mode
        if mode == "off":
            if self.statistics is not None:
                self._unreported += self.statistics.running()
            self.breaker.call(None, self._forget)  # if it is open, at the next start instead
            self._stop()
        elif self._advisor is not None:
            self._start()  # a new advisor, as the queue may be in any order

    def _start(self) -> None:
        """Start a new advisor with the present sequences.

        They are passed in batches: a queue may have tens of thousands, and a long call would count
        as a hang, which disables prediction until a restart.
        """
        if self._make is None:
            return
        self._stop()
        self.flush()
        acts = self.mode == "act"
        advisor = self.breaker.call(None, self._make_advisor, acts)
        arrived, admitted = self._engine.sequences()
        if advisor is not None:
            for events in (arrived, admitted):
                for start in range(0, len(events), PIECE):
                    piece = events[start : start + PIECE]
                    reserve = self.breaker.call(None, _pass_on, advisor, piece)
                    self._count(piece, was_received=reserve is not None)
        if advisor is not None and self.breaker.allows:
            self._advisor, self.acting = advisor, acts
            running = [event.sequence_id for event in admitted]
            self.counts.restart(arrived, running, acts=acts)
            if acts:
                self._engine.take_over()
            self._reserve = self.breaker.call(0, _reserve, advisor)
            self._check_advisor()
        self.breaker.exclude_step()

    def _make_advisor(self, acts: bool) -> Advisor:
        assert self._make is not None
        self._forget()
        return self._make(acts)

    def _forget(self) -> None:
        """Drop sequences from the predictor whose end was not reported."""
        if self._forecaster is not None:
            self._forecaster.forget(self._unreported)
        self._unreported.clear()

    def _stop(self) -> None:
        self._advisor, self.acting, self._reserve, self._withheld = None, False, 0, 0
        self.counts.stop()
        self.agreement.interrupt()
        self._engine.give_back()


def _pass_on(advisor: Advisor, events: Sequence[Event]) -> int:
    """Pass events on; return the blocks to keep free from now on."""
    advisor.on_events(tuple(events))
    return _reserve(advisor)


# An advisor gets tuples or a read-only queue, and what it gets is counted before the call: an
# answer that is checked against a list that the advisor has shortened would lose a sequence.


def _reserve(advisor: Advisor) -> int:
    return check_count(advisor.reserve(), sys.maxsize, "blocks to keep free")


def _growth(advisor: Advisor) -> int:
    growth = getattr(advisor, "growth", None)  # not every advisor has it
    return 0 if growth is None else check_count(growth(), sys.maxsize, "blocks withheld")


def _withheld(advisor: Advisor) -> int:
    return check_count(getattr(advisor, "withheld", 0), sys.maxsize, "blocks withheld")


def _checked_order(
    advisor: Advisor, waiting: Sequence[SequenceView], free: int
) -> list[int] | None:
    count = len(waiting)
    return check_order(advisor.order(waiting, free), count)


def _checked_victims(advisor: Advisor, running: Sequence[SequenceView]) -> list[int] | None:
    count = len(running)
    order = check_order(advisor.victims(tuple(running)), count)
    if order is not None and len(order) != count:
        raise AdviceError(
            f"an order of {counted(len(order), 'victim')} for {counted(count, 'running sequence')}"
        )
    return order


def _checked_limit(
    advisor: Advisor, running: int, waiting: Sequence[SequenceView], free: int
) -> int:
    count = len(waiting)
    return check_count(advisor.admit_limit(running, waiting, free), count, "admissions")
