"""The plug-in of ``sagellm_core``'s schedulers, through its registry and its scheduler."""

from __future__ import annotations

import pytest
from sagellm_help import Tells

from sagellm_lifetime import PredictionRequest
from sagellm_lifetime.integrations.sagellm import Order, RunningSequences


@pytest.fixture
def plugin(core, monkeypatch):
    from sagellm_lifetime.integrations.sagellm import scheduler

    monkeypatch.setattr(scheduler.LifetimePolicy, "sequences", None)
    scheduler.LifetimeSchedulerPlugin.register()
    return scheduler


def requests(*rows):
    from sagellm_protocol import Request

    return [
        Request(request_id=name, trace_id="t", prompt="one two three four", max_tokens=1000,
                metadata={"priority": priority})
        for name, priority in rows
    ]  # fmt: skip


def scheduler_of(*, tokens=4096, batch=2):
    from sagellm_core.engine_core.scheduler import ContinuousBatchingScheduler
    from sagellm_kv_cache import KVPool

    return ContinuousBatchingScheduler(
        kv_pool=KVPool(tokens, 16), policy_name="lifetime", max_batch_size=batch
    )


def admitted(output):
    return [request.request_id for batch in output.scheduled_prefill for request in batch.requests]


def test_the_registry_finds_it(core):
    from sagellm_core.engine_core.scheduler.base import get_policy
    from sagellm_core.plugin.registry import PluginRegistry

    registry = PluginRegistry.discover()
    if "lifetime" not in registry.list_schedulers():
        pytest.skip("the installed package is older than its entry point: pip install -e .")
    registry.register_schedulers()
    assert type(get_policy("lifetime")).__name__ == "LifetimePolicy"


def test_it_says_what_it_is(plugin):
    meta = plugin.LifetimeSchedulerPlugin.meta()
    assert (meta.name, meta.vendor) == ("lifetime", "isagellm-lifetime")
    assert plugin.LifetimeSchedulerPlugin.policy_classes() == {"lifetime": plugin.LifetimePolicy}


def test_the_real_scheduler_starts_the_shortest_first(plugin):
    plugin.LifetimePolicy.sequences = RunningSequences(
        Tells({"long": 900, "short": 20, "middle": 100, "next": 50})
    )
    scheduler = scheduler_of()
    for request in requests(("long", 0), ("short", 0), ("middle", 0)):
        scheduler.add_request(request)
    assert admitted(scheduler.step()) == ["short", "middle"]
    plugin.LifetimePolicy.sequences.finished("short", 20, seconds=0.4)
    scheduler.add_request(*requests(("next", 0)))
    assert admitted(scheduler.step(["short"])) == ["next"]


def test_the_order_and_the_priority_count(plugin, monkeypatch):
    plugin.LifetimePolicy.sequences = RunningSequences(Tells({"a": 900, "b": 20, "c": 100}))
    monkeypatch.setattr(plugin.LifetimePolicy, "order", Order.LONGEST_FIRST)
    scheduler = scheduler_of(batch=1)
    for request in requests(("b", 0), ("a", 0), ("c", 7)):
        scheduler.add_request(request)
    assert admitted(scheduler.step()) == ["c"]
    assert admitted(scheduler.step(["c"])) == ["a"]


def test_nobody_starves(plugin, monkeypatch):
    monkeypatch.setattr(plugin.LifetimePolicy, "most_overtaken", 3)
    totals = {"long": 900, **{f"s{i}": 10 for i in range(10)}}
    plugin.LifetimePolicy.sequences = RunningSequences(Tells(totals))
    scheduler = scheduler_of(batch=1)
    scheduler.add_request(*requests(("long", 0)))
    done, ran = [], []
    for i in range(6):
        scheduler.add_request(*requests((f"s{i}", 0)))
        ran += admitted(scheduler.step(done))
        done = ran[-1:]
    assert ran.index("long") == 3


def test_memory_is_kept_for_what_the_running_will_need(plugin):
    totals = {"a": 400, "b": 450, "c": 15}
    plugin.LifetimePolicy.sequences = RunningSequences(Tells(totals))
    scheduler = scheduler_of(tokens=512, batch=8)
    for request in requests(("a", 0), ("b", 0)):
        scheduler.add_request(request)
    assert admitted(scheduler.step()) == ["a"]  # both fit now, and not when they have grown
    assert admitted(scheduler.step()) == []
    plugin.LifetimePolicy.sequences.progressed("a", 399)
    assert admitted(scheduler.step()) == ["b"]  # a is about to end


def test_one_that_can_never_fit_starts_alone(plugin):
    plugin.LifetimePolicy.sequences = RunningSequences(Tells({"huge": 9000}))
    scheduler = scheduler_of(tokens=512)
    scheduler.add_request(*requests(("huge", 0)))
    assert admitted(scheduler.step()) == ["huge"]


def test_a_predictor_that_fails_does_not_stop_the_scheduler(plugin):
    plugin.LifetimePolicy.sequences = RunningSequences(Tells({"a": 100}))  # knows no "b"
    scheduler = scheduler_of()
    for request in requests(("a", 0), ("b", 0)):
        scheduler.add_request(request)
    assert sorted(admitted(scheduler.step())) == ["a", "b"]


def test_a_clients_metadata_does_not_stop_the_scheduler(plugin):
    odd = requests(("a", float("nan")), ("b", "high"))
    odd[0].metadata["prompt_length"] = "many"
    odd[1].metadata["client_id"] = [1]
    scheduler = scheduler_of()
    for request in odd:
        scheduler.add_request(request)
    assert sorted(admitted(scheduler.step())) == ["a", "b"]


def test_lists_are_left_as_they_are(plugin):
    policy = plugin.LifetimePolicy()
    scheduler = scheduler_of()
    waiting = requests(("a", 0), ("b", 0), ("c", 0))
    before = list(waiting)
    chosen = policy.select_next(waiting, [], scheduler.kv_bridge, scheduler.config)
    assert waiting == before
    assert len(chosen) == 2
    assert policy.select_next([], [], scheduler.kv_bridge, scheduler.config) == []


def test_a_request_announced_with_more_is_known(plugin):
    sequences = RunningSequences()
    sequences.arrived(PredictionRequest("a", [], 0, 50, {"prompt_length": 4, "client_id": "x"}))
    plugin.LifetimePolicy.sequences = sequences
    policy = plugin.LifetimePolicy()
    scheduler = scheduler_of()
    policy.select_next(requests(("a", 0)), [], scheduler.kv_bridge, scheduler.config)
    assert sequences.request("a").prompt_features["client_id"] == "x"
