"""Comparisons in shadow mode cost time: there are only so many of them, and they stand for all."""

from engine_help import Engine, fitted, mixed_load

from sagellm_lifetime.policies.plan_advisor import PlanAdvisor
from sagellm_lifetime.vllm import agreement
from sagellm_lifetime.vllm.agreement import Agreement


def test_all_are_compared_while_there_are_few():
    made = Agreement()
    for step in range(0, 32_000, 32):
        assert made.is_due(3, step)
        made.record(1, 3)
    assert (made.made, made.differing) == (3000, 1000)


def test_when_there_are_many_some_stand_for_all():
    made = Agreement()
    compared = 0
    for step in range(64_000):
        if made.is_due(1, step):
            compared += 1
            made.record(compared % 4 == 0, 1)
    assert compared == 32 + 64_000 // 32 - 1
    assert made.made == 64_000
    assert 0.245 < made.differing / made.made < 0.255


def test_what_was_saved_up_is_spent_in_a_row():
    made = Agreement()
    assert sum(made.is_due(1, 1_000_000) for _ in range(100)) == 32
    assert not made.is_due(1, 1_000_031)
    assert made.is_due(1, 1_000_064)


def test_no_more_than_all_can_differ():
    made = Agreement()
    assert made.is_due(2, 0)
    made.record(3, 2)  # another in place of each, and one of them none at all
    assert made.differing == 2


def test_nobody_stands_for_those_before_an_interruption():
    made = Agreement()
    assert [made.is_due(1, 0) for _ in range(40)].count(False) == 8
    made.interrupt()
    assert made.is_due(1, 32)
    made.record(1, 1)
    assert (made.made, made.differing) == (41, 1)


def test_the_engine_asks_no_more_than_it_can_afford(monkeypatch):
    monkeypatch.setattr(agreement, "_AT_ONCE", 2)
    monkeypatch.setattr(agreement, "_EVERY", 16)
    asked = {"order": 0, "victims": 0}

    def counted(name):
        real = getattr(PlanAdvisor, name)

        def ask(*args):
            asked[name] += 1
            return real(*args)

        monkeypatch.setattr(PlanAdvisor, name, ask)

    for name in asked:
        counted(name)
    engine = mixed_load(Engine().predict_with(fitted(), mode="shadow"), n=60, steps=2).run()
    most = 2 + engine.advisor.steps / 16
    decisions = engine.advisor.agreement
    for name, kind in (("order", decisions.admissions), ("victims", decisions.preemptions)):
        assert 0 < asked[name] <= most < kind.made


def test_while_nobody_can_be_asked_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(agreement, "_AT_ONCE", 1)
    monkeypatch.setattr(agreement, "_EVERY", 1_000_000)
    engine, now = Engine().predict_with(fitted(), mode="shadow", pause_s=30.0), [0.0]
    lifetime = engine.advisor
    lifetime.breaker._clock = lambda: now[0]
    preemptions = lifetime.agreement.preemptions
    mixed_load(engine).run()
    assert preemptions._skipped

    def broken():
        raise ValueError

    lifetime.breaker.call(None, broken)
    before, allowed = len(engine.preempted), preemptions._allowed
    mixed_load(engine).run()
    assert len(engine.preempted) > before, "memory was short during the outage"
    assert (preemptions.made, preemptions._allowed) == (before, allowed)
    assert not preemptions._skipped


def test_a_comparison_that_goes_wrong_is_stood_for_by_nobody(monkeypatch):
    engine = Engine().predict_with(fitted(), mode="shadow")
    preemptions = engine.advisor.agreement.preemptions
    preemptions._skipped = 5

    def broken(*_):
        raise ValueError

    monkeypatch.setattr(PlanAdvisor, "victims", broken)
    mixed_load(engine).run()
    assert engine.advisor.breaker.faults["exception"] == 1
    assert not preemptions._skipped
    assert preemptions.made == 1 < len(engine.preempted)
