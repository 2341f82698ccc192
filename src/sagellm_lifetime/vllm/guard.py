"""What a live scheduler asks in the place of a bare controller: modes, faults, counts.

The mixin of ``scheduler.py`` calls it like a controller. Behind it a planner is there only while
predictions are on and nothing is wrong; without one every question gets the answer that leaves
vLLM's scheduler as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.policies.plan import Plan
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.vllm.beam_search import is_beam_step
from sagellm_lifetime.vllm.circuit_breaker import LOG, Breaker
from sagellm_lifetime.vllm.controller import LOOK_ROUND
from sagellm_lifetime.vllm.events import BEAM_STEP, CAME, OVER, RUNS, WAITS, Burst, Event
from sagellm_lifetime.vllm.finish_reasons import Endings
from sagellm_lifetime.vllm.forecaster import LiveForecaster
from sagellm_lifetime.vllm.override import Takeover, as_vllm
from sagellm_lifetime.vllm.planner import Planner
from sagellm_lifetime.vllm.prediction_statistics import Tally
from sagellm_lifetime.vllm.recorder import Recorder
from sagellm_lifetime.vllm.request_adapter import Describer
from sagellm_lifetime.vllm.settings import Mode
from sagellm_lifetime.vllm.shadow import Shadow
from sagellm_lifetime.vllm.step_time import StepClock
from sagellm_lifetime.vllm.token_feed import TokenFeed
from sagellm_lifetime.vllm.warm_start import adopted

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.logit_signals import Signals

_HEAD: Final = 64
"""Of the queue, as far as anybody is let go first."""
_MANY: Final = 32
"""Running sequences from which on events are dealt with several at a time."""
_BURST: Final = 192  # of them, at a time
_LATEST: Final = 128
"""Steps after which fewer are dealt with, and after which the breaker hears of them."""
_NOTHING: Final = Plan(order="fcfs", evict="")
"""What is done while nobody acts."""


class LiveLifetime:
    """One engine core's.

    Args:
        scheduler: vLLM's, with our mixin.
        plan: what to do in ``act``.
        forecaster: whom to ask; ``None`` where completions are only recorded.
        reads_tokens: whether generated tokens mean anything to the predictor.
        describe: requests as questions.
        endings: why they end.
        breaker: goes round every call.
        tally: counts.
        recorder: of completions; ``None`` for none.
        signals: of the model, of every request; ``None`` where they are not watched.
        watermark: share of the pool left free at admission, in ``act`` and where others wait.
        cannot_act: why ``act`` is impossible here, or nothing.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        plan: Plan,
        forecaster: LiveForecaster | None,
        reads_tokens: bool,
        describe: Describer,
        endings: Endings,
        breaker: Breaker,
        tally: Tally,
        recorder: Recorder | None,
        signals: Signals | None,
        watermark: float,
        cannot_act: str,
    ) -> None:
        self.mode: Mode = "off"
        self.wanted: Mode = "off"
        """What the mode is from the next step on."""
        self.cannot_act = cannot_act
        self.breaker = breaker
        self.tally = tally
        self.recorder = recorder
        self._signals = signals
        self.endings = endings
        self.shadow = Shadow()
        self.steps = 0
        self.seconds = 0.0
        self._scheduler = scheduler
        self._plan = plan
        self.fits = plan.fit > 0.0
        """Whether it is asked how many may be admitted: to act, or to compare."""
        self._forecaster = forecaster
        self._reads_tokens = reads_tokens
        self._describe = describe
        self._watermark = watermark
        self._takeover = Takeover(scheduler)
        self._planner: Planner | None = None
        self.acting = False
        """Whether decisions are ours."""
        self.plan = _NOTHING
        """What the mixin is to do."""
        self._feed = TokenFeed()
        self._between: set[str] = set()
        """Sessions whose turn is over, and whose next input has not come."""
        self._fitting = sys.maxsize
        self._burst = Burst(breaker, tally, forecaster)
        self._hurried = False
        self._ticks: list[float | None] = []
        """Steps that the planner has not heard of, by their seconds on the scheduler's clock."""
        self._clock, self._scheduler_clock = StepClock(perf_counter), StepClock(scheduler.clock)
        self._told = (0, 0.0)
        """Steps and their seconds that the breaker has heard of."""
        self._missed = False
        """Whether something failed that takes note of what happens: some may have ended unseen."""

    def want(self, mode: Mode) -> None:
        """Be in a mode from the next step on; any thread may ask."""
        if self._forecaster is None:
            return
        if mode == "act" and self.cannot_act:
            LOG.error("lifetime prediction does not act: %s", self.cannot_act)
            return
        self.wanted = mode

    def hurry(self) -> None:
        """Let nothing lie about longer than the next step; any thread may ask."""
        self._hurried = True

    # -- a step ------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether it is off, and stays so: then a step is vLLM's alone."""
        return self.mode == self.wanted == "off" and not self._takeover.disordered

    @property
    def decides(self) -> bool:
        """Whether it is asked about the queue: to act, to compare, or to put it back in order."""
        return self.acting or self._takeover.disordered or self.fits

    def passed(self, *, busy: bool) -> float | None:
        """A step of vLLM's alone begins: whatever is wanted meanwhile, the mode stays.

        Returns:
            Seconds that the step before took by the scheduler's clock, if there was one.
        """
        breaker = self.breaker
        seconds, by_scheduler = self._clock.begin(), self._scheduler_clock.begin()
        if seconds is None or not busy:
            breaker.excuse()
            self._told = (self.steps, self.seconds)
            by_scheduler = None
        else:
            self.steps += 1
            self.seconds += seconds
            if breaker.spent or self.steps - self._told[0] >= _LATEST:
                self._tell()
        return by_scheduler

    def taken(self, tokens: int) -> None:
        """The output of a step was taken, in which so many tokens were computed."""
        self._clock.taken(tokens)
        self._scheduler_clock.taken(tokens)

    def tick(self, *, busy: bool) -> None:
        """A step begins: account for the last one, change the mode, come back from a fault."""
        seconds = self.passed(busy=busy)
        breaker = self.breaker
        self._fitting = sys.maxsize
        # What runs once a step runs cold, at several times its cost: so in nearly all, nothing of
        # this is called.
        if (
            self._planner is None
            or breaker.state != "closed"
            or self.mode != self.wanted
            or (self._takeover.disordered and self.mode != "act")
        ):
            self._change()
        if self._planner is not None:
            self._ticks.append(seconds)
            late = len(self._ticks) >= _LATEST or len(self._burst.events) >= _BURST
            if late or self._hurried:
                self.catch_up()
            if self._reads_tokens:
                self._feed_tokens()

    def _change(self) -> None:
        if self.idle:
            return
        self._mind()
        if self._missed:
            self._drop_ended()
        if self.wanted != self.mode:
            self._switch(self.wanted)
        if self._planner is None and self.mode != "off" and self.breaker.ready():
            self._start()
        if not self.acting:
            self.restore()

    def _tell(self) -> None:
        """The breaker hears of all steps since it was called last."""
        steps, seconds = self._told
        self._told = (self.steps, self.seconds)
        if not self.idle:
            self.breaker.steps(self.steps - steps, self.seconds - seconds)

    def _feed_tokens(self) -> None:
        grown = self._feed.advance(self._scheduler.requests)
        if grown:
            self.catch_up()
            self._call(None, self._hand_over, grown)

    def catch_up(self) -> None:
        """Deal with all that has happened; before any decision."""
        self._hurried = False
        ticks, self._ticks = self._ticks, []
        if self._planner is not None:
            for seconds in ticks:
                self._planner.stepped(seconds)
        if self._burst.events:
            self._burst.deal(self._planner)
            self._mind()

    def _hand_over(self, grown: Sequence[Any]) -> None:
        if self._forecaster is not None:
            self._forecaster.grown([self._describe.grown(request) for request in grown])

    @property
    def looks_round(self) -> bool:
        """Whether it is time to :meth:`make_room`."""
        return self.acting and self.steps % LOOK_ROUND == 0

    def make_room(self, waiting: int) -> None:
        """Leave blocks free for what runs, in ``act``."""
        if self._planner is not None:
            self._call(None, self._planner.make_room, waiting)

    def line_up(self, waiting: Any) -> bool:
        """Put the queue in order, in ``act``; whether it matters in this step."""
        # One alone has no place in a line, nor have they while all are let in, or nobody.
        matters = self.acting and len(waiting) > 1 and self._scheduler.order_matters()
        if matters:
            self.catch_up()
        if matters and self._planner is not None and self._planner.stale(len(waiting)):
            order = self._call(None, self._planner.ordered, waiting)
            if order is not None:
                waiting.clear()
                waiting.extend(order)
        if not self.acting:
            self.restore()
        return matters and self.acting

    def fill(self, waiting: Any, free: int) -> None:
        """Let those that fit go first, in ``act``."""
        planner = self._planner
        if planner is None or planner.head_fits(waiting, free):
            return
        head = list(islice(waiting, _HEAD))
        order = self._call(head, planner.filled, head, free)
        if order != head:
            for _ in head:
                waiting.popleft()
            waiting.extendleft(reversed(order))

    def room(self, running: int, waiting: Any, free: int) -> int:
        """How many of the queue may be admitted."""
        self.catch_up()  # which may end in a fault, and then there is no planner any more
        if self._planner is None:
            return sys.maxsize
        count = self._call(None, self._planner.may_admit, running, waiting, free)
        if count is not None:
            self._fitting = count
        if count is None or not self.acting:
            return sys.maxsize
        scheduler = self._scheduler
        # vLLM counts sessions that wait for input as running, and admits those with memory first.
        return count + scheduler.num_waiting_for_streaming_input + len(scheduler.kv_holding_waiting)

    def victims_last(self, running: list[Any]) -> list[Any]:
        """The running sequences, the first victim last."""
        self.catch_up()
        if not self.acting or self._planner is None:
            return running
        order: list[Any] = self._call([], self._planner.victims, running)
        return order or as_vllm(running)

    def set_aside(self) -> int:
        """Blocks kept for what is running."""
        if not self.acting or self._planner is None:
            return 0
        return self._call(0, self._planner.set_aside)

    def end(self, admitted: set[str]) -> None:
        """After a step of the engine that has admitted somebody, in shadow: compare."""
        if self._planner is None:
            return
        scheduler, admissions = self._scheduler, self.shadow.admissions
        if not scheduler.waiting and self._fitting == sys.maxsize:
            admissions.made += len(admitted)  # all that waited: nobody else could have been
        elif admissions.due(len(admitted), self.steps):
            self.catch_up()
            if self._planner is None:  # there was a fault
                return
            queue = [scheduler.requests[name] for name in admitted]
            queue += [r for r in scheduler.waiting if r not in scheduler.deferred_waiting]
            held = max(len(admitted) - self._fitting, 0)
            self.shadow.admitted(self.breaker, self._planner, admitted, queue, held)
            self._mind()

    # -- what happens ------------------------------------------------------------------------

    def arrived(self, request: Any) -> None:
        """A sequence was queued."""
        if is_beam_step(request):
            self._happened((CAME, request, None, None))
            return
        if self._signals is not None:
            self._signals.ask(request)
        self._between.discard(request.request_id)
        # Asked about later, it is asked about as it came.
        describe = self._describe if request.num_output_tokens else self._describe.came
        self._happened((CAME, request, describe, None))
        if request.num_output_tokens:
            self.catch_up()

    def admitted(self, request_id: str) -> None:
        """It runs (again)."""
        if self._reads_tokens and self._planner is not None:
            self._feed.start(self._scheduler.requests[request_id])
        self._happened((RUNS, request_id, self._scheduler.clock(), None))

    def preempting(self, request: Any) -> None:
        """It is about to lose its memory."""
        if self.mode != "shadow" or self._planner is None:
            return
        if self.shadow.preemptions.due(1, self.steps):
            self.catch_up()
            if self._planner is not None and self._plan.evict:
                running = self._scheduler.running
                self.shadow.preempted(self.breaker, self._planner, request, running)
                self._mind()

    def preempted(self, request: Any) -> None:
        """It waits again."""
        self._happened((WAITS, request, self._scheduler.clock(), None))

    def finished(self, request: Any, _reason: str = "") -> None:
        """It is over; the mixin's reason is as much as vLLM's scheduler knows."""
        name = request.request_id
        if name in self._between:
            self._between.discard(name)
            return
        if is_beam_step(request):
            self._feed.stop(name)
            self._happened((OVER, request, 0.0, BEAM_STEP))
            return
        try:
            seconds = max(self._scheduler.clock() - request.arrival_time, 0.0)
            if self._reads_tokens:  # at once, for a name may be used again
                self._feed.stop(name)
            signals = self._signals.taken(name) if self._signals is not None else {}
            reason = self.endings.reason(request)
            if (to := self.recorder) is not None:  # at once, too: a kill -9 loses a second at most
                make = partial(self._describe.row, request, seconds, reason, to.content, signals)
                (to.take_now if request.resumable else to.take)(make)
        except Exception:
            if self.recorder is not None:
                self.recorder.missed()
            raise
        self._happened((OVER, request, seconds, reason))
        if request.resumable:  # it may go on, and is another one by then
            self.catch_up()

    def _happened(self, event: Event) -> None:
        self._burst.events.append(event)
        if self._planner is None or len(self._scheduler.running) < _MANY:
            self.catch_up()

    def turn_over(self, request: Any) -> None:
        """A session's turn has ended like a sequence; it may go on with more input."""
        self.finished(request)
        self._between.add(request.request_id)

    # -- what is known, for other threads ----------------------------------------------------

    @property
    def predictor(self) -> Predictor | None:
        """Who is asked."""
        return self._forecaster.predictor if self._forecaster is not None else None

    @property
    def lessons(self) -> int:
        """Completions learned from."""
        return self._forecaster.lessons if self._forecaster is not None else 0

    # -- modes and faults --------------------------------------------------------------------

    def _call(self, fallback: Any, function: Callable[..., Any], *args: Any) -> Any:
        answer = self.breaker.call(fallback, function, *args)
        self._mind()
        return answer

    def failed(self, error: Exception) -> None:
        """Leave all to vLLM for a while: something beside the predictor and the policies raised.

        What it has changed is put back but for the order of queue and running sequences, which
        must stay while a step of vLLM's is under way: see :meth:`restore`.
        """
        self._missed = True
        self.breaker.fault(error)
        self._ticks.clear()
        self._stop()

    def restore(self) -> None:
        """Put queue and running sequences in vLLM's order, if they are in another one."""
        if self._takeover.disordered:
            self._takeover.restore()

    def _drop_ended(self) -> None:
        """After something was missed: who is not there any more has ended, nobody knows how."""
        requests = self._scheduler.requests
        for name in self.tally.running():
            if name not in requests:
                self.tally.ended(name, 0, 0.0, "error")
                self._burst.gone.append(name)
        self._between.intersection_update(requests)
        if self._signals is not None:
            self._signals.keep(requests)
        self._missed = False

    def _mind(self) -> None:
        """After a fault nothing of the planner is trusted any more."""
        if self._planner is not None and not self.breaker.allows:
            self._stop()

    def _switch(self, mode: Mode) -> None:
        LOG.info("lifetime prediction: %s -> %s", self.mode, mode)
        self.catch_up()
        self.mode = mode
        if mode == "off":
            self._burst.gone += self.tally.running()
            self.breaker.call(None, self._forget)  # while it is open, when it is closed again
            self._stop()
        elif self._planner is not None:
            # The order of the queue may be anything by now: line it up once more.
            self._start()

    def _start(self) -> None:
        """A new planner, which knows all that is there."""
        forecaster, scheduler = self._forecaster, self._scheduler
        if forecaster is None:
            return
        self._stop()
        self.catch_up()
        queued = (*scheduler.waiting, *scheduler.kv_holding_waiting)
        held = [request for request in queued if request.request_id not in self._between]
        make, running = partial(self._made, forecaster), list(scheduler.running)
        self._use(adopted(self.breaker, make, forecaster, self._describe, held, running))
        self._feed = TokenFeed()
        if self._planner is not None:
            for request in running if self._reads_tokens else ():
                self._feed.start(request)
            if self.mode == "act":
                self._takeover.begin()
        self.breaker.excuse()

    def _made(self, forecaster: LiveForecaster) -> Planner:
        self._forget()
        scheduler = self._scheduler
        pool = scheduler.kv_cache_manager.block_pool
        return Planner(
            self._plan,
            forecaster,
            describe=self._describe,
            total_blocks=pool.num_gpu_blocks - 1,
            block_size=scheduler.block_size,
            clock=scheduler.clock,
            cached=scheduler.cached_tokens,
            leave_free=self._takeover.leave_free,
            watermark=self._watermark,
        )

    def _forget(self) -> None:
        """Those who ended while nobody told the predictor."""
        if self._forecaster is not None:
            self._forecaster.forget(self._burst.gone)
        self._burst.gone.clear()

    def _use(self, planner: Planner | None) -> None:
        self._planner = planner
        self.acting = self.mode == "act" and planner is not None
        self.plan = self._plan if self.acting else _NOTHING

    def _stop(self) -> None:
        self._use(None)
        self.shadow.interrupted()
        self._takeover.give_back()
