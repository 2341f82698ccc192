"""The outlook of a running engine: beside its steps, on disk, over HTTP and as metrics."""

import json
import time

import pytest
from engine_help import Engine, adds_up, fitted, mixed_load
from route_help import STATS, ask

from sagellm_lifetime.vllm.live_outlook import FILE, LiveOutlook, answer
from sagellm_lifetime.vllm.published import COUNTS, parse_stats

OUTLOOK = {
    "time": 0.0,
    "seconds_per_step": 0.01,
    "running_tokens": {"expected": 10.0, "p90": 12.0},
    "waiting_tokens": {"expected": 0.0, "p90": 0.0},
    "peak_blocks": {"expected": 4.0, "p90": 5.0},
    "done_s": {"p50": 1.0, "p95": 2.0},
    "place_within": {"0": 0.5, "1": 1.0},
    "retry_after_s": 1,
}


@pytest.fixture(scope="module")
def served(vllm, tmp_path_factory):
    """An engine in the middle of its work, and its state folder."""
    state = tmp_path_factory.mktemp("outlook")
    engine = Engine().predict_with(fitted(), mode="shadow", state=str(state))
    mixed_load(engine, n=60, steps=2)
    engine.advisor.flush()
    assert engine.scheduler.waiting
    outlook = engine.scheduler._service._outlook
    outlook._clock = time.time
    outlook._due = 0.0
    outlook.update()
    engine.scheduler._service._publish()
    yield engine, state
    engine.run()
    engine.scheduler.shutdown()


def test_it_tells_what_is_to_be_done(served):
    engine, _ = served
    latest = engine.stats()["outlook"]
    waiting = {request.request_id for request in engine.scheduler.waiting}
    running = {request.request_id for request in engine.scheduler.running}
    left = {n: engine.lengths[n] - engine.scheduler.requests[n].num_output_tokens
            for n in waiting | running}  # fmt: skip
    for name, ids in (("running_tokens", running), ("waiting_tokens", waiting)):
        truth = sum(left[n] for n in ids)
        assert 0.4 * truth < latest[name]["expected"] < 3.0 * truth
        assert latest[name]["p90"] > latest[name]["expected"]
    assert latest["place_within"]["0"] == 0.0
    assert latest["retry_after_s"] >= 1
    assert adds_up(engine.stats())


def test_the_route(served):
    engine, state = served
    status, body = ask(state, "GET", "/lifetime/outlook")
    assert status == 200
    found = json.loads(body)
    assert found["retry_after_s"] == engine.stats()["outlook"]["retry_after_s"]
    assert 0.0 <= found["age_s"] < 30.0
    name = engine.scheduler.running[0].request_id
    status, body = ask(
        state, "GET", "/lifetime/outlook", query=f"request={name}&within=1e6".encode()
    )
    assert status == 200
    request = json.loads(body)["request"]
    assert request["probability"] == 1.0
    assert request["ends_s"]["p50"] <= request["ends_s"]["p95"]
    assert ask(state, "GET", "/lifetime/outlook", query=b"request=nobody")[0] == 404
    assert ask(state, "POST", "/lifetime/outlook")[0] == 405
    assert json.loads(ask(state, "GET", "/lifetime/stats")[1])["outlook"]["retry_after_s"] >= 1


@pytest.mark.parametrize(
    "query",
    [b"within=5", b"request=a&within=x", b"request=a&within=-1", b"request=a&within=nan",
     b"request=a&request=b", b"id=a"],
)  # fmt: skip
def test_a_query_that_is_none(served, query):
    status, body = ask(served[1], "GET", "/lifetime/outlook", query=query)
    assert status == 400
    assert json.loads(body)["error"]


def test_the_metrics(served):
    pytest.importorskip("prometheus_client")
    from sagellm_lifetime.vllm.observability.metrics import exposition

    text = exposition(served[1], [], openmetrics=False).decode()
    assert 'outlook_tokens{engine="0",model_name="toy",state="running",value="p90"}' in text
    assert 'outlook_place_probability{engine="0",model_name="toy",seconds="0"} 0.0' in text
    assert 'outlook_retry_after_seconds{engine="0",model_name="toy"}' in text


def test_off_has_none_and_the_route_says_so(tmp_path, vllm):
    engine = Engine().predict_with(fitted(), mode="off", state=str(tmp_path))
    mixed_load(engine, n=8, steps=2)
    engine.scheduler._service._outlook.update()
    assert engine.stats()["outlook"] is None
    engine.scheduler._service._publish()
    status, body = ask(tmp_path, "GET", "/lifetime/outlook")
    assert status == 503
    assert "mode is off" in json.loads(body)["error"]
    engine.scheduler.shutdown()


