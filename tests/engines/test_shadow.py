"""Comparisons in shadow mode cost time: there are only so many of them, and they stand for all."""

from engine_help import Engine, fitted, mixed_load

from sagellm_lifetime.vllm import shadow
from sagellm_lifetime.vllm.planner import Planner
from sagellm_lifetime.vllm.shadow import Compared


def test_all_are_compared_while_there_are_few():
    made = Compared()
    for step in range(0, 32_000, 32):
        assert made.due(3, step)
        made.would(1, 3)
    assert (made.made, made.differing) == (3000, 1000)


def test_when_there_are_many_some_stand_for_all():
    made = Compared()
    compared = 0
    for step in range(64_000):
        if made.due(1, step):
            compared += 1
            made.would(compared % 4 == 0, 1)
    assert compared == 32 + 64_000 // 32 - 1
    assert made.made == 64_000
    assert 0.245 < made.differing / made.made < 0.255


def test_what_was_saved_up_is_spent_in_a_row():
    made = Compared()
    assert sum(made.due(1, 1_000_000) for _ in range(100)) == 32
    assert not made.due(1, 1_000_031)
    assert made.due(1, 1_000_064)


def test_no_more_than_all_can_differ():
    made = Compared()
    assert made.due(2, 0)
    made.would(3, 2)  # another in place of each, and one of them none at all
    assert made.differing == 2


def test_nobody_stands_for_those_before_an_interruption():
    made = Compared()
    assert [made.due(1, 0) for _ in range(40)].count(False) == 8
    made.interrupted()
    assert made.due(1, 32)
    made.would(1, 1)
    assert (made.made, made.differing) == (41, 1)


def test_the_engine_asks_no_more_than_it_can_afford(monkeypatch):
    monkeypatch.setattr(shadow, "_AT_ONCE", 2)
    monkeypatch.setattr(shadow, "_EVERY", 16)
    asked = {"first": 0, "victims": 0}

    def counted(name):
        real = getattr(Planner, name)

        def ask(*args):
            asked[name] += 1
            return real(*args)

        monkeypatch.setattr(Planner, name, ask)

    for name in asked:
        counted(name)
    engine = mixed_load(Engine().predict_with(fitted(), mode="shadow"), n=60, steps=2).run()
    most = 2 + engine.lifetime.steps / 16
    decisions = engine.lifetime.shadow
    for name, kind in (("first", decisions.admissions), ("victims", decisions.preemptions)):
        assert 0 < asked[name] <= most < kind.made


def test_while_nobody_can_be_asked_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(shadow, "_AT_ONCE", 1)
    monkeypatch.setattr(shadow, "_EVERY", 1_000_000)
    engine, now = Engine().predict_with(fitted(), mode="shadow", pause_s=30.0), [0.0]
    lifetime = engine.lifetime
    lifetime.breaker._clock = lambda: now[0]
    preemptions = lifetime.shadow.preemptions
    mixed_load(engine).run()
    assert preemptions._passed_over

    def broken():
        raise ValueError

    lifetime.breaker.call(None, broken)
    before, allowed = len(engine.preempted), preemptions._allowed
    mixed_load(engine).run()
    assert len(engine.preempted) > before, "memory was short during the outage"
    assert (preemptions.made, preemptions._allowed) == (before, allowed)
    assert not preemptions._passed_over


def test_a_comparison_that_goes_wrong_is_stood_for_by_nobody(monkeypatch):
    engine = Engine().predict_with(fitted(), mode="shadow")
    preemptions = engine.lifetime.shadow.preemptions
    preemptions._passed_over = 5

    def broken(*_):
        raise ValueError

    monkeypatch.setattr(Planner, "victims", broken)
    mixed_load(engine).run()
    assert engine.lifetime.breaker.faults["exception"] == 1
    assert not preemptions._passed_over
    assert preemptions.made == 1 < len(engine.preempted)
