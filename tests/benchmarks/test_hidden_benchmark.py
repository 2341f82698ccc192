"""The recording of hidden states, and the split of the benchmark that uses them."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("hidden_score", "record_hidden"):
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
