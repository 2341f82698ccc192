"""Every fault a predictor can have: the engine goes on, as vLLM's own, and says why once."""

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from engine_help import Engine, adds_up, fitted, mixed_load

from sagellm_lifetime.predictor import builtin
from sagellm_lifetime.predictor.builtin import SurvivalLifetimePredictor
from sagellm_lifetime.vllm import guard as guarded
from sagellm_lifetime.vllm.circuit_breaker import LOG, CircuitBreaker


class Faulty(SurvivalLifetimePredictor):
    """Goes wrong in one way, once it is told to."""

    wrong = ""

    def predict(self, request):
        result = super().predict(request)
        if self.wrong == "raises":
            raise RuntimeError("broken")
        if self.wrong == "hangs":
            time.sleep(60)
        if self.wrong == "swallows":
            while True:
                try:
                    time.sleep(60)
                except Exception:  # noqa: BLE001  # what a careless predictor does
                    continue
        if self.wrong == "nan":
            return replace(result, confidence=float("nan"))
        if self.wrong == "negative":
            return replace(result, estimated_remaining_tokens=-5)
        return result

    def predict_batch(self, requests):
        return [self.predict(request) for request in requests]

    def distributions(self, sequence_ids, ages):
        batch = super().distributions(sequence_ids, ages)
        if self.wrong == "rows":
            return replace(batch, rows=np.full_like(batch.rows, np.nan))
        if self.wrong == "shape":
            return replace(batch, index=batch.index[:1], ages=batch.ages[:1], caps=batch.caps[:1])
        if self.wrong == "distributions hang":
            time.sleep(60)
        return batch

    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        if self.wrong == "update":
            raise MemoryError
        if self.wrong == "update hangs":
            time.sleep(60)
        super().update(sequence_id, actual_length, actual_time, finish_reason=finish_reason)


FAULTS = {
    "raises": "exception",
    "hangs": "hang",
    "swallows": "hang",
    "nan": "nonsense",
    "negative": "nonsense",
    "rows": "nonsense",
    "shape": "nonsense",
    "distributions hang": "hang",
    "update": "exception",
    "update hangs": "hang",
}


def faulty(wrong):
    predictor = Faulty()
    predictor.restore(fitted().state())
    predictor.wrong = wrong
    return predictor


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, about the NaN
@pytest.mark.parametrize("wrong", FAULTS)
@pytest.mark.parametrize("mode", ["shadow", "act"])
@pytest.mark.parametrize("many", [0, guarded._MANY], ids=["bursts", "at once"])
def test_the_engine_goes_on_as_vllms_own(wrong, mode, many, caplog, monkeypatch):
    monkeypatch.setattr(guarded, "_MANY", many)
    monkeypatch.setattr(builtin, SurvivalLifetimePredictor.__name__, Faulty)  # it is registered
    predictor = faulty("")
    engine = Engine().predict_with(predictor, mode=mode, learn="update" in wrong, limit_s=0.2)
    mixed_load(engine, n=24, steps=2)
    predictor.wrong = wrong
    mixed_load(engine, n=24, steps=2)
    lifetime = engine.advisor
    lifetime.flush()
    assert lifetime.breaker.faults[FAULTS[wrong]] == 1
    assert sum(lifetime.breaker.faults.values()) == 1
    assert lifetime.breaker.state == ("stuck" if FAULTS[wrong] == "hang" else "open")
    assert not lifetime.acting
    assert engine.scheduler.kv_cache_manager.watermark_blocks == 0
    arrivals = [request.arrival_time for request in engine.scheduler.waiting]
    assert arrivals == sorted(arrivals)
    engine.run()
    assert not engine.scheduler.requests
    stats = engine.stats()
    assert adds_up(stats)
    assert stats["running"] == 0
    assert stats["completions"] + stats["unpredicted"] == 48
    (said,) = [r.message for r in caplog.records if "prediction is off" in r.message]
    assert FAULTS[wrong] in said
    assert "\n" not in said


@pytest.mark.parametrize("kind", [ValueError, OSError])
def test_what_was_raised_is_named_and_not_quoted(caplog, kind):
    def quoting(prompt):
        raise kind(f"cannot read {prompt!r}")

    breaker = CircuitBreaker()
    with caplog.at_level("DEBUG", LOG.name):
        breaker.call(None, quoting, "a secret")
    breaker.close()
    assert breaker.reason == f"exception: {kind.__name__}"
    said = {r.levelname: logging.Formatter().format(r) for r in caplog.records}
    assert [level for level, text in said.items() if "a secret" in text] == ["DEBUG"]
    assert f"(exception: {kind.__name__})" in said["ERROR"]


def test_on_another_thread_a_worker_is_left_behind():
    predictor = faulty("")
    engine = Engine().predict_with(predictor, mode="act", limit_s=0.2)

    def serve():
        mixed_load(engine, n=12, steps=2)
        predictor.wrong = "swallows"
        mixed_load(engine, n=12, steps=2)
        engine.run()

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert engine.advisor.breaker.state == "stuck"
    assert not engine.scheduler.requests


def at_work():
    """A predictor that can be broken, an engine in which it acts, and the breaker's clock."""
    predictor, now = faulty(""), [0.0]
    engine = Engine().predict_with(predictor, mode="act", pause_s=30.0)
    engine.advisor.breaker._clock = lambda: now[0]
    mixed_load(engine, n=24, steps=1)
    return predictor, engine, now


