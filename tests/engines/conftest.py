"""Whatever makes an engine runs vLLM's scheduler; the rest needs no vLLM."""

import pytest
from engine_help import Engine


@pytest.fixture(autouse=True)
def _an_engine_needs_vllm(request, monkeypatch):
    """Where vLLM is absent a test that makes an engine skips, saying so."""
    import_vllm = staticmethod(lambda: request.getfixturevalue("vllm"))
    monkeypatch.setattr(Engine, "import_vllm", import_vllm)


@pytest.fixture(autouse=True)
def _no_process_stays():
    """What learns ends with the test."""
    yield
    while Engine.learning:
        Engine.learning.pop().close()
