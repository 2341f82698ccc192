"""Each function of ours that runs in a step raises, one at a time: none of it reaches the engine.

The functions are not listed here: a traced run says which are reached.
"""

import gc
import itertools
import sys
import threading
from pathlib import Path
from types import FunctionType, SimpleNamespace

import pytest
from engine_help import Engine, adds_up, fitted

import sagellm_lifetime
from sagellm_lifetime import create_predictor
from sagellm_lifetime.replay import engine as engine_of_replay
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.vllm import guard as guarded

OURS = str(Path(sagellm_lifetime.__file__).parent)
SMALL = EngineSettings(blocks=14, max_num_seqs=8, max_num_batched_tokens=128, prefix_caching=True)
HOOKS = {
    "LifetimeMixin.schedule",
    "LifetimeMixin.add_request",
    "LifetimeMixin._preempt_request",
    "LifetimeMixin._free_request",
    "LifetimeMixin.update_from_output",
    "LifetimeMixin._handle_stopped_request",
    "LifetimeMixin._update_request_as_session",
    "LifetimeMixin._guarded",
    "LifetimeMixin._give_up",
    "_Worker.run",
    "SchedulerNames.max_num_active_reqs",  # another name of one attribute of vLLM's
}
"""What vLLM calls, and what catches (one of them on a thread): these are the guard itself."""


class Faults:
    """Functions of ours that raise, whoever calls them."""

    def __init__(self):
        self.hits = 0
        self.changed = []
        self._functions = {}

    def among(self, codes):
        """Those that a function there is has; the others (of comprehensions) go with it."""
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__ in codes:
                self._functions.setdefault(each.__code__, []).append(each)
        return [code for code in codes if code in self._functions]

    def inject(self, code, *, once=False):
        self.hits, self._once = 0, once
        for function in self._functions[code]:
            self.changed.append((function, function.__code__))
            function.__code__ = raising(len(code.co_freevars))

    def hit(self):
        self.hits += 1
        if self._once:
            self.mend()
        raise LookupError("injected")

    def mend(self):
        while self.changed:
            function, code = self.changed.pop()
            function.__code__ = code


def raising(count):
    """The code of a function with so many free variables, which raises."""
    names = [f"v{i}" for i in range(count)]
    lines = [
        "def outer():",
        *(f"    {name} = None" for name in names),
        "    def raiser(*args, **kwargs):",
        f"        [{', '.join(names)}]",
        "        import sys",
        "        sys.modules['injected_faults'].hit()",
        "    return raiser",
    ]
    made = {}
    exec("\n".join(lines), made)
    return made["outer"]().__code__


@pytest.fixture
def faults(monkeypatch):
    made = Faults()
    monkeypatch.setitem(sys.modules, "injected_faults", made)
    yield made
    made.mend()


def load(engine):
    """Some of everything: a queue, preemptions, aborts, a session's turns, growing answers."""
    for i in range(12):
        long = i % 3 == 0
        prompt = [i % 4] * 40 if i % 2 else 30
        engine.add(60 if long else 6, prompt=prompt, extra_args={"client_id": "ab"[long]})
        if i == 5:
            engine.add(3, name="session", resumable=True)
        if i == 9:
            engine.abort("r1", "r6")
            if "session" in engine.scheduler.requests:
                engine.add(5, name="session", resumable=True)
        if i % 4 == 3:
            engine.run(6)
    engine.run(30)


def end(engine):
    """Let some end, and abort the others."""
    engine.run(5)
    engine.abort(*engine.scheduler.requests)
    engine.step()


@pytest.fixture
def made(setting, tmp_path, monkeypatch):
    """Make an engine that is switched on; every one has its own record and its own predictor."""
    monkeypatch.setattr(engine_of_replay, "check_interface", lambda: None)  # once is enough
    mode, policy = setting
    learned, numbers = fitted().state(), itertools.count()

    def make():
        predictor = create_predictor("survival")
        predictor.restore(learned)
        engine = Engine(SMALL).predict_with(
            predictor,
            mode=mode,
            policy=policy,
            limit_s=60.0,
            record=str(tmp_path / str(next(numbers))),
        )
        from sagellm_lifetime.vllm.logit_signals import LogitSignals  # imports vLLM, so not before

        lifetime = engine.advisor
        engine.scheduler.request_events.reads_tokens = True
        engine.scheduler.request_events.signals = LogitSignals()
        engine.clock = SimpleNamespace(now=0.0)
        lifetime.breaker._clock = lambda: engine.clock.now
        return engine

    return make