def test_after_a_pause_it_is_tried_again_and_knows_everybody():
    predictor, engine, now = at_work()
    breaker = engine.advisor.breaker
    predictor.wrong = "raises"
    engine.add(3)
    assert breaker.state == "open"
    engine.step()
    now[0] = 31.0
    engine.step()  # still broken: open again, for longer
    assert breaker.state == "open"
    assert breaker.faults["exception"] == 2
    predictor.wrong = ""
    engine.add(4)
    now[0] = 32.0 + 60.0
    engine.step()
    assert engine.advisor.acting
    assert engine.stats()["running"] == len(engine.scheduler.requests)
    engine.run()
    assert breaker.state == "closed"
    assert adds_up(engine.stats())


def test_a_slow_one_is_switched_off_and_comes_back():
    predictor = faulty("")
    engine = Engine().predict_with(predictor, mode="act", floor_s=0.01)
    breaker, now = engine.advisor.breaker, [0.0]
    breaker._clock = lambda: now[0]
    asked = predictor.predict

    def slow(request):
        time.sleep(0.02)
        return asked(request)

    predictor.predict = slow
    while breaker.allows and len(engine.schedule) < 200:
        engine.add(30)
        engine.step()
    assert breaker.faults == {"exception": 0, "hang": 0, "nonsense": 0, "slow": 1}
    assert "of the steps" in breaker.reason  # it sleeps
    del predictor.predict
    now[0] = 31.0
    engine.step()
    assert breaker.state == "trial"
    assert engine.advisor.acting
    engine.run()
    assert breaker.state == "closed"
    assert adds_up(engine.stats())


def test_a_failed_trial_doubles_the_pause():
    now = [0.0]
    breaker = CircuitBreaker(pause_s=10.0, clock=lambda: now[0])

    def fail():
        raise ValueError("no")

    for pause in (10.0, 20.0, 40.0):
        assert breaker.ready()
        assert breaker.call("fallback", fail) == "fallback"
        assert breaker.call("fallback", lambda: "asked") == "fallback"
        now[0] += pause - 0.1
        assert not breaker.ready()
        now[0] += 0.2
    assert breaker.ready()
    for _ in range(40):
        breaker.record_steps(1, 0.01)
    assert breaker.state == "closed"
    assert breaker.call("fallback", lambda: "asked") == "asked"


@pytest.mark.parametrize("told", [1, 8])
def test_rare_but_costly_is_slow_and_rarely_interrupted_is_not(told):
    def work(seconds):
        ends = time.thread_time() + seconds
        while time.thread_time() < ends:
            pass

    costly, interrupted = CircuitBreaker(), CircuitBreaker()
    for i in range(100):
        if i % 8 == 0:
            costly.call(None, work, 0.04)
            interrupted.call(None, time.sleep, 0.04)
        if i % told == 0:
            costly.record_steps(told, told * 0.01)
            interrupted.record_steps(told, told * 0.01)
        if not costly.allows:
            break
    assert costly.faults["slow"] == 1
    assert "on average" in costly.reason
    assert interrupted.state == "closed"


def test_a_hang_is_for_good():
    now = [0.0]
    breaker = CircuitBreaker(limit_s=0.05, clock=lambda: now[0])
    started = time.perf_counter()
    assert breaker.call(None, time.sleep, 5) is None
    assert time.perf_counter() - started < 1.0
    now[0] = 1e9
    assert not breaker.ready()


def test_switched_off_while_it_is_broken_it_forgets_them_later():
    predictor, engine, now = at_work()
    breaker = engine.advisor.breaker
    predictor.wrong = "rows"
    mixed_load(engine, n=24, steps=2)
    assert breaker.state == "open"
    engine.advisor.set_mode("off")
    engine.run()
    assert predictor.get_metrics()["running"] > 0  # nobody could be told
    predictor.wrong = ""
    now[0] = 31.0
    engine.advisor.set_mode("shadow")
    engine.add(3)
    engine.run()
    assert breaker.allows
    assert predictor.get_metrics()["running"] == 0


def test_a_mode_wanted_during_a_step_of_vllms_alone_waits_for_the_next(monkeypatch):
    engine = Engine().predict_with(fitted(), mode="off")
    lifetime = engine.advisor
    account_step = lifetime.account_step

    def meanwhile(**said):
        lifetime.set_mode("act")
        account_step(**said)

    monkeypatch.setattr(lifetime, "account_step", meanwhile)
    mixed_load(engine, n=1, steps=0)
    engine.step()
    assert (lifetime.mode, lifetime.acting) == ("off", False)
    monkeypatch.setattr(lifetime, "account_step", account_step)
    engine.step()
    assert lifetime.acting
    engine.run()
    assert adds_up(engine.stats())


def test_what_is_published_is_dealt_with_in_the_next_step(monkeypatch):
    monkeypatch.setattr(guarded, "_MANY", 0)
    engine = Engine().predict_with(fitted(), mode="shadow")
    engine.step()
    engine.add(50)
    engine.step()
    assert engine.stats()["total_predictions"] == 0
    engine.advisor.request_flush()
    engine.step()
    assert engine.stats()["total_predictions"] == 1
