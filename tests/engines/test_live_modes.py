"""Off, shadow, act: what they touch, what they count, and switching between them."""

import numpy as np
import pytest
from engine_help import SMALL, Engine, adds_up, fitted, mixed_load

from sagellm_lifetime.policies import plan_advisor
from sagellm_lifetime.policies.headroom import MOST
from sagellm_lifetime.vllm import guard
from sagellm_lifetime.vllm.settings import LiveSettings


def stock(asynchronous=False, settings=SMALL):
    Engine.import_vllm()
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    return Engine(settings, scheduler_cls=AsyncScheduler if asynchronous else Scheduler)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["lifetime", "reserve", "sjf"])
def test_shadow_changes_nothing_and_counts_what_it_would_have_changed(asynchronous, policy):
    theirs = mixed_load(stock(asynchronous)).run()
    ours = Engine(asynchronous=asynchronous).predict_with(fitted(), mode="shadow", policy=policy)
    mixed_load(ours).run()
    assert ours.schedule == theirs.schedule
    assert ours.preempted == theirs.preempted != []
    stats = ours.stats()
    assert stats["total_predictions"] == stats["completions"] == 40
    admissions, differing = stats["decisions"]["admission"]
    preemptions, others = stats["decisions"]["preemption"]
    assert preemptions == len(ours.preempted)
    assert admissions == 40 + preemptions
    assert 0 < differing <= admissions
    assert (others > 0) == (policy == "lifetime")
    assert stats["breaker"]["faults"] == dict.fromkeys(stats["breaker"]["faults"], 0)


def test_off_changes_nothing_and_predicts_nothing():
    theirs = mixed_load(stock()).run()
    ours = mixed_load(Engine().predict_with(fitted(), mode="off")).run()
    assert ours.schedule == theirs.schedule
    stats = ours.stats()
    assert stats["total_predictions"] == 0
    assert stats["unpredicted"] == 40


def test_without_settings_it_is_vllms():
    assert mixed_load(Engine()).run().schedule == mixed_load(stock()).run().schedule


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_act_lets_the_short_go_first(asynchronous):
    mean = {}
    for mode in ("shadow", "act"):
        engine = Engine(asynchronous=asynchronous).predict_with(fitted(), mode=mode)
        ends = {}
        ended = engine.scheduler.request_events.finished
        engine.scheduler.request_events.finished = lambda r, at, e=engine, d=ends, f=ended: (
            d.update({r.request_id: e.now}),
            f(r, at),
        )[1]
        mixed_load(engine, n=60, steps=2).run()
        assert len(ends) == 60
        mean[mode] = sum(ends.values()) / 60 - 1000.0
    assert mean["act"] < 0.8 * mean["shadow"]


def test_switched_while_running_it_knows_who_came_before():
    engine = Engine().predict_with(fitted(), mode="off")
    mixed_load(engine, n=24, steps=1)
    assert engine.scheduler.waiting
    assert engine.scheduler.running
    there = len(engine.scheduler.requests)
    lifetime = engine.advisor
    lifetime.set_mode("act")
    engine.step()
    assert lifetime.acting
    assert engine.stats()["total_predictions"] == there
    mixed_load(engine, n=8, steps=2)
    lifetime.set_mode("shadow")
    engine.step()
    assert not lifetime.acting
    arrivals = [request.arrival_time for request in engine.scheduler.waiting]
    assert arrivals == sorted(arrivals)
    mixed_load(engine, n=8, steps=2)
    lifetime.set_mode("off")
    engine.step()
    mixed_load(engine, n=8, steps=2)
    engine.abort(engine.add(5).request_id)
    lifetime.set_mode("act")
    engine.run()
    stats = engine.stats()
    assert adds_up(stats)
    assert stats["running"] == 0
    assert (stats["completions"], stats["unpredicted"]) == (48, 1)
    assert not lifetime._forecaster.predictor.get_metrics()["running"]
    assert not engine.scheduler.requests


