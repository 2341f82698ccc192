"""The advisor that carries out a plan, and its schedule of forecasts.

To keep a step cheap, a sequence is forecast when it joins the queue, and a running one only when a
decision needs it, at its present age: every ``_REFRESH`` steps for the peak of memory (updated in
between as single sequences come and go), every ``_RECENT`` steps for a victim. The queue is sorted
when a sequence joins it, or ``_REORDER`` steps later. A forecast at the present age is a "look".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.policies.advisor import Permutation
from sagellm_lifetime.policies.events import (
    Admitted,
    Arrived,
    Event,
    Finished,
    Preempted,
    Progressed,
)
from sagellm_lifetime.policies.eviction import VALUES, eviction_order
from sagellm_lifetime.policies.forecast import Forecaster
from sagellm_lifetime.policies.headroom import headroom, worth
from sagellm_lifetime.policies.ordering import SERVICES, places
from sagellm_lifetime.policies.plan import Plan
from sagellm_lifetime.policies.reservation import Peak
from sagellm_lifetime.policies.sequence_records import (
    MeanSizes,
    QueueWait,
    SequenceRecord,
    TypicalSequence,
)
from sagellm_lifetime.policies.sequence_view import SequenceView
from sagellm_lifetime.policies.state import HORIZON, Sequences, SurvivalForecast
from sagellm_lifetime.policies.step_pace import StepPace

_REFRESH: Final = 8
"""Steps between two looks at all running sequences for the peak of memory, which depends on the
sequences that end within the next dozens of steps."""
_RECENT: Final = 8
"""Steps for which a look is recent enough to choose a victim."""
_REORDER: Final = 32
"""Steps after which the queue is sorted without a newcomer, since it has become shorter."""
_DEEP: Final = 512
"""Queue length per step of delay before newcomers are sorted in: sorting thousands takes
milliseconds, and a newcomer behind thousands is not urgent."""
_RETRY: Final = 8
"""Steps after which admission is tried again if nothing fitted and nothing ended meanwhile."""
_ENGINE_RESERVES: Final = ("fcfs", "longest")
"""Orders for which the engine's watermark is kept: arrival order is the engine's own rule, and an
offline batch ends sooner with a full pool and some preemptions (reasoning, 3,000 blocks: 3-7 %)."""
_RESERVE_EVERY: Final = 8
"""Steps between two updates of the reserve from the queue length."""
_LOOK: Final = 64
"""Largest number of waiting sequences considered for admission in one step."""
_LOOKUPS: Final = 1024
"""Largest number of prefix cache lookups per sort of the queue; each costs some microseconds."""
_LEEWAY: Final = 1.5
"""Minimum overtaking allowance, in typical answer durations; without it a short queue would keep
its arrival order."""
PIECE: Final = 256
"""Newcomers without a look from which they are looked at on arrival, and the size of a batch. It
bounds the duration of one call of an advisor that starts with a long queue."""
_CROWD: Final = 32
"""Simultaneous arrivals from which the forecaster is called once for all: a network predicts many
sequences at little more than the cost of one."""
_ONE_TOKEN: Final = SurvivalForecast.exact(np.ones(1)).survival[0]
"""Survival of a step of beam search, which always generates one token."""


class PlanAdvisor:
    """An :class:`Advisor` that computes the orders, victims and limits of a :class:`Plan`.

    Args:
        plan: the rules.
        forecaster: source of the length forecasts; it also gets the ends of sequences.
        total_blocks: in the pool.
        block_size: tokens per block.
        clock: seconds.
        watermark: smallest share of the pool to leave free.
        is_applied: True if the engine carries out the answers; if not, the queue is in the
            engine's order at every call, and is sorted at every call.
    """

    def __init__(
        self,
        plan: Plan,
        forecaster: Forecaster,
        *,
        total_blocks: int,
        block_size: int,
        clock: Callable[[], float],
        watermark: float = 0.0,
        is_applied: bool = True,
    ) -> None:
        self.plan = plan
        self.limits_admission = plan.fit > 0.0
        self._forecaster = forecaster
        self._total = total_blocks
        self._pool = total_blocks * block_size
        """Size of the pool, tokens."""
        self._block_size = block_size
        self._clock = clock
        self._least = round(watermark * total_blocks)
        self._is_applied = is_applied
        self._has_reserve = not (plan.fit or plan.order in _ENGINE_RESERVES)
        """True if the reserve follows the headroom."""
        # A reserve that follows the headroom starts at 0, as nothing has waited yet.
        self._reserve = 0 if plan.fit or self._has_reserve else self._least
        self._reserve_step = 0
        self._queue_wait = QueueWait()
        self._records: dict[str, SequenceRecord] = {}
        self._waiting = 0
        self._beam_steps = 0
        """Steps of beam search among the records."""
        self._peak = Peak(block_size, plan.fit or 0.5, plan.horizon)
        self._unplaced: dict[str, SequenceRecord] = {}
        """Records of the waiting sequences without a place in the queue, by id."""
        self._unseen: list[SequenceRecord] = []
        """Records of the arrivals since the last look at newcomers."""
        self._has_placed = False
        """True if a sequence got a place since the queue was sorted."""
        self._backlog = 0.0
        """Expected memory-time of all waiting sequences, in token-steps."""
        self._step = 0
        self._ordered = -sys.maxsize  # so that the first queue is sorted at once, however long
        self._has_returned = False
        """True if a sequence was preempted since the queue was sorted."""
        self._due = np.inf
        """Place, on the clock, of the first sequence that smaller ones were put before."""
        self._refreshed = -_REFRESH
        self._blocked_until = 0
        self._typical = TypicalSequence()
        self._sizes = MeanSizes()
        self._pace = StepPace()
        self._is_certain = False
        """True if the forecaster knows the lengths."""

    # -- events --------------------------------------------------------------------------------

    def on_events(self, events: Sequence[Event]) -> None:
        """Update the records, and pass the events to the forecaster in the same order."""
        forecaster = self._forecaster
        if len(events) >= _CROWD and all(isinstance(event, Arrived) for event in events):
            forecaster.grown(self._register_all(events))
            events = ()
        for event in events:
            if isinstance(event, Progressed):
                self._progress(event)
            elif isinstance(event, Arrived):
                self._register(event)
                if event.is_predicted:
                    forecaster.arrived(event.sequence.arrival_request())
            elif isinstance(event, Admitted):
                self._admit(event)
            elif isinstance(event, Finished):
                if self._forget(event.sequence_id) and event.is_predicted:
                    forecaster.finished(
                        event.sequence_id, event.length, event.seconds, event.reason
                    )
            else:
                self._preempt(event)
        if len(self._unseen) >= PIECE:
            self._look_ahead()

    def _register(self, event: Arrived) -> None:
        """Record a newcomer; a record with the same id is dropped first."""
        name = event.sequence.id
        self._forget(name)
        record = SequenceRecord(event.sequence, is_predicted=event.is_predicted)
        self._records[name] = self._unplaced[name] = record
        self._unseen.append(record)
        self._beam_steps += not event.is_predicted
        self._waiting += 1

    def _register_all(self, events: Sequence[Event]) -> list[PredictionRequest]:
        """Record many newcomers; return their prediction requests."""
        questions = []
        for event in events:
            assert isinstance(event, Arrived)
            self._register(event)
            if event.is_predicted:
                questions.append(event.sequence.arrival_request())
        return questions

    def _admit(self, event: Admitted) -> None:
        record = self._records[event.sequence_id]
        if record.is_running:
            return
        if not record.survival.size:  # admitted from an empty queue, without a place
            if self.plan.fit:
                self._look([record])
            else:
                record.looked = -_RECENT  # so that the first choice of a victim looks at it
        record.is_running = True
        self._waiting -= 1
        self._unplaced.pop(event.sequence_id, None)  # still there if the queue was not sorted
        record.waited += event.at - record.joined
        self._backlog -= record.area
        if self.plan.fit:
            self._peak.add(record.terms)

    def _preempt(self, event: Preempted) -> None:
        record = self._records[event.sequence_id]
        record.joined = event.at
        self._stop(record)
        self._waiting += 1
        self._unplaced[event.sequence_id] = record
        self._has_returned = True

    def _forget(self, sequence_id: str) -> bool:
        """Drop a sequence; return False if it was unknown."""
        record = self._records.pop(sequence_id, None)
        if record is None:
            return False
        self._unplaced.pop(sequence_id, None)
        self._beam_steps -= not record.is_predicted
        if record.is_running:
            self._stop(record)
        else:
            self._waiting -= 1
            self._backlog -= record.area
        return True

    def _stop(self, record: SequenceRecord) -> None:
        record.is_running = False
        record.area = 0.0
        self._blocked_until = 0
        if self.plan.fit:
            self._peak.remove(record.terms)

    def _progress(self, event: Progressed) -> None:
        self._step += 1
        if event.seconds is not None:
            self._pace.learn(event.seconds)
        if event.grown:
            self._forecaster.grown([view.updated_request() for view in event.grown])
            self._renew([self._records[view.id] for view in event.grown])
        if self._has_reserve and self._step % _RESERVE_EVERY == 0:
            self._update_reserve()

    def _renew(self, records: Sequence[SequenceRecord]) -> None:
        """Have each decision look at sequences anew whose evidence is new."""
        for record in records:
            record.looked = -_RECENT
            # Evidence of the step before a preemption may come after it.
            if not record.is_running:
                self._backlog -= record.area
                record.area, record.age = 0.0, -1
                self._unplaced[record.view.id] = record
        if self.plan.fit:
            running = [record for record in records if record.is_running]
            if running:
                self._look(running)
            self._blocked_until = 0

    def _look_ahead(self) -> None:
        """Look at newcomers before they have a place, in batches that keep each call short."""
        unseen, self._unseen = self._unseen, []
        present = [r for r in unseen if not r.is_running and self._records.get(r.view.id) is r]
        for start in range(0, len(present), PIECE):
            records = present[start : start + PIECE]
            sequences, _ = self._look(records)
            for record, age in zip(records, sequences.generated.tolist(), strict=True):
                record.age = age

    # -- the reserve ---------------------------------------------------------------------------

    def reserve(self) -> int:
        """Return the number of blocks to keep free for the growth of the running sequences."""
        return self._reserve

    def _update_reserve(self) -> None:
        typical, sizes = self._typical, self._sizes
        if not typical.tokens:
            return
        steps, self._reserve_step = self._step - self._reserve_step, self._step
        wait = self._waiting * typical.area / self._pool
        self._queue_wait.learn(steps, wait, typical.tokens)
        full = headroom(sizes.prompt, sizes.answer, self._total, self._block_size)
        self._reserve = round(max(self._least, full) * worth(self._queue_wait.mean))

    def growth(self) -> int:
        """Return the free blocks that admission withholds for the growth of running sequences."""
        if not self.limits_admission:
            return 0
        self._refresh()  # with an empty queue no other call refreshes the looks
        return self.withheld

    @property
    def withheld(self) -> int:
        """Return the same blocks by the last looks."""
        return max(int(self._peak.growth()), 0) if self.limits_admission else 0

    # -- the queue -----------------------------------------------------------------------------

    def order(self, waiting: Sequence[SequenceView], free_blocks: int) -> Permutation | None:
        """Return the order of admission, or None if it has not changed.

        Sequences that fit go before a head that does not.
        """
        order = None
        if self._is_stale(len(waiting)):
            order = self._sorted_order(list(waiting))
        return self._fill(order, waiting, free_blocks)

    def _is_stale(self, waiting: int) -> bool:
        """Return True if a queue of ``waiting`` sequences must be sorted."""
        if not self._is_applied:
            return True
        since, depth = self._step - self._ordered, waiting // _DEEP
        joined = bool(self._unplaced or self._has_placed) and since >= depth
        return (
            joined
            or self._has_returned
            or since >= max(_REORDER, depth)
            or self._clock() >= self._due
        )

    def _sorted_order(self, waiting: Sequence[SequenceView]) -> list[int] | None:
        """Return the order by class, cache, place and arrival; None for arrival order."""
        self._ordered, self._due = self._step, np.inf
        self._has_returned = False
        self._place_new()
        self._has_placed = False
        records = [self._records[view.id] for view in waiting]
        self._set_places(records)
        if self.plan.order == "fcfs":
            return None
        cached = self._cached_ids(waiting)
        keys = [
            (view.priority, record.view.id not in cached, record.place, view.arrival)
            for view, record in zip(waiting, records, strict=True)
        ]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def queue_key(self, sequence_id: str) -> tuple[float, ...] | None:
        """Return what a waiting sequence was sorted by last, None for one without a place.

        It is for a view of the queue from another thread, so it computes nothing.
        """
        record = self._records.get(sequence_id)
        if record is None or (self.plan.order != "fcfs" and not np.isfinite(record.place)):
            return None
        view = record.view
        if self.plan.order == "fcfs":
            return view.priority, True, view.arrival, view.arrival
        is_cached = bool(self.plan.cached) and record.cached >= self.plan.cached * view.tokens
        return view.priority, not is_cached, record.place, view.arrival

    def _cached_ids(self, waiting: Sequence[SequenceView]) -> set[str]:
        """Return the ids at the queue's head whose prompts are mostly in the prefix cache.

        They are cheap only for a short time: a full pool evicts a prefix soon after the last
        running sequence that shares it has ended.
        """
        ids: set[str] = set()
        if self.plan.cached:
            for view in islice(waiting, _LOOKUPS):
                cached = self._records[view.id].cached = view.cached_tokens()
                if cached >= self.plan.cached * view.tokens:
                    ids.add(view.id)
        return ids

    def _place_new(self) -> None:
        """Set the overtaking allowance of the sequences that have joined the queue."""
        self._unseen.clear()
        if not self._unplaced:
            return
        new = list(self._unplaced.values())
        self._unplaced.clear()
        self._has_placed = True
        sequences, forecast = self._look_at_new(new)
        self._blocked_until = 0
        areas = forecast.area(sequences.tokens)
        self._backlog += float(areas.sum())
        service = SERVICES[self.plan.order]
        typical = self._typical
        expected = forecast.expected()
        counts = np.array([record.is_predicted for record in new])
        if counts.any():
            typical.learn(expected[counts], areas[counts], service(sequences, forecast)[counts])
        if self._has_reserve:
            # The prefill of a preempted sequence contains answer tokens, so it does not count.
            arrivals = (sequences.preemptions == 0) & counts
            self._sizes.learn(sequences.recompute[arrivals], expected[arrivals])
        allowed = places(
            replace(sequences, arrival=np.zeros(len(new))),
            forecast,
            service=service,
            patience=self.plan.patience * typical.area / (max(typical.service, 1e-9) * self._pool),
            typical=typical.service,
            min_confidence=self.plan.min_confidence,
        )
        for record, steps, area in zip(new, allowed.tolist(), areas.tolist(), strict=True):
            record.allowed, record.area = steps, area

    def _set_places(self, waiting: Sequence[SequenceRecord]) -> None:
        """Set the places on the clock from allowances in steps, at the present pace.

        The pace of the arrival would not do: the first steps of an engine only prefill, and take
        many times as long as later ones.
        """
        pace = self._pace.seconds
        horizon = self.plan.slack * self._backlog / self._pool + _LEEWAY * self._typical.tokens
        for record in waiting:
            # A preempted sequence rejoins the queue with its remaining length: with its place of
            # arrival the longest one would go before the sequences it was preempted for. The time
            # it has waited is subtracted, or it would wait twice as long as others.
            record.place = record.joined + min(
                record.allowed * pace, horizon * pace - record.waited
            )

    def _fill(
        self, order: list[int] | None, waiting: Sequence[SequenceView], free: int
    ) -> list[int] | None:
        """Put sequences that fit before a head that does not, as long as the head is not due.

        A sequence is due once the clock reaches its place; from then on none goes before it.
        """
        if order is None:
            head, indices = list(islice(waiting, _LOOK)), list(range(min(len(waiting), _LOOK)))
        else:
            indices = order[:_LOOK]
            head = [waiting[i] for i in indices]
        if free < 1 or not head or self._fits(head[0], free):
            return order
        now, urgency = self._clock(), head[0].priority
        fitting, due = [], np.inf
        for place, view in enumerate(head):
            record = self._records[view.id]
            need = -(-(view.tokens - record.cached) // self._block_size)
            if view.priority > urgency:
                break
            if need <= free:
                fitting.append(place)
                free -= need
            elif record.place <= now:
                break
            else:
                due = min(due, record.place)
        if not fitting:
            return order
        self._due = min(self._due, due)  # some of the fitting ones may start in a later step
        rest = set(range(len(head))).difference(fitting)
        filled = [indices[place] for place in (*fitting, *sorted(rest))]
        return filled if order is None else filled + order[_LOOK:]

    def _fits(self, head: SequenceView, free: int) -> bool:
        """Return True if the head of the queue fits into the free blocks."""
        record = self._records[head.id]
        return head.tokens - record.cached <= free * self._block_size

    def admit_limit(self, running: int, waiting: Sequence[SequenceView], free_blocks: int) -> int:
        """Return how many of the queue fit beside the predicted peak of the running sequences."""
        if not self.plan.fit:
            return len(waiting)
        self._place_new()
        if self._step < self._blocked_until:
            return 0
        self._refresh()
        terms = np.zeros_like(self._peak.sums)
        count = 0
        for view in waiting:
            record = self._records[view.id]
            # Whole prompts count, as cached blocks that no sequence holds are among the free ones.
            terms = terms + record.terms
            is_believed = record.confidence >= self.plan.min_confidence
            if count >= _LOOK or (is_believed and not self._peak.fits(terms, free_blocks)):
                break
            count += 1
        if count == 0 and running == 0:
            return 1
        if count == 0:
            self._blocked_until = self._step + _RETRY
        return count

    # -- victims -------------------------------------------------------------------------------

    def victims(self, running: Sequence[SequenceView]) -> Permutation | None:
        """Return the order of the running sequences, the first victim last.

        None if the plan leaves the victim to the engine. Sequences in prefill stay at the end: the
        engine schedules in this order, and at the front they would take the others' token budget.
        """
        plan = self.plan
        if not plan.evict:
            return None
        records = [self._records[view.id] for view in running]
        old = [record for record in records if self._step - record.looked >= _RECENT]
        if len(old) == len(records):
            sequences, forecast = self._look(records)
        else:
            if old:
                self._look(old)
            sequences, forecast = self._sequences(records), self._last_forecast(records)
        order = eviction_order(
            sequences,
            forecast,
            value=VALUES[plan.evict],
            near_completion=plan.near_completion,
            max_preemptions=plan.max_preemptions,
            min_confidence=plan.min_confidence,
        )
        # A stable sort: False before True.
        return sorted(order[::-1].tolist(), key=lambda place: running[place].is_prefilling)

    # -- looks ---------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Look at all running sequences if the last look is old."""
        if self._step - self._refreshed < _REFRESH:
            return
        self._refreshed = self._step
        running = [record for record in self._records.values() if record.is_running]
        if running:
            self._look(running)

    def _look_at_new(self, records: Sequence[SequenceRecord]) -> tuple[Sequences, SurvivalForecast]:
        """Look at joined sequences, except those looked at on arrival at the same age."""
        ages = [record.view.generated for record in records]
        new = [r for r, age in zip(records, ages, strict=True) if r.age != age]
        for record in records:
            record.age = -1
        if len(new) == len(records):
            return self._look(records)
        if new:
            self._look(new)
        return self._sequences(records), self._last_forecast(records)

    def _look(self, records: Sequence[SequenceRecord]) -> tuple[Sequences, SurvivalForecast]:
        """Forecast sequences at their present ages, and keep the answers in their records."""
        sequences = self._sequences(records)
        forecast = self._forecast_at(records, sequences.generated)
        answers = zip(records, forecast.survival, forecast.confidence.tolist(), strict=True)
        for record, survival, confidence in answers:
            record.survival, record.confidence, record.looked = survival, confidence, self._step
        if self.plan.fit:
            self._set_terms(records, sequences, forecast)
        return sequences, forecast

    def _forecast_at(self, records: Sequence[SequenceRecord], ages: np.ndarray) -> SurvivalForecast:
        """Return the forecasts at ``ages``; a step of beam search ends after one token."""
        if not self._beam_steps:
            forecast = self._forecaster.forecast([record.view.id for record in records], ages)
            self._is_certain = forecast.certain
            return forecast
        survival, confidence = np.empty((len(records), len(HORIZON))), np.ones(len(records))
        survival[:] = _ONE_TOKEN
        answers = np.array(
            [i for i, record in enumerate(records) if record.is_predicted], dtype=int
        )
        if len(answers):
            predicted = self._forecaster.forecast(
                [records[i].view.id for i in answers], ages[answers]
            )
            survival[answers], confidence[answers] = predicted.survival, predicted.confidence
        return SurvivalForecast(survival, confidence)

    def _set_terms(
        self, records: Sequence[SequenceRecord], sequences: Sequences, forecast: SurvivalForecast
    ) -> None:
        """Set the memory terms of the records, and of running ones also in the peak."""
        blocks = -(-sequences.tokens // self._block_size)
        all_terms = self._peak.terms(blocks, forecast, self.plan.min_confidence)
        for record, terms in zip(records, all_terms, strict=True):
            if record.is_running:
                self._peak.remove(record.terms)
                self._peak.add(terms)
            record.terms = terms

    def _sequences(self, records: Sequence[SequenceRecord]) -> Sequences:
        views = [record.view for record in records]
        tokens = np.array([view.tokens for view in views])
        for record in records:
            record.cached = record.view.cached_tokens()
        return Sequences(
            tokens=tokens,
            generated=np.array([view.generated for view in views]),
            recompute=tokens - np.array([record.cached for record in records]),
            arrival=np.array([view.arrival for view in views]),
            urgency=np.array([view.priority for view in views]),
            preemptions=np.array([view.preemptions for view in views]),
            pinned=np.zeros(len(views), dtype=bool),
        )

    def _last_forecast(self, records: Sequence[SequenceRecord]) -> SurvivalForecast:
        """Return the forecasts of the last looks."""
        return SurvivalForecast(
            np.stack([record.survival for record in records]),
            np.array([record.confidence for record in records]),
            self._is_certain,
        )
