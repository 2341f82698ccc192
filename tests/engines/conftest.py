"""Everything here runs vLLM's scheduler."""

import pytest
from engine_help import Engine


@pytest.fixture(autouse=True)
def _needs_vllm(vllm):
    """Skips, saying so, where vLLM is absent."""


@pytest.fixture(autouse=True)
def _no_process_stays():
    """What learns ends with the test."""
    yield
    while Engine.learning:
        Engine.learning.pop().close()
