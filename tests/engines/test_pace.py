"""Seconds per step: a pause, a stalled process and one slow step leave them alone."""

import time

import numpy as np
import pytest
from engine_help import Engine, fitted

from sagellm_lifetime.policies.step_pace import OUTLIER, StepPace
from sagellm_lifetime.vllm.circuit_breaker import CircuitBreaker
from sagellm_lifetime.vllm.step_time import StepClock

PAUSE_S = 300.0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Steps:
    """Steps of an engine that computes ``WORK`` seconds in each, and is back after ``GAP``."""

    WORK, GAP = 0.03, 0.002

    def __init__(self):
        self.clock = Clock()
        self.clock.now = 1000.0
        self.measured = StepClock(self.clock)
        self.found = []

    def begin(self):
        self.found.append(self.measured.begin())

    def take(self, tokens=8):
        self.clock.now += self.WORK
        self.measured.output_processed(tokens)
        self.clock.now += self.GAP


def test_a_step_lasts_until_the_next_begins():
    steps = Steps()
    for _ in range(4):
        steps.begin()
        steps.take()
    assert steps.found == [None, *[pytest.approx(0.032)] * 3]


def test_a_pause_after_a_step_counts_for_its_work_at_most():
    steps = Steps()
    steps.begin()
    steps.take()
    steps.clock.now += PAUSE_S
    steps.begin()
    steps.take()
    steps.begin()
    assert steps.found == [None, pytest.approx(0.06), pytest.approx(0.032)]


def test_steps_in_which_nothing_is_scheduled_are_none():
    """A paused scheduler is asked whenever a finished request is to be told to the workers."""
    steps = Steps()
    steps.begin()
    steps.take()
    for _ in range(3):
        steps.begin()
        steps.take(tokens=0)
        steps.clock.now += PAUSE_S
    steps.begin()
    steps.take()
    steps.begin()
    assert steps.found == [None, pytest.approx(0.032), None, None, None, pytest.approx(0.032)]


def test_with_asynchronous_scheduling_a_step_is_as_long_as_the_next_takes_to_begin():
    steps = Steps()
    steps.begin()
    for _ in range(3):
        steps.begin()
        steps.take()
    steps.take()  # a pause begins: what is under way is taken, and nothing is scheduled
    steps.clock.now += PAUSE_S
    steps.begin()
    steps.begin()
    expected = [0.0, 0.032, 0.032, 2 * 0.062]
    assert steps.found == [None, *map(pytest.approx, expected), 0.0]


def test_an_output_that_nobody_saw_begin_is_harmless():
    steps = Steps()
    steps.take()
    steps.begin()
    steps.take()
    steps.begin()
    assert steps.found == [None, pytest.approx(0.032)]


def settled(steps=1000, seconds=0.02):
    pace = StepPace()
    for _ in range(steps):
        pace.learn(seconds)
    return pace


@pytest.mark.parametrize("outlier", [PAUSE_S, 1e9])
def test_one_slow_step_moves_the_mean_by_a_fifth_at_most(outlier):
    pace = settled()
    assert pace.learn(outlier) <= 1.2 * 0.02
    for _ in range(200):
        pace.learn(0.02)
    assert pace.seconds < 1.15 * 0.02


@pytest.mark.parametrize("at", [0, 5, 60])
def test_a_slow_start_is_over_soon(at):
    pace = StepPace()
    for i in range(200):
        pace.learn(20.0 if i == at else 0.02)
    assert pace.seconds < 2.0 * 0.02


def test_where_every_step_is_slower_it_follows():
    pace = settled()
    for _ in range(100):
        pace.learn(50.0)
    assert pace.seconds > 5.0


def test_prefills_are_no_outliers():
    durations = np.random.default_rng(0).uniform(0.01, 0.02, 64)
    durations[::8] *= 50.0
    pace = StepPace()
    for seconds in durations:
        pace.learn(seconds)
    assert pace.seconds == pytest.approx(durations.mean())


def test_a_clock_that_is_set_back_teaches_nothing():
    pace = settled()
    assert pace.learn(-3600.0) == pytest.approx(0.02)


def test_steps_that_take_no_time_do_not_hold_it_at_none():
    pace = settled(seconds=0.0)
    for _ in range(2000):
        pace.learn(0.02)
    assert pace.seconds == pytest.approx(0.02, rel=0.1)


def test_a_stalled_step_does_not_raise_the_budget_for_long():
    breaker = CircuitBreaker(share=0.05, floor_s=0.001)
    for _ in range(100):
        breaker.record_steps(1, 0.02)
    breaker.record_steps(1, PAUSE_S)
    assert breaker._pace <= (1 + OUTLIER / 32) * 0.02
    for _ in range(100):
        breaker.record_steps(1, 0.02)
    assert breaker._pace < 1.2 * 0.02


@pytest.fixture
def busy():
    """An engine in which sixteen run and more wait, after some hundreds of steps of 10 ms."""
    engine = Engine().predict_with(fitted(), mode="act")
    steps(engine, 300)
    return engine


def steps(engine, n):
    for _ in range(n):
        while len(engine.scheduler.requests) < 24:
            engine.add(120)
        engine.step()
    engine.advisor.flush()


def pace_of(engine):
    return engine.advisor._advisor._pace.seconds


def test_a_pause_of_the_engine_is_no_step(busy):
    before = pace_of(busy)
    assert before == pytest.approx(0.01, rel=0.2)
    lifetime = busy.advisor
    counted, seconds = lifetime.steps, lifetime.seconds
    started = time.perf_counter()
    busy.now += PAUSE_S
    time.sleep(1.0)
    steps(busy, 2)
    assert lifetime.steps == counted + 2
    assert lifetime.seconds - seconds < time.perf_counter() - started - 0.9
    assert pace_of(busy) == pytest.approx(before, rel=0.05)


def test_a_paused_scheduler_that_is_asked_makes_no_steps(busy):
    from vllm.v1.core.sched.interface import PauseState

    before, counted = pace_of(busy), busy.advisor.steps
    busy.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    for _ in range(10):
        busy.step()
        assert not busy.schedule[-1]
        busy.now += PAUSE_S
    busy.scheduler.set_pause_state(PauseState.UNPAUSED)
    steps(busy, 5)
    assert busy.advisor.steps == counted + 1 + 4  # the last before the pause, and those after
    assert pace_of(busy) == pytest.approx(before, rel=0.05)


def test_a_step_that_stalls_is_forgotten_soon(busy):
    before = pace_of(busy)
    scheduler = busy.scheduler
    out = scheduler.schedule()
    busy.now += PAUSE_S  # between schedule and update: the process was stopped
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(out.num_scheduled_tokens)
    index = {name: i for i, name in enumerate(names)}
    scheduler.update_from_output(out, ModelRunnerOutput(names, index, [[] for _ in names]))
    steps(busy, 2)
    assert pace_of(busy) < 1.5 * before


def test_outputs_are_counted_while_it_is_off_too(busy):
    busy.advisor.set_mode("off")
    steps(busy, 3)
    seconds = busy.advisor.seconds
    time.sleep(1.0)
    steps(busy, 2)
    assert busy.advisor.seconds - seconds < 0.9
