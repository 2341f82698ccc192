"""The recording of hidden states, and the split of the benchmark that uses them."""

import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("hidden_cost", "hidden_replay", "hidden_score", "record_hidden"):
        sys.modules.pop(name, None)


def test_no_form_is_in_both_parts():
    from sagellm_lifetime.workloads.recorded import recorded

    benchmark = import_module("hidden_score")
    frame = recorded(hidden=True)
    form = np.array(benchmark.forms(frame))
    assert 150 < len(set(form)) < 400
    train, test = benchmark.parts(frame, 0)
    assert len(train) + len(test) == len(frame)
    assert 0.1 < len(test) / len(frame) < 0.5
    assert not set(benchmark.forms(train)) & set(benchmark.forms(test))
    scenes = [one for one in form if one.startswith("scene ")]
    assert len(set(scenes)) > 5


def test_rows_share_what_they_have_in_common():
    script = import_module("record_hidden")
    assert script.spans(10, 5) == [(9, 10)]
    assert script.spans(10, 100) == [(9, 10), (25, 41), (57, 73)]
    wanted = [([1, 2], [(1, 2)]), ([3], [(0, 1)]), ([1, 2, 5], [(2, 3)]), ([1, 2], [(1, 2)])]
    groups = script.merged(wanted)
    assert [tokens for tokens, _ in groups] == [[3], [1, 2, 5]]
    assert sorted(groups[1][1]) == [(0, 0, (1, 2)), (2, 0, (2, 3)), (3, 0, (1, 2))]


def test_components_are_few_and_missing_where_nothing_was_read():
    script = import_module("record_hidden")
    states = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    states[7] = np.nan
    found = script.components(states, 4)
    assert found.shape == (50, 4)
    assert np.isnan(found[7]).all()
    known = np.delete(found, 7, axis=0)
    assert np.abs(np.corrcoef(known.T) - np.eye(4)).max() < 1e-3


def test_states_of_earlier_runs_are_kept(monkeypatch, tmp_path):
    script = import_module("record_hidden")
    read = []

    class States:
        def __init__(self, _folder):
            pass

        def __call__(self, sequences):
            read.append(len(sequences))
            return [np.array(one, dtype=np.float32)[:, None] * [1.0, 2.0] for one in sequences]

    monkeypatch.setattr(script, "States", States)
    rows = {"request_id": ["a", "b", "c"], "prompt_token_ids": [[5], [6, 7], [8]]}
    frame = pl.DataFrame({**rows, "output_token_ids": [[1], [2], [9] * 40]})
    cache = tmp_path / "x.states.npz"
    few = script.read_states(frame.head(2), tmp_path, cache)
    assert few[:, 0].tolist() == [[5.0, 10.0], [7.0, 14.0]]
    assert np.isnan(few[:, 1:]).all()
    again = script.read_states(frame, tmp_path, cache)
    assert read == [2, 1]
    assert np.array_equal(again[:2], few, equal_nan=True)
    assert again[2, 1].tolist() == [9.0, 18.0]
    assert np.array_equal(script.read_states(frame, tmp_path, cache), again, equal_nan=True)
    assert read == [2, 1]


def test_a_peek_is_bounded_and_paid_for(vllm):
    from sagellm_lifetime.replay.cost import CPU_SMALL
    from sagellm_lifetime.replay.trace import TraceRequest

    benchmark = import_module("hidden_replay")
    trace = [TraceRequest(f"r{k}", 0.0, 100, 50, hidden={0: [1.0]}) for k in range(4)]
    waiting = [Namespace(request_id=one.id, num_prompt_tokens=100) for one in trace]
    free = Namespace(get_num_free_blocks=lambda: 8)
    scheduler = Namespace(
        running=[],
        waiting=waiting,
        block_size=32,
        kv_cache_manager=Namespace(block_pool=free),
    )
    paid = benchmark.PaidCost(CPU_SMALL)
    states = benchmark.PeekingStates(trace, scheduler, 3, paid)
    for request in waiting:
        states.ask(request)
    assert states.take_fresh() == {"r0", "r1"}, "the free memory holds two prompts"
    assert paid.seconds(1, 0, 0) == CPU_SMALL.seconds(1, 200, 0)
    assert paid.seconds(1, 0, 0) == CPU_SMALL.seconds(1, 0, 0)
    assert states.take_fresh() == {"r2"}, "three are known at most"
    assert states.take_fresh() == set()
    known = benchmark.PeekingStates(trace, scheduler, sys.maxsize, None)
    for request in waiting:
        known.ask(request)
    assert known.take_fresh() == {"r0", "r1", "r2", "r3"}


def test_the_share_of_what_known_lengths_gain(vllm):
    benchmark = import_module("hidden_replay")
    arms = {"history": 30.0, "hidden": 28.0, "oracle": 20.0}
    window = {name: {"mean_latency_s": value} for name, value in arms.items()}
    assert benchmark.gained([window, window], "hidden", "mean_latency_s") == 0.2


def test_seconds_of_parts_of_a_step_are_kept_by_step():
    meter = import_module("hidden_cost").Meter()
    part = meter.around("part", sum)
    meter.step(lambda: part([1, 2]))
    meter.step(lambda: None)
    whole, parts = meter.of("step"), meter.of("part")
    assert 0.0 < parts[0] <= whole[0]
    assert parts[1] == 0.0
