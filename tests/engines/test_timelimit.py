"""A call that takes too long is ended; signals, handlers and timers of others stay theirs."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from sagellm_lifetime.vllm import time_budget as timelimit
from sagellm_lifetime.vllm.circuit_breaker import CircuitBreaker
from sagellm_lifetime.vllm.time_budget import Hang, TimeLimit


@pytest.fixture(autouse=True)
def alarm():
    """Handler and timer as they were before; the test begins with the system's."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def rung(seconds, calls):
    """How often a handler of the caller's is called when an alarm of so many seconds is set."""
    rings = []
    signal.signal(signal.SIGALRM, lambda *_: rings.append(time.monotonic()))
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    while time.monotonic() < started + 2 * seconds:
        calls()
    return [ring - started for ring in rings]


def test_a_callers_alarm_fires_while_calls_are_made():
    limit = TimeLimit(5.0)
    limit(int)  # before the caller has one
    (at,) = rung(0.3, lambda: limit(time.sleep, 0.002))
    assert 0.29 < at < 0.5
    assert limit.method == "thread"
    limit.close()


def test_in_the_callers_process_nothing_of_the_signal_is_touched():
    limit = TimeLimit(5.0)
    signal.setitimer(signal.ITIMER_REAL, 50.0, 3.0)
    limit(time.sleep, 0.05)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    left, again = signal.getitimer(signal.ITIMER_REAL)
    assert 49.0 < left < 49.96
    assert again == pytest.approx(3.0)
    limit.close()


@pytest.mark.parametrize("means", ["alarm", "thread", None])
def test_a_call_that_takes_too_long_hangs(means):
    limit = TimeLimit(0.1, means)
    started = time.monotonic()
    with pytest.raises(Hang):
        limit(time.sleep, 5)
    assert time.monotonic() - started < 2.0
    limit.close()


def test_a_call_hangs_beside_a_callers_handler():
    def theirs(*_):
        raise TimeoutError("the caller's")

    for means in ("alarm", "thread", None):
        signal.signal(signal.SIGALRM, theirs)
        limit = TimeLimit(0.1, means)
        with pytest.raises(Hang):
            limit(time.sleep, 5)
        assert signal.getsignal(signal.SIGALRM) is theirs
        limit.close()


def test_a_callers_time_out_ends_the_callers_own_call():
    def theirs(*_):
        raise TimeoutError("the caller's")

    limit = TimeLimit(30.0)
    limit(int)
    signal.signal(signal.SIGALRM, theirs)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(TimeoutError, match="the caller's"):
        limit(time.sleep, 5)
    limit.close()


def test_with_the_alarm_one_that_is_set_later_fires():
    """In an engine core's own process, by a model or a plug-in that runs there."""
    limit = TimeLimit(5.0, "alarm")
    limit(int)
    assert signal.getsignal(signal.SIGALRM) is timelimit._alarm
    (at,) = rung(0.3, lambda: limit(time.sleep, 0.002))
    assert 0.29 < at < 0.5
    assert limit.method == "thread"
    limit.close()


def test_with_the_alarm_a_timer_without_a_handler_keeps_its_default():
    limit = TimeLimit(5.0, "alarm")
    limit(int)
    signal.setitimer(signal.ITIMER_REAL, 50.0, 3.0)
    limit(int)
    assert limit.method == "thread"
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    left, again = signal.getitimer(signal.ITIMER_REAL)
    assert 49.0 < left <= 50.0
    assert again == pytest.approx(3.0)
    limit.close()


def test_with_the_alarm_a_timer_that_is_set_during_a_call_goes_on():
    limit = TimeLimit(5.0, "alarm")
    limit(signal.alarm, 50)
    assert 49.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50.0
    limit(int)
    assert limit.method == "thread"
    assert 49.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50.0
    limit.close()


def test_with_the_alarm_nothing_is_left_after_a_call():
    limit = TimeLimit(5.0, "alarm")
    assert limit(max, 3, 7) == 7
    with pytest.raises(ZeroDivisionError):
        limit(lambda: 1 // 0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert limit.method == "alarm"


def test_an_interruption_that_is_late_hits_nobody():
    breaker = CircuitBreaker(limit_s=0.02)
    breaker._limit = TimeLimit(0.02, "alarm")
    ends = time.perf_counter() + 1.0
    calls = 0
    while time.perf_counter() < ends and breaker.allows:
        breaker.call(None, time.sleep, 0.0197)  # ends about when the timer does
        calls += 1
    time.sleep(0.3)
    assert calls


def _in_a_process(name, queue):
    queue.put((TimeLimit(1.0).method, timelimit.runs_alone()))


@pytest.mark.parametrize(
    ("name", "means"),
    [("EngineCore", "alarm"), ("EngineCore_DP1", "alarm"), ("trainer", "thread")],
)
def test_the_alarm_is_for_engine_cores_in_processes_of_their_own(name, means):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_in_a_process, args=(name, queue), name=name)
    process.start()
    process.join(60)
    assert queue.get() == (means, means == "alarm")
    assert not timelimit.runs_alone()


