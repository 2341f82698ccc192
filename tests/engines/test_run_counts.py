"""Counts from 0 that never fall, the first line of the log, and what is saved at a SIGTERM."""

import json
import logging
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from engine_help import MODEL, PATIENCE_S, Engine, fitted, mixed_load
from hypothesis import given
from hypothesis import strategies as st
from route_help import request

from sagellm_lifetime.vllm import termination
from sagellm_lifetime.vllm.circuit_breaker import FAULTS
from sagellm_lifetime.vllm.run_counts import RunCounts
from sagellm_lifetime.vllm.settings import LiveSettings
from sagellm_lifetime.vllm.startup_line import startup_line
from sagellm_lifetime.vllm.termination import Termination

PREFIX = "lifetime_predictor_"


@given(st.lists(st.one_of(st.none(), st.integers(0, 1000)), min_size=1))
def test_counts_begin_at_0_and_never_fall(values):
    counts = RunCounts({"n": values[0]})
    found = [counts.update({"n": value})["n"] for value in values]
    assert found[0] == 0
    assert found == sorted(found)
    known = [value for value in values if value is not None]
    assert all(rise >= 0 for rise in found)
    if known == sorted(known) and known:
        assert found[-1] == known[-1] - known[0]


def counters(state):
    """Return every sample of a counter."""
    from prometheus_client.parser import text_string_to_metric_families

    from sagellm_lifetime.vllm.observability.metrics import exposition

    text = exposition(state, [], openmetrics=False).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        if family.type == "counter"
        for sample in family.samples
    }


def test_every_counter_is_there_at_0_from_the_first_moment_on(tmp_path, vllm):
    pytest.importorskip("prometheus_client")
    engine = Engine().predict_with(fitted(), mode="shadow", state=str(tmp_path), learn=True)
    first = counters(tmp_path)  # nobody has waited for a second
    assert set(first.values()) == {0.0}
    assert len(first) > 25
    for name in first:
        assert ("model_name", MODEL) in name
        assert ("engine", "0") in name
    assert {dict(n[1:])["kind"] for n in first if n[0] == f"{PREFIX}faults_total"} == set(FAULTS)
    last = first
    for _ in range(3):
        mixed_load(engine, n=10, steps=2).run()
        engine.learned()
        engine.scheduler._service._jobs.round()
        now = counters(tmp_path)
        assert now.keys() == last.keys()
        assert all(now[name] >= last[name] for name in now)
        last = now
    label = (("engine", "0"), ("model_name", MODEL))
    assert last[f"{PREFIX}lessons_total", *label] == 30
    status, _, body = request(tmp_path, "GET", "/lifetime/stats")
    assert status == 200
    assert json.loads(body)["lessons"] == 230  # 200 of them before this run
    # A state that fell back, as after the death of the process that learns.
    engine.advisor.predictor._learned.model.lessons = 100
    engine.scheduler._service._jobs.round()
    assert counters(tmp_path)[f"{PREFIX}lessons_total", *label] == 30
    engine.scheduler.shutdown()


def test_one_line_says_what_is_on(tmp_path, vllm, caplog):
    with caplog.at_level(logging.INFO, "vllm.sagellm_lifetime"):
        engine = Engine().predict_with(fitted(), mode="act", state=str(tmp_path), record="")
    (line,) = (text for text in caplog.messages if text.startswith("lifetime prediction: pred"))
    assert line == (
        "lifetime prediction: predictor survival (200 completions), not learning; policy lifetime "
        f"in mode act; state {tmp_path}/engine-0; limits 5 % of a step or 1000 ms, 1 s a call"
    )
    engine.scheduler.shutdown()


def test_the_line_without_a_predictor():
    settings = LiveSettings(predict=False, mode="off", record="rec", client_from="user")
    line = startup_line(settings, None, 0, "off", None)
    assert line == (
        "lifetime prediction: no predictor; no state folder; record rec; clients from user"
    )


@pytest.fixture
def as_a_child(monkeypatch):
    """Be an engine core: a process with a parent, and a handler of SIGTERM that is vLLM's."""
    parent = SimpleNamespace(join=threading.Event().wait)  # it does not die
    monkeypatch.setattr(termination.multiprocessing, "parent_process", lambda: parent)
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("vLLM"))
    yield told
    signal.signal(signal.SIGTERM, before)


def test_a_sigterm_is_noticed_and_passed_on(as_a_child):
    notice = Termination()
    assert notice.watch()
    assert not notice.is_requested
    signal.raise_signal(signal.SIGTERM)
    assert notice.is_requested
    assert as_a_child == ["vLLM"]


def test_a_process_of_the_users_keeps_its_handlers():
    before = signal.getsignal(signal.SIGTERM)
    assert not Termination().watch()
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_sets_no_handler(as_a_child):
    found = []
    thread = threading.Thread(target=lambda: found.append(Termination().watch()))
    thread.start()
    thread.join()
    assert found == [False]


def test_what_was_learned_is_saved_from_the_sigterm_on(tmp_path, vllm, as_a_child):
    from sagellm_lifetime import load_predictor

    engine = Engine().predict_with(fitted(), mode="shadow", state=str(tmp_path), learn=True)
    mixed_load(engine, n=10, steps=2).run()
    service = engine.scheduler._service
    service._jobs.round()
    saved = tmp_path / "engine-0" / "predictor"
    assert load_predictor(saved).lessons == 200  # the next save is due in an hour
    signal.raise_signal(signal.SIGTERM)
    service._jobs.round()
    ends = time.monotonic() + PATIENCE_S
    while load_predictor(saved).lessons != 210:
        assert time.monotonic() < ends
        time.sleep(0.1)
    engine.scheduler.shutdown()
