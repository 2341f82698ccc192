"""A guard round any advisor, beside an engine of which nothing is there."""

import asyncio
import logging
import math
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from engine_help import SMALL, Engine

from sagellm_lifetime.policies.events import Admitted, Arrived, Finished, Progressed
from sagellm_lifetime.vllm.circuit_breaker import CircuitBreaker, TransparentBreaker
from sagellm_lifetime.vllm.guard import GuardedAdvisor
from sagellm_lifetime.vllm.override import as_vllm
from sagellm_lifetime.vllm.time_budget import TimeLimit


class Named:
    """All that a guard reads of a sequence."""

    arrival = 0.0
    preemptions = 0

    def __init__(self, name):
        self.id = name


class Reversed:
    """Turns everything round; what it answers may be replaced."""

    limits_admission = True

    def __init__(self):
        self.heard = []
        self.answers = {}

    def on_events(self, events):
        self.heard += events

    def order(self, waiting, free_blocks):
        return self.answers.get("order", range(len(waiting))[::-1])

    def victims(self, running):
        return self.answers.get("victims", range(len(running))[::-1])

    def reserve(self):
        return self.answers.get("reserve", 7)

    def admit_limit(self, running, waiting, free_blocks):
        return self.answers.get("limit", 1)


class Nowhere:
    """The engine's side; counts what it is told."""

    def __init__(self):
        self.told = []

    def sequences(self):
        return [Arrived(Named("there"), 1.0)], [Admitted("there", 0.5)]

    def present(self):
        return {"there"}

    def take_over(self):
        self.told.append("take over")

    def give_back(self):
        self.told.append("give back")

    def restore(self):
        self.told.append("restore")


@pytest.fixture
def engine():
    return Nowhere()


@pytest.fixture
def advisor():
    return Reversed()


def guarded(engine, advisor, mode="act", breaker=None):
    breaker = breaker or CircuitBreaker(floor_s=60.0)
    guard = GuardedAdvisor(
        lambda acts: advisor, engine, clock=lambda: 2.0, breaker=breaker, limits_admission=True
    )
    guard.set_mode(mode)
    guard.begin_step(1)
    return guard


VIEWS = [Named(name) for name in "abc"]


def asked(guard):
    """Everything, as it is answered in one step."""
    order, victims = guard.order(VIEWS, 10), guard.victims(VIEWS)
    return (
        order if order is None else list(order),
        victims if victims is None else list(victims),
        guard.admit_limit(1, VIEWS, 10),
        guard.reserve(),
    )


def test_what_is_there_is_told_before_anything_else(engine, advisor):
    guarded(engine, advisor)
    assert [type(event) for event in advisor.heard] == [Arrived, Admitted]
    assert engine.told[-1] == "take over"


@pytest.mark.parametrize(
    ("mode", "answers"),
    [
        ("off", (None, None, 3, 0)),
        ("shadow", (None, None, 3, 7)),
        ("act", ([2, 1, 0], [2, 1, 0], 1, 7)),
    ],
)
def test_only_in_act_are_answers_carried_out(engine, advisor, mode, answers):
    guard = guarded(engine, advisor, mode)
    assert asked(guard) == answers
    assert guard.acting == (mode == "act")
    assert ("take over" in engine.told) == (mode == "act")


@pytest.mark.parametrize(
    "answers",
    [
        {"order": [0, 0, 1]},
        {"order": [3]},
        {"victims": [1, 0]},
        {"victims": [0, 1, 1]},
        {"limit": 4},
        {"limit": -1},
        {"limit": 1.5},
        {"reserve": -1},
    ],
    ids=str,
)
def test_nonsense_leaves_everything_to_the_engine(engine, advisor, answers):
    guard = guarded(engine, advisor)
    advisor.answers = answers
    guard.on_events([Admitted("a", 2.0)])
    asked(guard)
    assert guard.breaker.faults["nonsense"] == 1
    assert engine.told[-1] == "give back"
    assert asked(guard) == (None, None, 3, 0)
    assert not guard.acting


def test_events_wait_for_a_question_where_many_run(engine, advisor):
    guard = guarded(engine, advisor)
    guard.begin_step(64)
    advisor.heard.clear()
    events = [Admitted("a", 2.0), Finished("a", 1, 1.0, "stop", 3.0)]
    for event in events:
        guard.on_events([event])
    assert not advisor.heard
    guard.order(VIEWS, 1)
    assert [event for event in advisor.heard if type(event) is not Progressed] == events