def test_vllm_names_its_processes_so(vllm):
    import inspect

    from vllm.v1.engine import utils

    source = inspect.getsource(utils)
    assert f'else "{timelimit.ENGINE_CORE}"' in source
    assert f'f"{timelimit.ENGINE_CORE}_DP' in source


def test_a_forked_process_makes_its_calls():
    limit = TimeLimit(2.0, "thread")
    limit(int)
    child = os.fork()
    if not child:
        os._exit(limit(int) == 0 and 7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    limit.close()


def test_what_a_worker_costs_the_processor_is_counted():
    def work():
        ends = time.thread_time() + 0.05
        while time.thread_time() < ends:
            pass

    limit = TimeLimit(5.0, "thread")
    before = limit.thread_time()
    limit(work)
    limit(time.sleep, 0.05)
    assert 0.05 <= limit.thread_time() - before < 0.09
    limit.close()
    assert 0.05 <= limit.thread_time() - before < 0.09


def test_a_script_with_a_real_alarm():
    code = (
        "import signal, time\n"
        "from sagellm_lifetime.vllm.circuit_breaker import CircuitBreaker\n"
        "breaker = CircuitBreaker(limit_s=2.0)\n"
        "breaker.call(None, int)\n"
        "def stop(*_): raise SystemExit(9)\n"
        "signal.signal(signal.SIGALRM, stop)\n"
        "signal.alarm(1)\n"
        "while True:\n"
        "    breaker.call(None, time.sleep, 0.001)\n"
    )
    source = Path(timelimit.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source)}

    def ended(script):
        line = [sys.executable, "-c", script]
        return subprocess.run(line, timeout=60, env=environment, check=False).returncode

    assert ended(code) == 9
    # Without a handler the signal ends the process, as it would without us.
    assert ended(code.replace("signal.signal(signal.SIGALRM, stop)\n", "")) == -signal.SIGALRM


def test_on_another_thread_a_worker_makes_the_calls():
    made = []
    limit = TimeLimit(5.0, "alarm")

    def engine():
        made.append(limit(threading.current_thread).name)

    thread = threading.Thread(target=engine)
    thread.start()
    thread.join(10)
    assert made == ["lifetime-call"]
    limit.close()


class Ring:
    """A handler that is no function."""

    def __call__(self, *_):
        raise LookupError("the caller's")

    def method(self, *_):
        raise LookupError("the caller's")


@pytest.mark.parametrize(
    "handler",
    [Ring(), Ring().method, partial(Ring.method, None)],
    ids=["object", "method", "partial"],
)
def test_what_a_callers_handler_raises_goes_through_the_breaker(handler):
    breaker = CircuitBreaker(limit_s=30.0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(LookupError, match="the caller's"):
        breaker.call(None, time.sleep, 5)
    assert breaker.state == "closed"
    assert breaker.call(0, int, "3") == 3
    breaker.close()


def test_what_the_call_itself_raises_does_not():
    signal.signal(signal.SIGALRM, Ring())
    breaker = CircuitBreaker()
    assert breaker.call(None, int, "x") is None
    assert breaker.reason == "exception: ValueError"
    breaker.close()


def test_a_callers_time_out_goes_through_a_step_and_the_engine_can_go_on(vllm):
    from engine_help import Engine, fitted, mixed_load

    engine = Engine().predict_with(fitted(), mode="act", limit_s=60.0)
    mixed_load(engine, n=12, steps=2)
    begin_step = engine.advisor.begin_step

    def ring(*_):
        signal.raise_signal(signal.SIGALRM)

    signal.signal(signal.SIGALRM, Ring())
    engine.advisor.begin_step = ring
    with pytest.raises(LookupError, match="the caller's"):
        engine.step()
    engine.advisor.begin_step = begin_step
    engine.run()
    assert not engine.scheduler.requests
    assert engine.advisor is not None
