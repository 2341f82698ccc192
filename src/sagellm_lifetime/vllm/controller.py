"""Between a scheduler and the policies: what is known of each sequence, and when to ask anew.

Knows nothing of vLLM's classes beyond the attributes of a request. So that a step costs little,
outlooks are asked for when a sequence joins the queue, and of the running ones only where a
decision needs them, at their present ages: every ``_REFRESH`` steps for the peak of memory (kept up
to date in between by adding and removing single sequences), every ``_RECENT`` steps for a victim.
The queue is put in order when somebody joins it, or ``_REORDER`` steps later.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.policies.eviction import VALUES, eviction_order
from sagellm_lifetime.policies.forecast import Forecaster
from sagellm_lifetime.policies.headroom import headroom, worth
from sagellm_lifetime.policies.ordering import SERVICES, places
from sagellm_lifetime.policies.plan import Plan
from sagellm_lifetime.policies.reservation import Peak
from sagellm_lifetime.policies.state import Outlook, Sequences
from sagellm_lifetime.vllm.sequence_records import Known, Queue, Sizes, Typical
from sagellm_lifetime.vllm.step_time import Pace

_REFRESH: Final = 8
"""Steps between two looks at all running sequences for the peak of memory: what will end in the
next dozens of steps decides, and older looks miss it."""
_RECENT: Final = 8
"""Steps for which an outlook is good enough to choose a victim by."""
_REORDER: Final = 32
"""Steps after which the queue is put in order though nobody has joined it: it is shorter now."""
_DEEP: Final = 512
"""Waiting sequences for so many of which a newcomer waits one step for its place: to sort thousands
takes milliseconds, and who joins them has time."""
_RETRY: Final = 8
"""Steps after which a sequence that did not fit is looked at again, if nothing ended meanwhile."""
_ENGINES_ROOM: Final = ("fcfs", "longest")
"""Orders in which the headroom is not ours: that of arrival is the engine's altogether, and a batch
is done sooner with a full pool and some preemptions (reasoning, 3,000 blocks: 3-7 %)."""
LOOK_ROUND: Final = 8
"""Steps between two looks at how many wait, for the headroom."""
_LOOK: Final = 64
"""Waiting sequences looked at in one step, at most."""
_LOOKUPS: Final = 1024
"""Waiting sequences that the prefix cache is asked about when the queue is put in order, at most:
each costs some microseconds."""
_LEEWAY: Final = 1.5
"""Typical answers for whose time a sequence may be overtaken however short the queue is: without
it the first of a short queue would go first, whatever came with it."""


class LifetimeController:
    """Carries out a plan.

    Args:
        plan: what to do.
        forecaster: whom to ask.
        describe: a request of the engine as a :class:`PredictionRequest`.
        total_blocks: in the pool.
        block_size: tokens per block.
        clock: seconds.
        cached: tokens of a request that need no computing: of a waiting one those whose KV the
            prefix cache has, of a running one those whose KV others hold too.
        leave_free: told how many blocks admission is to leave free; not where the plan
            makes room by itself.
        watermark: share of the pool that is to be, at least.
    """

    def __init__(
        self,
        plan: Plan,
        forecaster: Forecaster,
        *,
        describe: Callable[[Any], PredictionRequest],
        total_blocks: int,
        block_size: int,
        clock: Callable[[], float],
        cached: Callable[[Any], int] = lambda request: 0,
        leave_free: Callable[[int], None] = lambda blocks: None,
        watermark: float = 0.0,
    ) -> None:
        self.plan = plan
        self.decides = True  # a live engine's has modes in which nobody need ask about the queue
        self.fits = plan.fit > 0.0
        """Whether it limits how many are admitted."""
        self._forecaster = forecaster
        self._describe = describe
        self._total = total_blocks
        self._pool = total_blocks * block_size
        """Tokens."""
        self._block_size = block_size
        self._clock = clock
        self._cached = cached
        self._leave_free = leave_free
        self._least = round(watermark * total_blocks)
        self._rooms = not (plan.fit or plan.order in _ENGINES_ROOM)
        """Whether the headroom is ours."""
        self._queue = Queue()
        self._room = 0
        """Blocks that are left free; none before anybody has had to have a place in the queue."""
        if not plan.fit and not self._rooms:
            self._leave_free(self._least)
        self._known: dict[str, Known] = {}
        self._peak = Peak(block_size, plan.fit or 0.5, plan.horizon)
        self._unplaced: dict[str, Known] = {}
        """Those that wait for a place in the line, by id."""
        self._backlog = 0.0
        """Expected memory-time of all that wait, in token-steps."""
        self._step = 0
        self._ordered = -sys.maxsize  # however many come first, they are put in order at once
        self._back = False
        """Whether some have lost their memory since the queue was in order."""
        self._due = np.inf
        """When the first of those is due that others were put before, since they fit."""
        self._refreshed = -_REFRESH
        self._blocked_until = 0
        self._typical = Typical()
        self._sizes = Sizes()
        self._last_step_at: float | None = None
        self._pace = Pace()
        self._seconds_per_step = self._pace.seconds

    # -- what happens ------------------------------------------------------------------------

    def arrived(self, request: Any) -> None:
        """A request was queued."""
        self._meet(request)
        self._forecaster.arrived(self._describe(request))

    def _meet(self, request: Any) -> None:
        known = self._known[request.request_id] = Known(request)
        self._unplaced[request.request_id] = known

    def admitted(self, request_id: str, at: float | None = None) -> None:
        """It runs (again), since a moment that is now if nothing is said."""
        known = self._known[request_id]
        if not known.running:
            known.running = True
            self._unplaced.pop(request_id, None)  # nobody put the queue in order meanwhile
            known.waited += (self._clock() if at is None else at) - known.joined
            self._backlog -= known.area
            if self.plan.fit:
                self._peak.add(known.terms)

    def preempted(self, request: Any, at: float | None = None) -> None:
        """It lost its memory and waits again, since a moment that is now if nothing is said."""
        known = self._known[request.request_id]
        known.joined = self._clock() if at is None else at
        self._leave(known)
        self._unplaced[request.request_id] = known
        self._back = True

    def finished(self, request: Any, reason: str) -> None:
        """It is over."""
        if self.part(request):
            self._forecaster.finished(
                request.request_id,
                request.num_output_tokens,
                max(self._clock() - request.arrival_time, 0.0),
                reason,
            )

    def part(self, request: Any) -> bool:
        """Forget it; whether it was known."""
        known = self._known.pop(request.request_id, None)
        if known is None:
            return False
        self._unplaced.pop(request.request_id, None)
        if known.running:
            self._leave(known)
        else:
            self._backlog -= known.area
        return True

    def _leave(self, known: Known) -> None:
        known.running = False
        known.area = 0.0
        self._blocked_until = 0
        if self.plan.fit:
            self._peak.remove(known.terms)

    # -- what to do --------------------------------------------------------------------------

    def tick(self, *, busy: bool, now: float | None = None) -> None:
        """A step begins, or has begun at a moment."""
        now = self._clock() if now is None else now
        last, self._last_step_at = self._last_step_at, now
        self.stepped(now - last if busy and last is not None else None)

    def stepped(self, seconds: float | None) -> None:
        """A step begins; the one before took so many seconds, or there was none."""
        self._step += 1
        if seconds is not None:
            self._seconds_per_step = self._pace.learn(seconds)

    @property
    def looks_round(self) -> bool:
        """Whether it is time to :meth:`make_room`."""
        return self._step % LOOK_ROUND == 0

    def make_room(self, waiting: int) -> None:
        """Leave blocks free for what runs, as many as the wait is worth; every few steps."""
        typical, sizes = self._typical, self._sizes
        if not self._rooms or not typical.tokens:
            return
        self._queue.seen(LOOK_ROUND, waiting * typical.area / self._pool, typical.tokens)
        full = headroom(sizes.prompt, sizes.answer, self._total, self._block_size)
        room = round(max(self._least, full) * worth(self._queue.wait))
        if room != self._room:
            self._room = room
            self._leave_free(room)

    def stale(self, waiting: int) -> bool:
        """Whether a queue of so many is to be put in order."""
        since, depth = self._step - self._ordered, waiting // _DEEP
        joined = bool(self._unplaced) and since >= depth
        return joined or self._back or since >= max(_REORDER, depth) or self._clock() >= self._due

    def line_up(self, waiting: Any) -> bool:
        """Put the queue in order, where that may be another by now; whether it matters at all."""
        if self.stale(len(waiting)):
            self._line_up(waiting)
        return True

    def _line_up(self, waiting: Any) -> None:
        self._ordered, self._due, self._back = self._step, np.inf, False
        if self._unplaced:
            self._place(list(self._unplaced.values()))
            self._unplaced.clear()
        self._settle(waiting)
        if self.plan.order != "fcfs":
            order = sorted(waiting, key=self._key(waiting))
            waiting.clear()
            waiting.extend(order)

    def _key(self, waiting: Any) -> Callable[[Any], tuple[float, ...]]:
        """What the queue is sorted by."""
        known, cached = self._known, self._in_cache(waiting)

        def key(request: Any) -> tuple[float, ...]:
            name = request.request_id
            return request.priority, name not in cached, known[name].place, request.arrival_time

        return key

    def _in_cache(self, waiting: Any) -> set[str]:
        """Of the first of the queue those whose prompts are there, by and large.

        They cost little, and only now: a full pool forgets a prefix soon after the last that runs
        with it.
        """
        found: set[str] = set()
        if self.plan.cached:
            for request in islice(waiting, _LOOKUPS):
                name = request.request_id
                there = self._known[name].cached = self._cached(request)
                if there >= self.plan.cached * request.num_tokens:
                    found.add(name)
        return found

    def _place(self, new: list[Known]) -> None:
        sequences, outlook = self._look(new)
        self._blocked_until = 0
        areas = outlook.area(sequences.tokens)
        self._backlog += float(areas.sum())
        service = SERVICES[self.plan.order]
        typical = self._typical
        expected = outlook.expected()
        counts = np.array([each.is_sequence for each in new])
        if counts.any():
            typical.learn(expected[counts], areas[counts], service(sequences, outlook)[counts])
        if self._rooms:
            came = (sequences.preemptions == 0) & counts  # of others the prompt is an answer begun
            self._sizes.learn(sequences.recompute[came], expected[came])
        allowed = places(
            replace(sequences, arrival=np.zeros(len(new))),
            outlook,
            service=service,
            patience=self.plan.patience * typical.area / (max(typical.service, 1e-9) * self._pool),
            typical=typical.service,
            min_confidence=self.plan.min_confidence,
        )
        for each, steps, area in zip(new, allowed.tolist(), areas.tolist(), strict=True):
            each.allowed, each.area = steps, area

    def _settle(self, waiting: Any) -> None:
        """Places on the clock, at the present pace: the first steps of an engine, which only
        prefill, take many times as long as those that the sequences will wait for."""
        pace = self._seconds_per_step
        horizon = self.plan.slack * self._backlog / self._pool + _LEEWAY * self._typical.tokens
        for request in waiting:
            each = self._known[request.request_id]
            # A preempted sequence joins the line anew, with what is left of it: at the place of its
            # arrival the longest, preempted for the sake of the others, would go before them all.
            # But what it has waited counts, or it would wait twice as long as others.
            each.place = each.joined + min(each.allowed * pace, horizon * pace - each.waited)

    def head_fits(self, waiting: Any, free: int) -> bool:
        """Whether the first of the queue finds room."""
        head = waiting[0]
        known = self._known.get(head.request_id)
        return known is not None and head.num_tokens - known.cached <= free * self._block_size

    def fill(self, waiting: Any, free: int) -> None:
        """Let those that fit go before a head that does not, as long as it is not due.

        A sequence is due at its place in the line; from then on nobody goes before it.
        """
        if free < 1 or self.head_fits(waiting, free):
            return
        block = self._block_size
        now, urgency = self._clock(), waiting[0].priority
        fitting, due = [], np.inf
        for request in islice(waiting, _LOOK):
            known = self._known[request.request_id]
            need = -(-(request.num_tokens - known.cached) // block)
            if request.priority > urgency:
                break
            if need <= free:
                fitting.append(request)
                free -= need
            elif known.place <= now:
                break
            else:
                due = min(due, known.place)
        for request in reversed(fitting):
            waiting.remove(request)
            waiting.prepend_request(request)
        if fitting:  # perhaps not all of them begin in this step
            self._due = min(self._due, due)

    def room(self, running: int, waiting: Any, free: int) -> int:
        """How many of the queue, in its order, may be admitted now, with so many blocks free."""
        if not self.plan.fit:
            return len(waiting)
        if self._step < self._blocked_until:
            return 0
        self._refresh()
        terms = np.zeros_like(self._peak.sums)
        count = 0
        for request in waiting:
            known = self._known[request.request_id]
            # Whole prompts: what the cache has of them is free, too, where nobody else holds it.
            terms = terms + known.terms
            believed = known.confidence >= self.plan.min_confidence
            if count >= _LOOK or (believed and not self._peak.fits(terms, free)):
                break
            count += 1
        if count == 0 and running == 0:
            return 1
        if count == 0:
            self._blocked_until = self._step + _RETRY
        return count

    def set_aside(self) -> int:
        """Free blocks that are kept for the growth of what is running."""
        if not self.plan.fit:
            return 0
        self._refresh()  # while nobody waits nobody else does
        return int(self._peak.growth())

    def _refresh(self) -> None:
        """Look at all that run, where the last look is old."""
        if self._step - self._refreshed < _REFRESH:
            return
        self._refreshed = self._step
        running = [each for each in self._known.values() if each.running]
        if running:
            self._look(running)

    def _look(self, known: Sequence[Known]) -> tuple[Sequences, Outlook]:
        """Ask about sequences at their present ages, and keep the answers."""
        sequences = self._sequences(known)
        ids = [each.request.request_id for each in known]
        outlook = self._forecaster.outlook(ids, sequences.generated)
        answers = zip(known, outlook.survival, outlook.confidence.tolist(), strict=True)
        for each, survival, confidence in answers:
            each.survival, each.confidence, each.looked = survival, confidence, self._step
        if self.plan.fit:
            self._weigh(known, sequences, outlook)
        return sequences, outlook

    def _weigh(self, known: Sequence[Known], sequences: Sequences, outlook: Outlook) -> None:
        """Their shares of the memory ahead; of those that run, in the peak too."""
        blocks = -(-sequences.tokens // self._block_size)
        found = self._peak.terms(blocks, outlook, self.plan.min_confidence)
        for each, terms in zip(known, found, strict=True):
            if each.running:
                self._peak.remove(each.terms)
                self._peak.add(terms)
            each.terms = terms

    def victims_last(self, running: list[Any]) -> list[Any]:
        """The running sequences so that the engine, which preempts from the end, takes the right
        one. Those still in prefill stay behind: before the others they would take their turns."""
        known = [self._known[request.request_id] for request in running]
        old = [each for each in known if self._step - each.looked >= _RECENT]
        if len(old) == len(known):
            sequences, outlook = self._look(known)
        else:
            if old:
                self._look(old)
            sequences = self._sequences(known)
            outlook = Outlook(
                np.stack([each.survival for each in known]),
                np.array([each.confidence for each in known]),
            )
        plan = self.plan
        order = eviction_order(
            sequences,
            outlook,
            value=VALUES[plan.evict],
            near_completion=plan.near_completion,
            max_preemptions=plan.max_preemptions,
            min_confidence=plan.min_confidence,
        )
        ordered = [running[i] for i in order[::-1]]
        return [r for r in ordered if not r.is_prefill_chunk] + [
            r for r in ordered if r.is_prefill_chunk
        ]

    def _sequences(self, known: Sequence[Known]) -> Sequences:
        requests = [each.request for each in known]
        tokens = np.array([r.num_tokens for r in requests])
        for each in known:
            each.cached = self._cached(each.request)
        zeros = np.zeros(len(requests), dtype=bool)
        return Sequences(
            tokens=tokens,
            generated=np.array([r.num_output_tokens for r in requests]),
            recompute=tokens - np.array([each.cached for each in known]),
            arrival=np.array([r.arrival_time for r in requests]),
            urgency=np.array([r.priority for r in requests]),
            preemptions=np.array([r.num_preemptions for r in requests]),
            pinned=zeros,
        )