def test_a_replay_hears_of_every_error(engine, advisor):
    guard = guarded(engine, advisor, breaker=TransparentBreaker())
    advisor.answers = {"order": [1]}
    with pytest.raises(ValueError, match="no permutation"):
        guard.order(VIEWS, 1)


@pytest.mark.parametrize("first", [[2], [0]], ids=["differs", "agrees"])
def test_shadow_compares_with_what_was_done(engine, advisor, first):
    guard = guarded(engine, advisor, "shadow")
    order = [*first, *(place for place in range(3) if place not in first)]
    advisor.answers = {"order": order, "victims": order[::-1]}
    assert guard.compares_admission(1)
    guard.compare_admission(VIEWS[:1], VIEWS[1:])
    admissions = guard.agreement.admissions
    assert (admissions.made, admissions.differing) == (1, int(first == [2]))
    guard.compare_preemption(VIEWS[2], lambda: VIEWS[:2])
    preemptions = guard.agreement.preemptions
    assert (preemptions.made, preemptions.differing) == (1, int(first == [0]))


# -- advisors that answer badly, beside vLLM's scheduler ------------------------------------------


class Advised(Engine):
    """An engine with an advisor of the test's; the guard has the circuit breaker of a live one."""

    def __init__(self, advisor, settings=None, mode="act"):
        self.import_vllm()
        from sagellm_lifetime.vllm.finish_reasons import FinishReasons
        from sagellm_lifetime.vllm.request_events import RequestEvents
        from sagellm_lifetime.vllm.scheduler import LifetimeScheduler

        settings = settings or replace(SMALL, blocks=14, max_num_seqs=8)
        super().__init__(settings, scheduler_cls=LifetimeScheduler)
        self.breaker = CircuitBreaker(floor_s=60.0)
        guard = GuardedAdvisor(
            lambda acts: advisor,
            self.scheduler,
            clock=self.scheduler.clock,
            breaker=self.breaker,
            limits_admission=advisor.limits_admission,
        )
        self.scheduler.use(guard, RequestEvents(FinishReasons()), None)
        guard.set_mode(mode)

    def finish(self, count=30):
        """Run so many requests, some of which are preempted; all must end."""
        for i in range(count):
            self.add(60 if i % 3 == 0 else 6, prompt=30)
        free = self.free()
        self.run(1500)
        scheduler = self.scheduler
        assert not scheduler.requests
        assert not scheduler.waiting
        assert not scheduler.running
        assert self.free() == free
        return self

    def free(self):
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


class Advice:
    """An advisor that leaves everything as it is, unless a test replaces a method."""

    limits_admission = False

    def __init__(self, **methods):
        for name, method in methods.items():
            setattr(self, name, method)

    def on_events(self, events):
        pass

    def order(self, waiting, free_blocks):
        return None

    def victims(self, running):
        return None

    def reserve(self):
        return 0

    def admit_limit(self, running, waiting, free_blocks):
        return len(waiting)


class Changing:
    """An order that is a permutation when it is read first, and names one place afterwards."""

    def __init__(self, count):
        self.count, self.reads = count, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        self.reads += 1
        return iter(range(self.count) if self.reads == 1 else [0] * self.count)

    def __reversed__(self):
        return iter([0] * self.count)

    def __getitem__(self, place):
        return 0


@pytest.mark.parametrize(
    "order",
    [
        lambda count: [float(place) for place in range(count)][::-1],
        lambda count: np.arange(count)[::-1].astype(float),
        lambda count: [0] * count,
        lambda count: [[place] for place in range(count)],
    ],
    ids=["floats", "numpy floats", "duplicates", "lists"],
)
@pytest.mark.parametrize("method", ["order", "victims"])
def test_no_order_of_something_else_loses_a_request(order, method):
    """The breaker opens, and vLLM's own order stays."""
    advisor = Advice(**{method: lambda sequences, *_: order(len(sequences))})
    engine = Advised(advisor).finish()
    assert engine.breaker.faults["nonsense"] == 1


