"""What ``act`` did: counted against vLLM's own order, and never less than before."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from engine_help import SMALL, Engine, fitted, mixed_load

from sagellm_lifetime.policies.events import Arrived, Finished
from sagellm_lifetime.vllm.decision_counts import DecisionCounts


def counting(*names, running=(), acts=True):
    counts = DecisionCounts()
    counts.restart([], running, acts=acts)
    arrive(counts, *names)
    return counts


def arrive(counts, *names, at=0.0):
    for name in names:
        view = SimpleNamespace(id=name, arrival=at, preemptions=0)
        counts.on_events([Arrived(view, at)])


def end(counts, name, at=9.0):
    counts.on_events([Finished(name, 1, 1.0, "stop", at)])


def test_arrival_order_overtakes_nobody():
    counts = counting("a", "b", "c")
    counts.admitted(["a", "b"], 1.0)
    counts.admitted(["c"], 2.0)
    assert counts.act.admissions == 3
    assert counts.act.admissions_reordered == counts.act.overtaken == 0


def test_those_admitted_together_do_not_overtake_each_other():
    counts = counting("a", "b", "c")
    counts.admitted(["c", "a", "b"], 1.0)
    assert counts.act.admissions_reordered == counts.act.overtaken == 0


def test_one_is_overtaken_once_however_many_go_before_it():
    counts = counting("a", "b", "c", "d")
    counts.admitted(["c"], 1.0)  # before a and b
    counts.admitted(["d"], 2.0)
    assert (counts.act.admissions_reordered, counts.act.overtaken) == (2, 2)
    counts.admitted(["a"], 4.0)
    end(counts, "b", at=6.0)  # aborted while it waits
    assert counts.act.overtaken_seconds == 3.0 + 5.0
    assert counts.act.longest_overtaken_seconds == 5.0


def test_a_preempted_one_is_in_front_of_the_queue():
    counts = counting("a", running=["x", "y"])
    counts.preempted("y", 40)
    counts.admitted(["a"], 1.0)
    assert counts.act.overtaken == 1
    counts.admitted(["y"], 3.0, cached={"y": 16})
    assert counts.act.overtaken_seconds == 2.0
    assert counts.act.recomputed_tokens == 24


def test_one_that_the_engine_passes_over_is_not_overtaken():
    counts = counting("a", "b")
    counts.admitted(["b"], 1.0, deferred={"a"})
    assert counts.act.admissions_reordered == counts.act.overtaken == 0


def test_the_engines_victim_is_the_one_admitted_last():
    counts = counting(running=["x", "y", "z"])
    counts.preempted("z", 10)
    counts.preempted("x", 10)
    assert (counts.act.preemptions, counts.act.preemptions_differing) == (2, 1)


def test_shadow_counts_costs_and_no_decisions():
    counts = counting("a", running=["x"], acts=False)
    counts.preempted("x", 30)
    counts.admitted(["a"], 1.0)
    counts.admitted(["x"], 2.0, cached={"x": 0})
    counts.held_blocks = 5
    counts.step(2.0)
    assert counts.shadow.recomputed_tokens == 30
    assert counts.shadow.held_back_block_seconds == 10.0
    assert not any(counts.snapshot()["act"].values())


def test_what_is_lost_counts_where_it_was_lost():
    counts = counting(running=["x"], acts=False)
    counts.preempted("x", 30)
    counts.stop()
    counts.restart([], [], acts=True)
    counts.admitted(["x"], 2.0)
    assert counts.shadow.recomputed_tokens == counts.act.recomputed_tokens == 0


def numbers(stats):
    found = stats["decisions"]
    return [*found["admission"], *found["preemption"], *found["act"].values(),
            *found["shadow"].values()]  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_an_engine_that_acts_counts_it_all_and_nothing_falls(asynchronous):
    engine = Engine(asynchronous=asynchronous).predict_with(fitted(), mode="act")
    before = numbers(engine.stats())
    assert not any(before)
    mixed_load(engine, n=60, steps=2)
    for _ in range(2000):
        if not engine.scheduler.requests:
            break
        engine.step()
        now = numbers(engine.stats())
        assert all(new >= old for new, old in zip(now, before, strict=True))
        before = now
    act = engine.stats()["decisions"]["act"]
    assert act["preemptions"] == len(engine.preempted) > 0
    assert act["admissions"] == 60 + act["preemptions"]
    assert 0 < act["admissions_reordered"] < act["admissions"]
    assert 0 < act["overtaken"] <= act["admissions"]
    assert 0 < act["longest_overtaken_seconds"] <= act["overtaken_seconds"]
    assert act["recomputed_tokens"] > 0
    assert act["held_back_block_seconds"] > 0
    assert engine.stats()["decisions"]["admission"] == [0, 0]


def test_recomputed_tokens_are_what_vllm_computes_again():
    engine = Engine().predict_with(fitted(), mode="shadow")
    mixed_load(engine).run()
    scheduled = sum(tokens for step in engine.schedule for _, tokens in step)
    lengths = engine.lengths.values()
    needed = 30 * len(lengths) + sum(length - 1 for length in lengths)
    assert engine.preempted
    assert engine.stats()["decisions"]["shadow"]["recomputed_tokens"] == scheduled - needed > 0


def test_a_plan_in_arrival_order_overtakes_nobody():
    settings = replace(SMALL, max_num_seqs=4)
    engine = Engine(settings).predict_with(fitted(), mode="act", policy="reserve")
    mixed_load(engine).run()
    act = engine.stats()["decisions"]["act"]
    assert act["admissions"] >= 40
    assert act["admissions_reordered"] == act["overtaken"] == act["preemptions_differing"] == 0
