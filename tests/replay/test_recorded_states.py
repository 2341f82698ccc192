"""Recorded hidden states reach the replayed scheduler at the steps that would read them."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime.replay.compare import replay
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.planned import planned_policies
from sagellm_lifetime.replay.recorded_states import RecordedStates
from sagellm_lifetime.replay.trace import at_rate, make_trace


@pytest.fixture(scope="module")
def frame():
    """Requests whose state is the logarithm of their length; every tenth has none."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(5.0, 0.8, 200)).astype(int).clip(2, 900)
    states = [None if k % 10 == 9 else [float(np.log(n))] for k, n in enumerate(lengths)]
    later = [state if n > 32 else None for state, n in zip(states, lengths, strict=True)]
    return pl.DataFrame(
        {
            "prompt_length": rng.integers(20, 60, 200),
            "actual_length": lengths,
            "max_length": [1000] * 200,
            "hidden_state": states,
            "hidden_state_32": later,
            "hidden_source": ["model"] * 200,
        }
    )


def running(**ages):
    return [Namespace(request_id=name, num_output_tokens=age) for name, age in ages.items()]


def test_the_trace_has_what_the_history_has(frame):
    trace = make_trace(frame)
    assert [one.row for one in trace if one.hidden is None] == list(range(9, 200, 10))
    ages = {one.row: set(one.hidden) for one in trace if one.hidden}
    for row, read in ages.items():
        assert read == ({0, 32} if frame["actual_length"][row] > 32 else {0})
    assert {one.hidden_source for one in trace} == {"model"}
    assert make_trace(frame.drop("^hidden.*$"))[0].hidden is None


def test_readings_come_with_the_age(frame):
    trace = make_trace(frame)
    long = next(one for one in trace if one.hidden and 32 in one.hidden)
    scheduler = Namespace(running=[])
    states = RecordedStates(trace, scheduler)
    states.ask(Namespace(request_id=long.id))
    assert states.take_fresh() == set()
    scheduler.running = running(**{long.id: 0})
    assert states.take_fresh() == set()
    assert states.seen(long.id) == {}
    for age, fresh, seen in (
        (1, True, {0}),
        (2, False, {0}),
        (32, True, {0, 32}),
        (64, False, {0, 32}),
    ):
        scheduler.running = running(**{long.id: age})
        assert states.take_fresh() == ({long.id} if fresh else set())
        found = states.seen(long.id)
        assert set(found["hidden_state"]) == seen
        assert found["hidden_source"] == "model"
    states.pop(long.id, content=False)
    assert states.seen(long.id) == {}


def test_the_forecast_feels_it_and_a_preemption_keeps_it(vllm, frame, monkeypatch):
    """Runs through vLLM's scheduler in a pool that is too small."""
    from sagellm_lifetime.policies.plan_advisor import PlanAdvisor

    predictor = create_predictor("survival").fit(frame)
    trace = at_rate(make_trace(frame.head(60)), 200.0)
    asked = {}
    progress = PlanAdvisor._progress

    def spied(self, event):
        progress(self, event)
        for view in event.grown:
            said = self._forecaster.forecast([view.id], np.array([view.generated]))
            asked.setdefault(view.id, []).append((view.generated, float(said.expected()[0])))

    monkeypatch.setattr(PlanAdvisor, "_progress", spied)
    from sagellm_lifetime.replay.cost import cost_model

    engine, cost = EngineSettings(blocks=160), cost_model("a100-7b")
    policy = planned_policies(predictor)["lifetime"]
    found = replay(trace, engine, cost, policy).metrics
    assert found["preemptions"] > 0
    read = {one.id: one for one in trace if one.hidden}
    assert set(asked) == set(read)
    for name, seen in asked.items():
        ages = [age for age, _ in seen]
        assert ages == ([1, 32] if 32 in read[name].hidden else [1])
    first = np.array([[seen[0][1], read[name].output_length] for name, seen in asked.items()])
    assert np.corrcoef(np.log(first).T)[0, 1] > 0.9
    asked.clear()
    bare = [replace(one, hidden=None) for one in trace]
    without = replay(bare, engine, cost, policy).metrics
    assert not asked
    assert without["mean_latency_s"] != found["mean_latency_s"]