@pytest.mark.parametrize(
    "order",
    [Changing, lambda count: np.arange(count)[::-1], lambda count: set(range(count))],
    ids=["changing", "numpy", "set"],
)
@pytest.mark.parametrize("method", ["order", "victims"])
def test_what_was_checked_is_what_is_carried_out(order, method):
    asked = []

    def answer(sequences, *_):
        asked.append(len(sequences))
        return order(len(sequences))

    engine = Advised(Advice(**{method: answer})).finish()
    assert max(asked) > 1
    assert engine.breaker.state == "closed"
    assert engine.preempted


def shortened(sequences, *_):
    """Take a sequence away, and answer for the others."""
    if len(sequences) < 2:
        return None
    sequences.pop()
    return list(range(len(sequences)))


def lengthened(sequences, *_):
    sequences.append(sequences[0])
    return list(range(len(sequences)))


@pytest.mark.parametrize("answer", [shortened, lengthened])
@pytest.mark.parametrize("method", ["order", "victims"])
def test_an_advisor_cannot_change_what_it_is_given(answer, method):
    engine = Advised(Advice(**{method: answer})).finish()
    assert engine.breaker.faults["exception"] == 1


def test_an_advisor_cannot_drop_events(engine):
    """Even one that has no error beside it: what it is given is no list."""
    given = []
    guard = guarded(engine, Advice(on_events=given.append))
    guard.on_events([Admitted("a", 2.0)])
    assert {type(events) for events in given} == {tuple}
    assert given[-1][-1] == Admitted("a", 2.0)


@pytest.mark.parametrize("method", ["order", "victims", "admit_limit"])
def test_the_length_is_read_before_the_advisor_is_asked(engine, method):
    """A sequence of the engine's that can be lengthened is no measure of the answer."""
    views = [*VIEWS]

    def lengthen(*given):
        views.append(views[0])
        return len(views) if method == "admit_limit" else list(range(len(views)))

    guard = guarded(engine, Advice(**{method: lengthen}))
    if method == "admit_limit":
        assert guard.admit_limit(1, views, 1) == 3
    elif method == "order":
        assert guard.order(views, 1) is None
    else:
        assert guard.victims(views) is None
    assert guard.breaker.faults["nonsense"] == 1


def test_an_order_that_cannot_be_carried_out_takes_nothing_from_the_queue(vllm):
    engine = Advised(Advice())
    for _ in range(3):
        engine.add(6)
    from sagellm_lifetime.vllm.override import Override

    override = Override(engine.scheduler)
    before = list(engine.scheduler.waiting)
    for order in ([2.0, 1.0, 0.0], [0, 1, 2, 3]):
        with pytest.raises((TypeError, IndexError)):
            override.reorder_queue(order)
        assert list(engine.scheduler.waiting) == before
    override.reorder_queue([1, 0])
    assert list(engine.scheduler.waiting) == [before[1], before[0], before[2]]


@pytest.mark.parametrize("number", [lambda count: 0, lambda count: np.int64(0)], ids=["0", "numpy"])
def test_an_engine_where_nothing_runs_admits_one(number):
    advisor = Advice(limits_admission=True, admit_limit=lambda running, *_: number(running))
    engine = Advised(advisor).finish(12)
    assert engine.breaker.state == "closed"
    assert max(len(step) for step in engine.schedule) == 1


def test_a_limit_of_0_is_kept_while_others_run_or_nobody_waits(engine):
    guard = guarded(engine, Advice(admit_limit=lambda *_: 0))
    assert guard.admit_limit(1, VIEWS, 10) == 0
    assert guard.admit_limit(0, VIEWS, 10) == 1
    assert guard.admit_limit(0, [], 10) == 0
    assert guard.breaker.state == "closed"


def raises(error):
    def raiser(*_):
        raise error

    return raiser


ENDINGS = [SystemExit(3), GeneratorExit(), asyncio.CancelledError(), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["on_events", "order", "victims", "reserve"])
def test_an_advisor_cannot_end_the_engine(method, error):
    engine = Advised(Advice(**{method: raises(error)})).finish(12)
    assert engine.breaker.faults["exception"] == 1
    assert engine.breaker.reason == f"exception: {type(error).__name__}"


@pytest.mark.parametrize("means", ["alarm", "thread"])
@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_what_ends_a_program_is_a_fault_of_a_call(means, error):
    breaker = CircuitBreaker()
    breaker._limit = TimeLimit(60.0, means)
    assert breaker.call("fallback", raises(error)) == "fallback"
    assert breaker.faults["exception"] == 1
    breaker.close()


