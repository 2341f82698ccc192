"""Who may be admitted before whom: a plan's advisor, in an engine that never preempts."""

from typing import NamedTuple

import numpy as np
from advisor_help import Clock, View, desk
from hypothesis import given, settings
from hypothesis import strategies as st

from sagellm_lifetime.policies.forecast import KnownLengths
from sagellm_lifetime.policies.plan import PLANS, Plan
from sagellm_lifetime.policies.state import SurvivalForecast

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
BLOCK = 16
BLOCKS = 100
FAIR = [plan for plan in PLANS.values() if not plan.cached]
"""Plans without those that put a prompt in the cache before all others, however long they wait."""
OTHERS = [
    Plan(order="input", evict=""),
    Plan(patience=1e6, slack=0.1),
    Plan(patience=1e6, slack=5.0, min_confidence=0.5),
    Plan(order="length", patience=1e9, slack=1e15),
    Plan(order="gittins", patience=0.5, slack=1.0),
    Plan(fit=0.9, horizon=64),
]


class Whims:
    """Says something else whenever it is asked, mostly wrong."""

    def __init__(self, rng, longest):
        self._rng, self._most = rng, np.log(longest)

    def arrived(self, request):
        pass

    def forecast(self, ids, ages):
        rng = self._rng
        known = SurvivalForecast.exact(np.floor(np.exp(rng.uniform(0, self._most, len(ids)))))
        return SurvivalForecast(known.survival, rng.random(len(ids)))

    def finished(self, sequence_id, length, seconds, reason):
        pass


class Overtaking(NamedTuple):
    """``joined`` was admitted although one of its class had waited since before it joined."""

    joined: float
    now: float
    place: float
    """Of the one that is overtaken, now."""
    highest: float
    """The largest it has had."""
    filled: bool
    """Whether it went before one that stands before it in the line."""


class Engine:
    """Steps of any duration, ``seats`` sequences at once, ``starts`` of them begin in a step.

    As vLLM it admits in the order of the queue and stops at the first that does not fit. What it
    holds does not grow, so that nothing is preempted.
    """

    def __init__(self, plan, seed, *, seats, starts, rate, longest, steps=100):
        self._rng = np.random.default_rng(seed)
        self._seats, self._starts, self._rate = seats, starts, rate
        self._clock, self._waiting, self._running = Clock(), [], {}
        self._desk = desk(
            self._clock,
            Whims(self._rng, longest),
            plan,
            total_blocks=BLOCKS,
            block_size=BLOCK,
            watermark=0.05,
        )
        self.overtakings, self._highest = [], {}
        self._scale = float(np.exp(self._rng.uniform(-5, 1)))
        for step in range(steps):
            self._arrivals(step)
            self._schedule()
            self._end()

    def _free(self):
        held = sum(self._blocks(each) for each, _ in self._running.values())
        return BLOCKS - held - (self._desk.advisor.reserve() if self._running else 0)

    def _blocks(self, view):
        return -(-view.tokens // BLOCK)

    def _arrivals(self, step):
        rng, took = self._rng, self._scale * float(self._rng.choice([0.01, 1.0, 1.0, 10.0]))
        count = rng.poisson(self._rate * rng.choice([0.0, 0.5, 3.0])) if step else 5
        for k, at in enumerate(np.sort(rng.uniform(0, took, count))):
            prompt = int(rng.choice([1, 40, 300, 900])) + int(rng.integers(0, 100))
            made = View(
                f"r{step}.{k}",
                prompt,
                arrival=self._clock.now + float(at),
                priority=int(rng.random() < 0.2),
            )
            self._waiting.append(made)
            self._desk.arrived(made)
        self._clock.now += took
        self._took = took

    def _schedule(self):
        advisor, waiting = self._desk.advisor, self._waiting
        self._desk.step(self._took if self._running else None)
        if not waiting:
            return
        self._desk.order(waiting, self._free())
        places = {each.id: self._desk.record(each.id).place for each in waiting}
        for name, place in places.items():
            self._highest[name] = max(place, self._highest.get(name, -np.inf))
        room = advisor.admit_limit(len(self._running), waiting, self._free())
        for _ in range(min(room, self._starts, self._seats - len(self._running))):
            if not waiting or self._blocks(waiting[0]) > self._free():
                return
            self._admit(waiting.pop(0), places)

    def _admit(self, new, places):
        for each in self._waiting:
            if each.priority == new.priority and each.arrival < new.arrival:
                place, highest = places[each.id], self._highest[each.id]
                filled = places[new.id] >= place
                self.overtakings.append(
                    Overtaking(new.arrival, self._clock.now, place, highest, filled)
                )
        self._running[new.id] = (new, self._rng.geometric(0.05))
        self._desk.admitted(new.id)

    def _end(self):
        for name, (each, left) in list(self._running.items()):
            if left > 1:
                self._running[name] = (each, left - 1)
            else:
                del self._running[name]
                self._desk.finished(each)


@st.composite
def engines(draw, plans=FAIR + OTHERS, seats=(1, 3, 12, 100), starts=(1, 4, 100)):
    return Engine(
        draw(st.sampled_from(plans)),
        draw(st.integers(0, 2**32 - 1)),
        seats=draw(st.sampled_from(seats)),
        starts=draw(st.sampled_from(starts)),
        rate=draw(st.sampled_from([0.1, 0.4, 2.0])),
        longest=draw(st.sampled_from([3, 30, 300, 10_000])),
    )


def test_the_engine_lets_some_overtake_and_some_fill_gaps():
    engine = Engine(Plan(), 0, seats=12, starts=4, rate=2.0, longest=300)
    assert sum(each.filled for each in engine.overtakings) > 10
    assert sum(not each.filled for each in engine.overtakings) > 100


@PROPERTY
@given(engines())
def test_nobody_is_overtaken_by_one_that_joins_after_its_place(engine):
    for each in engine.overtakings:
        assert each.joined < each.highest


@PROPERTY
@given(engines())
def test_gaps_are_filled_only_before_those_that_are_not_due(engine):
    for each in engine.overtakings:
        assert each.now < each.place or not each.filled


def test_who_was_put_into_a_gap_and_did_not_begin_does_not_go_before_one_that_is_due():
    """No seat was free, or no token was left of the step."""
    clock = Clock()
    made = desk(clock, KnownLengths({"big": 20, "tiny": 22}), total_blocks=BLOCKS, block_size=BLOCK)
    waiting = [View("big", 800), View("tiny", 16, arrival=0.1)]
    for each in waiting:
        made.arrived(each)
    made.order(waiting)
    made.record("big").place, made.record("tiny").place = 1.0, 1.1
    made.order(waiting, 10)
    assert [each.id for each in waiting] == ["tiny", "big"]
    clock.now = 2.0
    made.step()
    made.order(waiting, 10)
    assert [each.id for each in waiting] == ["big", "tiny"]
