"""Seconds per token: the specification's constant, then a robust median by model."""

import numpy as np
import pytest

from sagellm_lifetime.core.timing import DEFAULT_SECONDS_PER_TOKEN, TokenTiming


def test_constant_until_something_was_learned():
    timing = TokenTiming()
    assert timing.seconds_per_token() == timing.seconds_per_token("m") == 0.02
    assert DEFAULT_SECONDS_PER_TOKEN == 0.02


def test_by_model_else_over_all():
    timing = TokenTiming()
    for _ in range(10):
        timing.update("fast", 100, 1.0)
        timing.update("slow", 100, 10.0)
    timing.update("slow", 100, 10.0)
    assert timing.seconds_per_token("fast") == pytest.approx(0.01)
    assert timing.seconds_per_token("slow") == pytest.approx(0.1)
    assert timing.seconds_per_token("other") == timing.seconds_per_token() == pytest.approx(0.1)


def test_stragglers_do_not_matter():
    timing = TokenTiming()
    rng = np.random.default_rng(0)
    for i in range(400):
        timing.update(None, 100, 1e6 if i % 5 == 0 else 100 * float(rng.uniform(0.009, 0.011)))
    assert timing.seconds_per_token() == pytest.approx(0.01, rel=0.1)


def test_window_follows_a_change():
    timing = TokenTiming()
    values = [0.01] * 300 + [0.05] * 200
    for value in values:
        timing.update(None, 1000, 1000 * value)
    assert timing.seconds_per_token() == pytest.approx(0.05)
    kept = timing.state()[""]
    assert timing.seconds_per_token() == sorted(kept)[len(kept) // 2]


def test_impossible_times_are_ignored():
    timing = TokenTiming()
    for length, seconds in ((0, 1.0), (10, 0.0), (10, -1.0), (10, float("nan")), (5, float("inf"))):
        timing.update(None, length, seconds)
    assert timing.seconds_per_token() == 0.02


def test_models_are_bounded():
    timing = TokenTiming(max_models=5)
    for i in range(50):
        timing.update(f"m{i}", 10, 1.0)
    assert len(timing.state()) <= 6
    assert timing.seconds_per_token("m49") == pytest.approx(0.1)


def test_state_round_trip():
    timing = TokenTiming()
    rng = np.random.default_rng(1)
    for i in range(400):
        timing.update(f"m{i % 3}", 100, float(rng.uniform(1, 2)))
    twin = TokenTiming()
    twin.restore(timing.state())
    for each in (timing, twin):
        each.update("m0", 100, 1.5)
    assert twin.state() == timing.state()
    assert twin.seconds_per_token("m1") == timing.seconds_per_token("m1")
