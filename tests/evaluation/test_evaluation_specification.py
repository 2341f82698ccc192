"""The specification's benchmark leaks; its twin does not."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_stubs import Fixed, PointOnly, remaining_is_current

from sagellm_lifetime import create_predictor
from sagellm_lifetime.evaluation.specification_benchmark import (
    bayes_floor,
    length_masses,
    run_benchmark,
    run_repaired,
    samples,
)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_leak(seed):
    found = run_benchmark(remaining_is_current(), seed=seed)
    assert found["leaks"] is True
    assert found["mae"] == pytest.approx(0.49, abs=0.04)
    assert found["within_10pct"] == 1.0
    assert found["rule_remaining_is_current"] == {"mae": found["mae"], "within_10pct": 1.0}


def test_the_benchmark_is_run_as_written():
    predictor = Fixed()
    found = run_benchmark(predictor)
    kinds = [event[0] for event in predictor.log]
    assert kinds == ["predict", "update"] * 1000
    for i, (cap, actual) in enumerate(samples()):
        _, sequence_id, age, request = predictor.log[2 * i]
        assert (sequence_id, age, request.max_length) == (i, actual // 2, cap)
        assert request.token_ids == list(range(actual // 2))
        assert predictor.log[2 * i + 1] == ("update", i, actual, actual * 0.02, "stop")
        assert 50 <= cap <= 500
        assert 0.6 * cap - 1 < actual <= 0.9 * cap
    assert found["mae"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_networks_reach_the_targets_where_they_leak(name):
    pytest.importorskip("torch")
    options = {"lstm": {"hidden_size": 32}, "transformer": {"d_model": 32}}[name]
    found = run_benchmark(create_predictor(name, seed=7, **options), seed=7)
    assert found["mae"] < 10
    assert found["within_10pct"] >= 0.7


def test_the_rule_fails_on_the_twin():
    found = run_repaired(remaining_is_current())
    assert found["leaks"] is False
    assert found["admission"]["mae"] > 150
    assert found["uniform_age"]["mae"] == found["rule_remaining_is_current"]["mae"] > 60


def test_the_best_rule_reaches_the_floor_of_the_twin():
    found = run_repaired(PointOnly(lambda r: max(1, round(0.75 * r.max_length) - r.current_length)))
    floor = found["bayes_floor"]
    for group in ("admission", "uniform_age"):
        assert found[group]["mae"] == pytest.approx(floor["mae"], abs=1.0)
        assert found[group]["within_10pct"] == pytest.approx(floor["within_10pct"], abs=0.04)
    drawn = found["bayes_floor_on_these_samples"]
    assert found["admission"]["mae"] == pytest.approx(drawn["mae"], abs=0.2)


def test_the_floor_is_that_of_the_uniform_distribution():
    floor = bayes_floor()
    assert floor["mae"] == pytest.approx(0.3 * 275 / 4, abs=0.05)
    assert floor["within_10pct"] == pytest.approx(0.505, abs=0.005)
    assert floor["within_10pct"] < floor["best_within_10pct"] < 0.56


@pytest.mark.parametrize("cap", [50, 55, 123, 500])
def test_masses_of_the_lengths(cap):
    length, mass = length_masses(cap)
    assert mass.sum() == pytest.approx(1.0)
    drawn = (cap * np.random.default_rng(0).uniform(0.6, 0.9, 200_000)).astype(int)
    assert (drawn.min(), drawn.max()) == (length[0], length[-1])
    assert np.bincount(drawn, minlength=length[-1] + 1)[length] / 200_000 == pytest.approx(
        mass, abs=0.004
    )
