"""The first inputs of every target of benchmarks/fuzz.py, and whether it would notice a fault."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from sagellm_lifetime.core.errors import LifetimeError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
fuzz = import_module("fuzz")
sys.path.remove(str(BENCHMARKS))

INPUTS = {"stream": 20, "checkpoints": 100, "routes": 60, "journals": 40}
USUAL = 150


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("target", list(fuzz.TARGETS))
def test_every_input_is_taken_or_refused_in_one_line(target):
    inputs = INPUTS.get(target, USUAL)
    found = fuzz.fuzz(target, inputs)
    assert not found.violations
    assert sum(found.words.values()) == inputs
    assert all(found.words.values())  # inputs of one kind alone would show nothing


def test_another_exception_is_noticed(monkeypatch):
    target = import_module("fuzzing.settings")
    monkeypatch.setattr(target.LiveSettings, "of", lambda said: 1 / 0)
    found = fuzz.fuzz("settings", 3)
    assert len(found.violations) == 3
    assert "ZeroDivisionError" in found.violations[0]


class CarelessError(LifetimeError):
    """Says whatever it was given."""

    def __str__(self):
        return self.args[0]

    def __init__(self, text):
        Exception.__init__(self, text)


@pytest.mark.parametrize("text", ["two\nlines", "", "x" * 100_000])
def test_a_message_that_is_not_one_bounded_line_is_noticed(text):
    module = import_module("fuzzing")
    with pytest.raises(module.Violation):
        module.refused(CarelessError(text))


def test_a_refused_call_that_changes_something_is_noticed(tmp_path, monkeypatch):
    calls = import_module("fuzzing.calls")
    shared = calls.setup(tmp_path)

    def forgets(predictor, rng):
        predictor.discard("steady")
        raise LifetimeError("no")

    for name in ("predict", "update", "quantiles", "batch", "create", "distribution"):
        monkeypatch.setattr(calls, name, forgets)
    with pytest.raises(import_module("fuzzing").Violation, match="changed"):
        calls.attempt(shared, calls.Random(0))
