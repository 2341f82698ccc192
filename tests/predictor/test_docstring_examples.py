"""The examples in the docstrings of the public classes of predictors and models run."""

import doctest
from importlib import import_module

import pytest

MODULES = ("models.base", *(f"predictor.{m}" for m in ("base", "builtin", "registry")))


@pytest.mark.parametrize("name", [*MODULES, "predictor.background_learner"])
def test_examples_run(name):
    found = doctest.testmod(import_module(f"sagellm_lifetime.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
