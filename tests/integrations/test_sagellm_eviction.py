"""Eviction through sageLLM's own managers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sagellm_help import Tells, running

from sagellm_lifetime import LifetimeError, PredictionRequest, RequestError, UnknownNameError
from sagellm_lifetime.integrations.sagellm import RunningSequences


@pytest.fixture
def eviction(kv_cache):
    from sagellm_lifetime.integrations.sagellm import eviction

    return eviction


@pytest.fixture
def manager(kv_cache):
    return kv_cache.KVCacheManager(1000, 16, eviction_policy=kv_cache.EvictionPolicy.LIFETIME_AWARE)


def hold(manager, *names, tokens=100, **metadata):
    return [
        manager.alloc(tokens, metadata={"request_id": name, **metadata} if name else None)
        for name in names
    ]


def gone(manager, handles):
    return [h.metadata.get("request_id") for h in handles
            if h.handle_id not in manager.kv_pool.handles]  # fmt: skip


def test_the_package_falls_back_to_lru_where_it_names_lifetimes(kv_cache):
    """A finding: when this fails the package has a strategy of its own, and the page is old."""
    manager = kv_cache.EvictionManager(policy=kv_cache.EvictionPolicy.LIFETIME_AWARE)
    assert isinstance(manager._strategy, kv_cache.LRUEviction)


def test_the_real_manager_evicts_by_remaining_life(eviction, manager):
    sequences = running({"short": 200, "long": 5000, "middle": 900})
    strategy = eviction.install(manager, sequences, order="longest")
    handles = hold(manager, "short", "long", "middle", tokens=300)
    manager.alloc(200)
    assert gone(manager, handles) == ["long"]
    assert "about 5000 to go" in strategy.last[0].reason
    assert strategy.get_policy_name().value == "lifetime_aware"


def test_the_specifications_order_is_there(eviction, manager):
    eviction.install(manager, running({"a": 200, "b": 5000}), order="shortest")
    handles = hold(manager, "a", "b", tokens=450)
    manager.alloc(300)
    assert gone(manager, handles) == ["a"]


@pytest.mark.parametrize("order", ["cost-aware", "longest", "shortest", "engine"])
def test_what_nobody_runs_on_goes_before_what_runs(eviction, manager, order):
    eviction.install(manager, running({"a": 200, "b": 5000}), order=order)
    handles = hold(manager, "a", "finished", "b", None)
    hold(manager, "later", tokens=580)
    manager.kv_pool.pin(list(manager.kv_pool.handles.values())[-1])
    manager.alloc(150)
    assert gone(manager, handles) == ["finished", None]


def test_idle_handles_go_by_reuse_and_not_by_remaining_life(eviction, kv_cache):
    clock = [0.0]
    strategy = eviction.LifetimeAwareEviction(RunningSequences(), clock=lambda: clock[0])

    def handle(name, at):
        made = kv_cache.KVHandle.create(num_tokens=100, metadata={"request_id": name})
        made.created_at = made.last_access = at
        return made

    # A thousand times an idle handle came back ten seconds later, and never once after a minute.
    for _ in range(1000):
        strategy.scores.reuse.ended(10.0, 0, reused=True)
        strategy.scores.reuse.ended(300.0, 1, reused=False)
    old, fresh = handle("old", 0.0), handle("fresh", 295.0)
    clock[0] = 300.0
    assert strategy.select_victim([fresh, old], 100) == [old]
    again = handle("again", 300.0)
    strategy.select_victim([again], 0)
    again.last_access = 310.0
    clock[0] = 311.0
    strategy.select_victim([again], 0)  # it was used again: of its class nobody comes back
    first = handle("first", 309.0)
    strategy.select_victim([first, again], 0)
    assert strategy.select_victim([first, again], 100) == [again]
    assert strategy.last[0].reason.endswith("1 reuses seen")


def test_without_experience_the_longest_unused_goes_first(eviction, kv_cache):
    strategy = eviction.LifetimeAwareEviction(clock=lambda: 1000.0)
    handles = [kv_cache.KVHandle.create(num_tokens=10) for _ in range(6)]
    for handle, at in zip(handles, (500.0, 100.0, 999.0, 101.0, 700.0, 998.5), strict=True):
        handle.last_access = at
    victims = strategy.select_victim(handles, 60)
    assert [h.last_access for h in victims] == [100.0, 101.0, 500.0, 700.0, 998.5, 999.0]


def test_pinned_and_shared_handles_never_go(eviction, manager, kv_cache):
    eviction.install(manager, running({}))
    pinned, shared, free = hold(manager, "p", "s", "f", tokens=300)
    pinned.pin()
    shared.incr_ref()
    manager.alloc(400)
    assert gone(manager, [pinned, shared, free]) == ["f"]
    with pytest.raises(kv_cache.KVCacheError):
        manager.alloc(500)
    assert gone(manager, [pinned, shared]) == []


def test_free_memory_is_used_before_anybody_goes(eviction, kv_cache):
    def evicted_for(manager, tokens):
        handles = hold(manager, "a", "b", "c", tokens=300)
        manager.alloc(tokens)
        return gone(manager, handles)

    # The package asks for all 400 tokens although 100 are free: a finding.
    assert evicted_for(kv_cache.KVCacheManager(1000, 16), 400) == ["a", "b"]
    ours = kv_cache.KVCacheManager(1000, 16)
    eviction.install(ours)
    assert evicted_for(ours, 400) == ["a"]


def test_nothing_is_evicted_in_vain(eviction, kv_cache):
    strategy = eviction.LifetimeAwareEviction()
    handles = [kv_cache.KVHandle.create(num_tokens=10) for _ in range(3)]
    for needed, most in ((31, None), (25, 2), (5, 0)):
        with pytest.raises(kv_cache.KVNoVictimError):
            strategy.select_victim(handles, needed, most)
        assert strategy.last == []
    assert strategy.select_victim(handles, 0) == []


def test_a_bound_on_victims_takes_the_large_ones(eviction, kv_cache):
    strategy = eviction.LifetimeAwareEviction()
    handles = [kv_cache.KVHandle.create(num_tokens=n) for n in (10, 10, 10, 100)]
    for i, handle in enumerate(handles):
        handle.last_access = float(i)
    assert strategy.select_victim(handles, 100, 1) == [handles[3]]
    # The small ones that would have gone first are not needed beside it.
    assert strategy.select_victim(handles, 95) == [handles[3]]


def test_a_lower_priority_goes_before_a_higher_one(eviction, manager):
    eviction.install(manager, running({"a": 5000, "b": 100}))
    (urgent,) = hold(manager, "a", tokens=400, priority=5)
    (usual,) = hold(manager, "b", tokens=400, priority=1)
    manager.alloc(300)
    assert gone(manager, [urgent, usual]) == ["b"]


def test_a_sequence_that_ends_soon_or_lost_its_work_often_is_spared(eviction, manager):
    strategy = eviction.install(manager, running({"soon": 110, "long": 3000}, soon=100))
    handles = hold(manager, "soon", "long", tokens=400)
    manager.alloc(300)
    assert gone(manager, handles) == ["long"]
    for _ in range(3):
        strategy.scores.evicted([eviction.view_of(handles[1])], 0.0)
    (back,) = hold(manager, "long", tokens=290)
    manager.alloc(10)
    score = strategy.scores.score([eviction.view_of(back)], time.time())
    assert score.spared.tolist() == [True]


def test_without_a_prediction_the_oldest_access_goes_first(eviction, kv_cache):
    sequences = RunningSequences(Tells({"a": 100, "b": 100}))
    for name in ("a", "b"):
        sequences.arrived(PredictionRequest(name, [], 0, None))
    sequences.predictor.totals = {}  # from now on it fails
    strategy = eviction.LifetimeAwareEviction(sequences, clock=lambda: 100.0)
    handles = []
    for name, at in (("a", 90.0), ("b", 10.0)):
        handle = kv_cache.KVHandle.create(num_tokens=10, metadata={"request_id": name})
        handle.last_access = at
        handles.append(handle)
    assert strategy.select_victim(handles, 10) == [handles[1]]


@pytest.mark.parametrize("kind", ["EvictionManager", "KVCacheManager", "SchedulerBridge"])
def test_install_is_undone(eviction, kv_cache, kind):
    manager = getattr(kv_cache, kind)(**({} if kind == "EvictionManager" else {"max_tokens": 100}))
    inner = getattr(manager, "eviction_manager", manager)
    before, policy = inner._strategy, inner.policy
    first = eviction.install(manager)
    second = eviction.install(manager)
    assert inner._strategy is second is not first
    assert inner.policy.value == "lifetime_aware"
    assert eviction.is_installed_in(manager)
    eviction.uninstall(manager)
    assert inner._strategy is before
    assert inner.policy is policy
    with pytest.raises(RequestError, match="no lifetime-aware eviction is installed"):
        eviction.uninstall(manager)


def test_a_policy_set_since_stays(eviction, kv_cache):
    manager = kv_cache.EvictionManager()
    eviction.install(manager)
    manager.set_policy(kv_cache.EvictionPolicy.FIFO)
    eviction.uninstall(manager)
    assert isinstance(manager._strategy, kv_cache.FIFOEviction)


def test_bad_input_is_one_line(eviction):
    with pytest.raises(LifetimeError, match="a list has no eviction strategy"):
        eviction.install([])
    with pytest.raises(UnknownNameError, match="order of eviction"):
        eviction.LifetimeAwareEviction(order="oldest")
    with pytest.raises(RequestError, match=r"RunningSequences\(predictor\), got a Tells"):
        eviction.LifetimeAwareEviction(Tells({}))


def test_a_failed_install_changes_nothing(eviction, manager):
    strategy = eviction.install(manager)
    with pytest.raises(UnknownNameError):
        eviction.install(manager, order="oldest")
    assert manager.eviction_manager._strategy is strategy
    eviction.uninstall(manager)


@pytest.mark.parametrize("priority", [float("nan"), float("inf"), 10**400, "high", None, [1]])
def test_a_priority_that_is_no_number_counts_as_none(eviction, kv_cache, priority):
    odd = kv_cache.KVHandle.create(num_tokens=16, metadata={"priority": priority})
    high = kv_cache.KVHandle.create(num_tokens=16, metadata={"priority": np.int64(5)})
    low = kv_cache.KVHandle.create(num_tokens=16, metadata={"priority": -0.5})
    select = eviction.LifetimeAwareEviction().select_victim
    assert select([high, odd, low], 32) == [low, odd]


def test_a_time_that_is_no_number_is_now(eviction, kv_cache):
    odd, old = (kv_cache.KVHandle.create(num_tokens=16) for _ in range(2))
    odd.last_access, old.last_access = float("nan"), time.time() - 100.0
    assert eviction.LifetimeAwareEviction().select_victim([odd, old], 16) == [old]
