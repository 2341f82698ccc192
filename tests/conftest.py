"""Tests that need vLLM skip, saying so, where it is absent."""

import warnings
from pathlib import Path

import pytest

from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

REASON = "needs vLLM: pip install 'isagellm-lifetime[vllm]'"


HERE = Path(__file__).parent
MAY_NEED_VLLM = [HERE / "engines", HERE / "replay"]
"""A test here that makes an engine asks for the fixture as it runs."""


def pytest_collection_modifyitems(items):
    """Mark what needs vLLM or may need it, so that ``pytest -m vllm`` runs all of that."""
    for item in items:
        asks = "vllm" in getattr(item, "fixturenames", ())
        if asks or any(item.path.is_relative_to(folder) for folder in MAY_NEED_VLLM):
            item.add_marker("vllm")


@pytest.fixture(scope="session")
def vllm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, and those of what it imports
        pytest.importorskip("vllm", reason=REASON)
        ready_for_vllm()
        return pytest.importorskip("vllm.v1.core.sched.scheduler", reason=REASON)


@pytest.fixture
def new_weights_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use new weights of a network without a trial, so that a short test has a network in use."""
    monkeypatch.setattr("sagellm_lifetime.networks.champion.Trial.verdict", lambda self: True)
