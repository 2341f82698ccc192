"""Statistics, routes, metrics, the switch, and a restart."""

import json
import re

import pytest
from engine_help import MODEL, Engine, fitted, mixed_load
from route_help import JSON, STATS, ask

from sagellm_lifetime.cli.stats import block
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.vllm.engine_state import EngineState, check_free, read_stats, request_mode
from sagellm_lifetime.vllm.observability.http import LifetimeMiddleware


@pytest.fixture
def served(tmp_path):
    """An engine that has served some, and its folder."""
    engine = Engine().predict_with(fitted(), mode="shadow", state=str(tmp_path))
    mixed_load(engine, n=30, steps=2)
    engine.run(20)
    engine.scheduler._service._jobs.round()
    yield engine, tmp_path
    engine.scheduler.shutdown()


def test_stats_are_the_engines(served):
    engine, state = served
    status, body = ask(state, "GET", "/lifetime/stats")
    assert status == 200
    found = json.loads(body)
    stats = engine.stats()
    for key in ("total_predictions", "completions", "censored", "running", "mae", "steps"):
        assert found[key] == pytest.approx(stats[key])
    assert found["mode"] == "shadow"
    assert found["breaker"] == "closed"
    assert found["stale"] == 0
    text = "\n".join(block(found))
    assert text.startswith("Lifetime Predictor Statistics:\n  Predictor Type: Survival\n")
    assert f"Total Predictions: {stats['total_predictions']}" in text
    for label in ("MAE: ", "10% Accuracy: ", "Avg Confidence: ", "Mode: shadow", "Overhead: "):
        assert label in text
        assert f"{label}n/a" not in text


def test_why_the_breaker_is_open_is_said(served):
    engine, state = served

    def broken():
        raise ValueError

    engine.advisor.breaker.call(None, broken)
    engine.scheduler._service._jobs.round()
    found = json.loads(ask(state, "GET", "/lifetime/stats")[1])
    shown = block(found)
    assert "  Circuit Breaker: open (exception: ValueError)" in shown
    assert "  Faults: exception 1" in shown


def test_other_routes(served):
    _, state = served
    assert ask(state, "GET", "/v1/models") == (299, b"vLLM's")
    assert ask(state, "GET", "/lifetime/else")[0] == 404
    assert ask(state / "nowhere", "GET", "/lifetime/stats")[0] == 503
    assert ask(state / "nowhere", "POST", "/lifetime/mode", b'{"mode": "act"}')[0] == 503


def test_the_mode_is_switched_while_running(served):
    engine, state = served
    assert ask(state, "POST", "/lifetime/mode", b'{"mode": "act"}')[0] == 202
    engine.scheduler._service._jobs.round()
    assert json.loads(ask(state, "GET", "/lifetime/stats")[1])["mode"] == "act"
    engine.add(30)
    engine.step()
    assert engine.advisor.acting
    for wrong in (b"", b"{}", b'{"mode": "on"}', b"[1]", b'{"mode": ["act"]}'):
        assert ask(state, "POST", "/lifetime/mode", wrong)[0] == 400
    (state / "engine-0" / "control.json").write_text("{")
    engine.scheduler._service._jobs.round()
    assert engine.advisor.next_mode == "act"


def test_act_is_refused_where_it_cannot_be(served):
    engine, state = served
    engine.advisor.cannot_act = "no"
    engine.scheduler._service._jobs.round()
    assert ask(state, "POST", "/lifetime/mode", b'{"mode": "act"}') == (409, b'{"error": "no"}')
    assert ask(state, "POST", "/lifetime/mode", b'{"mode": "off"}')[0] == 202


def test_both_routes_need_the_key_where_there_is_one(served, monkeypatch):
    _, state = served
    body, key = b'{"mode": "act"}', [JSON, (b"authorization", b"Bearer secret")]
    assert ask(state, "POST", "/lifetime/mode", body, api_key=["secret"])[0] == 401
    assert ask(state, "POST", "/lifetime/mode", body, headers=key, api_key=["secret"])[0] == 202
    assert ask(state, "POST", "/lifetime/mode", body, headers=key, api_key=["other"])[0] == 401
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert ask(state, "POST", "/lifetime/mode", body)[0] == 401
    assert ask(state, "GET", "/lifetime/stats")[0] == 401
    assert ask(state, "GET", "/lifetime/stats", headers=key)[0] == 200