@pytest.mark.parametrize("means", ["alarm", "thread"])
@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (signal.default_int_handler, KeyboardInterrupt),
        (lambda *_: raises(KeyboardInterrupt())(), KeyboardInterrupt),
        (lambda *_: raises(SystemExit(9))(), SystemExit),
    ],
    ids=["Ctrl-C", "own Ctrl-C", "own end"],
)
def test_a_real_signal_goes_through(means, handler, error):
    breaker = CircuitBreaker()
    breaker._limit = TimeLimit(60.0, means)

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30.0)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(error):
            breaker.call(None, interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert breaker.state == "closed"
    assert not any(breaker.faults.values())
    breaker.close()


def test_after_giving_up_the_order_is_vllms_again(monkeypatch, caplog):
    """A step that cannot be prepared, and whose fault cannot be handled either."""
    engine = Advised(Advice(order=lambda waiting, free: range(len(waiting))[::-1]))
    for _ in range(30):
        engine.add(60, prompt=30)
    engine.run(3)
    scheduler, guard = engine.scheduler, engine.advisor

    def is_vllms():  # one that was preempted is at the head of vLLM's own order too
        return len(scheduler.waiting) > 1 and list(scheduler.waiting) == as_vllm(scheduler.waiting)

    assert not is_vllms()
    monkeypatch.setattr(guard, "begin_step", raises(ZeroDivisionError()))
    monkeypatch.setattr(guard, "failed", raises(LookupError()))
    caplog.set_level("ERROR", "vllm.sagellm_lifetime")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    engine.step()
    assert scheduler.advisor is None
    # A record that also propagates is there twice, once for each logger.
    records = {id(record): record for record in caplog.records}
    assert [record.args for record in records.values()] == [("LookupError",)]
    assert guard.breaker.reason == "exception: LookupError, after a fault"
    engine.step()
    assert is_vllms()
    engine.run(3000)
    assert not scheduler.requests


@pytest.mark.parametrize("number", [math.inf, 2.5, -3, 10**30, "x", None, True], ids=str)
@pytest.mark.parametrize("mode", ["act", "shadow"])
def test_the_first_reserve_is_checked_too(engine, advisor, number, mode):
    engine.sequences = lambda: ([], [])
    advisor.answers = {"reserve": number}
    guard = guarded(engine, advisor, mode)
    assert guard.reserve() == 0
    assert guard.breaker.faults == {"exception": 0, "hang": 0, "nonsense": 1, "slow": 0}
    assert not guard.acting


@pytest.mark.parametrize("growth", [math.nan, -1, "x"])
def test_what_is_withheld_is_checked_too(engine, advisor, growth):
    advisor.growth = lambda: growth
    guard = guarded(engine, advisor)
    assert guard.growth() == 0
    assert guard.breaker.faults["nonsense"] == 1


def test_numbers_of_numpy_are_numbers():
    advisor = Advice(
        limits_admission=True,
        reserve=lambda: np.int64(2),
        admit_limit=lambda running, *_: np.uint16(1),
    )
    engine = Advised(advisor).finish(12)
    assert engine.breaker.state == "closed"
    assert engine.advisor.acting
    assert type(engine.advisor.reserve()) is int


@pytest.mark.parametrize("limits", [False, True])
def test_a_priority_queue_keeps_its_order(limits):
    """Nothing is asked about orders; admission is still limited, by a queue with places."""
    asked = []

    def limit(running, waiting, free_blocks):
        asked.append([waiting[place].id for place in range(len(waiting))])
        return min(len(waiting), 3)

    advisor = Advice(
        limits_admission=limits,
        order=raises(ZeroDivisionError()),
        victims=raises(ZeroDivisionError()),
        admit_limit=limit,
    )
    settings = replace(SMALL, blocks=14, max_num_seqs=8, policy="priority")
    engine, stock = Advised(advisor, settings), Engine(settings)
    engine.finish()
    for i in range(30):
        stock.add(60 if i % 3 == 0 else 6, prompt=30)
    stock.run()
    assert engine.breaker.state == "closed"
    assert engine.advisor.acting
    assert engine.preempted
    assert bool(asked) == limits
    if limits:
        assert asked[0] == [f"r{i}" for i in range(30)]
    else:
        assert engine.schedule == stock.schedule
    engine.advisor.set_mode("off")
    engine.finish(6)
    assert engine.scheduler.advisor is not None
    assert engine.breaker.state == "closed"
