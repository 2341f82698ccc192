"""Seconds per token: the specification's constant, then a robust median by model."""

import numpy as np
import pytest

from sagellm_lifetime.core.protocol import MAX_DURATION_S
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
    for length, seconds in (
        (0, 1.0),
        (10, 0.0),
        (10, -1.0),
        (10, float("nan")),
        (5, float("inf")),
        (1, 1e308),
        (1, 1.1 * MAX_DURATION_S),
    ):
        timing.update(None, length, seconds)
    assert timing.seconds_per_token() == 0.02


def test_models_are_bounded():
    timing = TokenTiming(max_models=5)
    for i in range(50):
        timing.update(f"m{i}", 10, 1.0)
    assert len(timing.state()) <= 6
    assert timing.seconds_per_token("m49") == pytest.approx(0.1)


def test_names_in_use_stay():
    timing = TokenTiming(max_models=3)
    for i in range(300):
        timing.update("served", 10, 5.0)
        timing.update(f"seen-once-{i}", 10, 1.0)
    assert timing.seconds_per_token("served") == pytest.approx(0.5)
    assert list(timing.state()) == ["", "seen-once-298", "served", "seen-once-299"]
    for _ in range(3):
        timing.update("new", 10, 9.0)
    assert timing.seconds_per_token("new") == pytest.approx(0.9), "a late name is learned"
    assert "seen-once-298" not in timing.state()


def test_a_restored_table_goes_on_in_its_order():
    timing = TokenTiming(max_models=3)
    for name in ("c", "a", "b", "a"):
        timing.update(name, 10, 1.0)
    twin = TokenTiming(max_models=3)
    twin.restore(timing.state())
    smaller = TokenTiming(max_models=2)
    smaller.restore(timing.state())
    assert list(smaller.state()) == ["", "b", "a"]
    for each in (timing, twin):
        each.update("d", 10, 1.0)
        assert list(each.state()) == ["", "b", "a", "d"]


@pytest.mark.parametrize("bad", [[], [0.0], [-1.0], [1.0, float("nan")], [float("inf")], [1e300]])
def test_a_state_that_cannot_be_is_refused(bad):
    timing = TokenTiming()
    timing.update("m", 10, 1.0)
    with pytest.raises(ValueError, match="seconds per token"):
        timing.restore({"": [1.0], "m": bad})
    assert timing.seconds_per_token("m") == pytest.approx(0.1), "and what was known stays"


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