@pytest.fixture
def metrics(served):
    from prometheus_client import CollectorRegistry, make_asgi_app

    engine, state = served
    app = LifetimeMiddleware(make_asgi_app(CollectorRegistry()))
    first, second = (ask(state, "GET", "/metrics", app=app) for _ in range(2))
    assert first[0] == second[0] == 200
    return engine, second[1].decode()


def test_metrics_in_the_form_of_prometheus(metrics):
    from prometheus_client.parser import text_string_to_metric_families

    engine, text = metrics
    families = {each.name: each for each in text_string_to_metric_families(text)}
    assert families
    values = {}
    for name, family in families.items():
        assert re.fullmatch(r"lifetime_predictor_[a-z0-9_]+", name)
        assert family.documentation
        for sample in family.samples:
            assert sample.labels["engine"] == "0"
            known = {
                "engine",
                "model_name",
                "kind",
                "state",
                "predictor",
                "policy",
                "model",
                "mode",
            }
            assert sample.labels.keys() <= known
            labels = dict(sample.labels)
            assert labels.pop("model_name") == MODEL
            values[sample.name, *labels.values()] = sample.value
    stats = engine.stats()
    prefix = "lifetime_predictor_"
    assert values[prefix + "predictions_total", "0"] == stats["total_predictions"] > 0
    assert values[prefix + "predictions_total", "0"] == (
        values[prefix + "completions_total", "0"]
        + values[prefix + "censored_total", "0"]
        + values[prefix + "running_sequences", "0"]
    )
    assert values[prefix + "mode", "0", "shadow"] == 1
    assert values[prefix + "mode", "0", "act"] == 0
    assert "an estimate" in families[prefix + "decisions_differing"].documentation


def test_several_engine_cores_are_one_engine(tmp_path):
    engines = []
    for rank in range(2):
        engine = Engine()
        engine.scheduler.vllm_config.parallel_config.data_parallel_index = rank
        engine.predict_with(fitted(), mode="shadow", learn=True, state=str(tmp_path))
        mixed_load(engine, n=10 + 10 * rank).run()
        assert engine.learned()["lessons"] == 210 + 10 * rank
        engine.scheduler._service._jobs.round()
        engines.append(engine)
    engines[0].scheduler.vllm_config.parallel_config.data_parallel_index = 0
    found = json.loads(ask(tmp_path, "GET", "/lifetime/stats")[1])
    stats = [engine.stats() for engine in engines]
    assert [each["engine"] for each in found["engines"]] == [0, 1]
    assert found["total_predictions"] == found["lessons_taken"] == 30
    assert found["learner_running"]
    assert len(list(tmp_path.glob("engine-*/predictor/manifest.json"))) == 2
    errors = sum(each["sums"]["absolute_error"] for each in stats)
    assert found["mae"] == pytest.approx(errors / 30)
    status, body = ask(tmp_path, "POST", "/lifetime/mode", b'{"mode": "act"}')
    assert (status, json.loads(body)["engines"]) == (202, 2)
    engines[1].scheduler._service._jobs.round()
    mode = json.loads(ask(tmp_path, "GET", "/lifetime/stats")[1])["mode"]
    assert mode in ("shadow, act", "act")  # the other looks every second by itself
    for engine in engines:
        engine.scheduler.shutdown()


def test_one_engine_one_folder(tmp_path):
    state = EngineState(tmp_path, 0)
    state.write({**STATS, "x": [float("nan")]})
    assert read_stats(tmp_path)[0]["x"] == [None]
    with pytest.raises(LifetimeError, match="another engine runs"):
        check_free(tmp_path)
    with pytest.raises(LifetimeError, match="--state"):
        EngineState(tmp_path, 0)
    request_mode(tmp_path, "act")
    assert state.asked_for() == "act"
    assert state.asked_for() is None
    request_mode(tmp_path, "act")
    assert state.asked_for() == "act"
    request_mode(tmp_path, "off")
    state.close()
    check_free(tmp_path)
    assert not read_stats(tmp_path)
    again = EngineState(tmp_path, 0)
    assert again.asked_for() is None  # the command line says in which mode it starts
    again.close()
