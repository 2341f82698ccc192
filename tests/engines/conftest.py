"""Everything here runs vLLM's scheduler."""

import pytest


@pytest.fixture(autouse=True)
def _needs_vllm(vllm):
    """Skips, saying so, where vLLM is absent."""
