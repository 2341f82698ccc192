"""The private interface of vLLM we stand on: still there, and one line when it is not."""

import pytest

from sagellm_lifetime.engines.vllm.interface import (
    KNOWN_GOOD,
    EngineInterfaceError,
    changes,
    check_interface,
    version,
)


def test_it_is_as_it_was(vllm):
    assert changes() == []
    check_interface()
    assert version().startswith(KNOWN_GOOD)


def test_another_version_fails_with_one_line_that_names_what_changed(vllm, monkeypatch):
    def _preempt_request(self, request, now):
        raise NotImplementedError

    monkeypatch.setattr(vllm.Scheduler, "_preempt_request", _preempt_request)
    monkeypatch.delattr(vllm.Scheduler, "_free_request")
    with pytest.raises(EngineInterfaceError) as error:
        check_interface()
    said = str(error.value)
    assert "\n" not in said
    assert "Scheduler._preempt_request takes (request, now), not (request, timestamp" in said
    assert "Scheduler._free_request is gone" in said


def test_a_renamed_attribute_is_named(vllm, monkeypatch):
    def __init__(self):  # noqa: N807  # stands for the engine's
        self.requests = self.running = self.kv_cache_manager = None

    monkeypatch.setattr(vllm.Scheduler, "__init__", __init__)
    assert any("Scheduler.waiting is gone" in line for line in changes())
