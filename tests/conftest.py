"""Tests that need vLLM skip, saying so, where it is absent."""

import warnings

import pytest

from sagellm_lifetime.engines.vllm.builds import ready_for_vllm

REASON = "needs vLLM: pip install 'isagellm-lifetime[vllm]'"


def pytest_collection_modifyitems(items):
    """Mark what needs vLLM, so that ``pytest -m vllm`` runs nothing else."""
    for item in items:
        if "vllm" in getattr(item, "fixturenames", ()):
            item.add_marker("vllm")


@pytest.fixture(scope="session")
def vllm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, and those of what it imports
        pytest.importorskip("vllm", reason=REASON)
        ready_for_vllm()
        return pytest.importorskip("vllm.v1.core.sched.scheduler", reason=REASON)