def test_a_sequence_that_ends_meanwhile_is_no_fault(vllm):
    engine = Engine().predict_with(fitted(), mode="shadow")
    mixed_load(engine, n=8, steps=2)
    engine.advisor.flush()
    engine.advisor.statistics.predicted("gone", 5, 0.5)
    request = engine.add(5, name="gone")
    engine.advisor._events.clear()
    outlook = LiveOutlook(engine.scheduler, clock=lambda: engine.now)
    engine.advisor._forecaster.predictor.discard("gone")
    outlook.update()
    assert outlook.latest is None
    assert engine.advisor.breaker.state == "closed"
    assert request.request_id == "gone"


def test_what_came_of_an_outlook_is_learned(vllm, tmp_path):
    engine = Engine().predict_with(fitted(), mode="shadow", state=str(tmp_path))
    outlook = engine.scheduler._service._outlook
    outlook._clock = lambda: engine.now
    mixed_load(engine, n=60, steps=2)
    engine.advisor.flush()
    outlook.update()
    assert outlook.latest
    pending = outlook._calibration._running[0]
    ran = {request.request_id for request in engine.scheduler.running}
    left = {n: engine.lengths[n] - engine.scheduler.requests[n].num_output_tokens for n in ran}
    assert set(pending.places) == ran
    engine.add(30, name="newcomer")
    engine.run()
    outlook.update()
    scores = outlook._calibration.scores
    assert scores["running_tokens"].known == scores["waiting_tokens"].known == 1
    assert scores["place_s"].known == 1
    assert pending.left.sum() == sum(left.values())
    assert adds_up(engine.stats())
    engine.advisor.set_mode("off")
    mixed_load(engine, n=4, steps=2)
    outlook.update()
    assert not outlook._calibration._running
    assert not outlook._events
    engine.scheduler.shutdown()


def test_a_long_look_delays_the_next(vllm, monkeypatch):
    engine = Engine().predict_with(fitted(), mode="shadow")
    mixed_load(engine, n=8, steps=2)
    engine.advisor.flush()
    outlook = LiveOutlook(engine.scheduler, clock=lambda: engine.now)
    spent = iter([0.0, 0.05])
    monkeypatch.setattr("sagellm_lifetime.vllm.live_outlook.time.thread_time", lambda: next(spent))
    outlook.update()
    first = outlook.latest
    engine.now += 9.0
    outlook.update()
    assert outlook.latest is first
    assert outlook._due == pytest.approx(first["time"] + 10.0)


@pytest.mark.parametrize(
    "wrong",
    [{"time": None}, {"done_s": {}}, {"place_within": {"0": "x"}}, {"running_tokens": {"p90": 1.0}},
     {"retry_after_s": True}],
    ids=str,
)  # fmt: skip
def test_damaged_figures_are_no_statistics(wrong):
    counts = dict.fromkeys(COUNTS, 0)
    good = {**counts, **STATS, "outlook": OUTLOOK}
    assert parse_stats(json.dumps(good).encode(), 0)["outlook"] == OUTLOOK
    with pytest.raises(ValueError, match="outlook is not"):
        parse_stats(json.dumps({**good, "outlook": {**OUTLOOK, **wrong}}).encode(), 0)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"time": 1, "ends_s": {"a": [1]}}'])
def test_a_damaged_file_is_as_if_it_was_not_there(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert answer([tmp_path], [OUTLOOK], "a", 1.0, now=1.0)[0] == 404
    assert answer([tmp_path], [OUTLOOK], now=100.0)[0] == 503


def test_the_id_of_a_client_is_the_beginning_of_ours(tmp_path):
    ends = {"cmpl-1-0-ab": [1, 2, 3, 4, 5, 6, 7], "cmpl-1-1-cd": [2, 3, 4, 5, 6, 7, 8]}
    (tmp_path / FILE).write_text(json.dumps({"time": 10.0, "ends_s": ends}))
    status, found = answer([tmp_path], [{**OUTLOOK, "time": 10.0}], "cmpl-1", 4.0, now=11.0)
    assert status == 200
    assert found["request"]["ends_s"]["p50"] == 4.0  # of the later one, a second on
    assert found["request"]["probability"] == 0.5