@pytest.mark.parametrize("policy", ["lifetime", "reserve"])
def test_a_long_queue_is_got_to_know_in_pieces(policy, monkeypatch):
    def switched(piece):
        for module in (guard, plan_advisor):
            monkeypatch.setattr(module, "PIECE", piece)
        predictor, asked = fitted(), []
        for name in ("predict_batch", "distributions"):
            real = getattr(predictor, name)
            monkeypatch.setattr(
                predictor, name, lambda of, *a, r=real: (asked.append(len(of)), r(of, *a))[1]
            )
        engine = Engine().predict_with(predictor, mode="off", policy=policy)
        mixed_load(engine, n=60, steps=1)
        assert len(engine.scheduler.waiting) > 24
        asked.clear()
        engine.advisor.set_mode("act")
        for _ in range(16):
            engine.step()
        return engine, max(asked)

    whole, most = switched(1000)
    assert most > 24
    pieces, most = switched(8)
    assert most <= len(pieces.scheduler.running) + 8
    assert pieces.run().schedule == whole.run().schedule
    assert pieces.preempted == whole.preempted
    stats = pieces.stats()
    assert (stats["completions"] + stats["unpredicted"], stats["running"]) == (60, 0)
    assert not pieces.advisor._advisor._records


def crowd(engine):
    """More than can run, and time enough to see that they wait."""
    mixed_load(engine, n=40, steps=1)
    for _ in range(10):
        engine.step()


def test_the_watermark_is_kept_while_it_acts_and_given_back():
    engine = Engine().predict_with(fitted(), mode="act", watermark=0.1)
    manager = engine.scheduler.kv_cache_manager
    crowd(engine)
    assert manager.watermark_blocks >= 6
    engine.advisor.set_mode("off")
    engine.run()
    assert manager.watermark_blocks == 0


def test_admission_leaves_more_free_where_running_sequences_would_outgrow_it():
    engine = Engine().predict_with(fitted(), mode="act")
    manager = engine.scheduler.kv_cache_manager
    mixed_load(engine, n=40, steps=2)
    least = round(0.05 * manager.block_pool.num_gpu_blocks)
    assert least < manager.watermark_blocks <= round(MOST * manager.block_pool.num_gpu_blocks)
    engine.advisor.set_mode("shadow")
    engine.step()
    assert manager.watermark_blocks == 0
    engine.run()
    assert manager.watermark_blocks == 0


def test_while_hardly_anybody_waits_nothing_is_left_free():
    engine = Engine().predict_with(fitted(), mode="act", watermark=0.1)
    manager = engine.scheduler.kv_cache_manager
    for _ in range(40):
        engine.add(30)
        for _ in range(20):
            engine.step()
    assert manager.watermark_blocks <= 1
    crowd(engine)
    assert manager.watermark_blocks >= 6
    engine.run()


def outgrown(engine):
    """All run, and outgrow the memory while nobody waits."""
    for i in range(8):
        engine.add(190, prompt=30, extra_args={"client_id": "short" if i < 4 else "long"})
    while not engine.preempted:
        engine.step()
    return engine.preempted[0]


def test_while_nobody_waits_the_victim_is_vllms():
    ours = Engine().predict_with(fitted(), mode="act")
    assert outgrown(ours) == outgrown(stock())
    ours.run()
    assert ours.stats()["completions"] == 8


def test_under_vllms_priorities_it_never_acts(caplog):
    from dataclasses import replace

    engine = Engine(replace(SMALL, policy="priority")).predict_with(fitted(), mode="act")
    theirs = mixed_load(stock(settings=replace(SMALL, policy="priority"))).run()
    mixed_load(engine).run()
    assert engine.schedule == theirs.schedule
    engine.advisor.set_mode("act")
    stats = engine.stats()
    assert stats["mode"] == "shadow"
    assert stats["completions"] == 40
    assert "keeps an order of its own" in engine.stats()["cannot_act"]


@pytest.mark.parametrize("doubt", [0.0, 0.5])
def test_confidence_is_asked_for_where_there_is_a_threshold(doubt):
    engine = Engine().predict_with(fitted(), mode="act", min_confidence=doubt)
    engine.add(30)
    engine.step()
    (name,) = engine.scheduler.requests
    confidence = engine.advisor._forecaster.forecast([name], np.array([0])).confidence
    assert (confidence.item() < 1.0) == (doubt > 0)
    mixed_load(engine).run()
    assert engine.stats()["completions"] == 41
    assert engine.advisor.breaker.state == "closed"


def test_settings_come_with_vllms_configuration():
    said = LiveSettings(mode="act", learn=True, state="/s").json()
    assert said == {"mode": "act", "learn": True, "state": "/s"}
    assert LiveSettings.of(said) == LiveSettings(mode="act", learn=True, state="/s")
    with pytest.raises(ValueError, match="min_confidence"):
        LiveSettings(min_confidence=1.5)
    for wrong in ({"mode": "on"}, {"policy": "best"}, {"colour": "red"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values())) + "|colour"):
            LiveSettings.of(wrong)