def reached(engine):
    """The code of ours that runs while the engine is at work, in any thread that it waits for."""
    found = set()

    def look(frame, event, _):
        if frame.f_code.co_filename.startswith(OURS):
            found.add(frame.f_code)

    threading.settrace(look)
    sys.settrace(look)
    try:
        load(engine)
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return sorted(
        # What is of the replay is the tests' engine.
        (c for c in found if c.co_qualname not in HOOKS and "/replay/" not in c.co_filename),
        key=lambda code: (code.co_filename, code.co_firstlineno),
    )


SETTINGS = [
    ("shadow", "lifetime"),
    ("shadow", "reserve"),
    ("act", "lifetime"),
    ("act", "reserve"),
    ("off", "lifetime"),
]


@pytest.fixture(params=SETTINGS, ids="-".join)
def setting(request, monkeypatch):
    # Several events at a time, and one at a time.
    monkeypatch.setattr(guarded, "_MANY", 0 if request.param[1] == "lifetime" else 32)
    return request.param


def more(engine):
    """Some requests come, some of which have to wait, while others run."""
    for i in range(6):
        engine.add(20 + i, prompt=[i] * 40)
    engine.run(8)


def is_vllms_own(engine, name):
    """Nothing is left of ours in the scheduler; ``name`` is the function that raises."""
    scheduler = engine.scheduler
    assert scheduler.kv_cache_manager.watermark_blocks == 0, name
    assert scheduler.max_num_active_reqs == SMALL.max_num_seqs, name
    if "restore" not in name and "as_vllm" not in name:  # nobody else puts them in order
        # Before vLLM 0.31 a session that continues, and holds memory, waits in the same queue.
        queue = [each for each in scheduler.waiting if not each.num_computed_tokens]
        arrivals = [each.arrival_time for each in queue]
        assert arrivals == sorted(arrivals), name


def test_none_that_raises_for_good_reaches_the_engine(setting, made, faults):
    mode = setting[0]
    stock = Engine(SMALL)
    load(stock)
    assert len(stock.preempted) > 2
    codes = faults.among(reached(made()))
    assert len(codes) > (10 if mode == "off" else 150)
    opened = cached = 0
    for code in codes:
        engine = made()
        name = f"{code.co_filename}: {code.co_qualname}"
        faults.inject(code)
        load(engine)
        lifetime = engine.advisor
        cached += not faults.hits
        if mode != "act":
            assert engine.schedule == stock.schedule, name
        if lifetime is None or not lifetime.breaker.allows:
            opened += 1
            assert lifetime is None or not lifetime.acting, name
            is_vllms_own(engine, name)
        end(engine)
        assert not engine.scheduler.requests, name
        faults.mend()
        engine.scheduler.shutdown()
    assert opened > len(codes) // 2
    assert cached < 10  # their answers are kept from an earlier engine


def test_what_handles_a_fault_may_raise_too(setting, made, faults):
    from sagellm_lifetime.vllm.guard import GuardedAdvisor

    first = GuardedAdvisor.account_step.__code__
    usual = set(reached(made()))
    broken = made()
    faults.among([first])
    faults.inject(first)
    codes = faults.among([code for code in reached(broken) if code not in usual])
    faults.mend()
    assert {"GuardedAdvisor.failed", "CircuitBreaker.fault", "Override.give_back"} <= {
        code.co_qualname for code in [*codes, *usual]
    }
    assert len(codes) > 3
    for code in codes:
        engine = made()
        load(engine)
        for each in (first, code):
            faults.inject(each)
        more(engine)
        name = f"{code.co_filename}: {code.co_qualname}"
        assert faults.hits, name
        is_vllms_own(engine, name)
        end(engine)
        assert not engine.scheduler.requests, name
        faults.mend()
        engine.scheduler.shutdown()


@pytest.mark.parametrize("setting", SETTINGS[::2][:2], ids="-".join, indirect=True)
def test_after_one_fault_it_comes_back(setting, made, faults):
    codes = faults.among(reached(made()))
    opened = 0
    for code in codes:
        engine = made()
        lifetime = engine.advisor
        name = f"{code.co_filename}: {code.co_qualname}"
        faults.inject(code, once=True)
        load(engine)
        faults.mend()
        opened += sum(lifetime.breaker.faults.values())
        engine.clock.now += 31.0
        more(engine)
        assert engine.advisor is lifetime, name
        assert lifetime.breaker.state in ("closed", "trial"), name
        assert lifetime.acting == (setting[0] == "act"), name
        assert adds_up(engine.stats()), name
        end(engine)
        lifetime.flush()
        stats = engine.stats()
        assert adds_up(stats), name
        assert stats["running"] == 0, name
        engine.scheduler.shutdown()
    assert opened > len(codes) // 2
