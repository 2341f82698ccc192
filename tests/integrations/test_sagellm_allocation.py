"""Allocation ahead of need: against the specification's protocol, and sageLLM's own pool."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sagellm_help import running

from sagellm_lifetime import PredictionRequest, RequestError, UnknownSequenceError
from sagellm_lifetime.integrations.sagellm import LifetimeAllocationPlanner, RunningSequences
from sagellm_lifetime.policies.specification import BlockInfo, KVPoolProtocol

BLOCK = 16


class ListPool(KVPoolProtocol):
    """A pool of the specification's protocol, of a list of free blocks."""

    def __init__(self, blocks):
        self.free_blocks = list(range(blocks))
        self.owner = {}

    def allocate(self, request):
        if request.num_blocks > len(self.free_blocks):
            raise MemoryError(f"need {request.num_blocks} blocks, {len(self.free_blocks)} free")
        blocks = [self.free_blocks.pop() for _ in range(request.num_blocks)]
        self.owner.update(dict.fromkeys(blocks, request.sequence_id))
        return blocks

    def free(self, block_ids):
        for block in block_ids:
            del self.owner[block]
            self.free_blocks.append(block)

    def get_block_info(self, block_id):
        return BlockInfo(block_id, 1, self.owner[block_id], 0, False, 0.0)

    def defragment(self):
        return 0

    def migrate_blocks(self, block_ids, target_device_id):
        raise NotImplementedError

    def get_free_blocks(self):
        return len(self.free_blocks)

    def get_fragmentation_rate(self):
        return 0.0


@pytest.fixture(params=["specification", "sageLLM"])
def pool_of(request):
    """A pool of some blocks: the specification's, then sageLLM's."""
    if request.param == "specification":
        return ListPool
    kv_cache = request.getfixturevalue("kv_cache")
    from sagellm_lifetime.integrations.sagellm import SageLLMPool

    return lambda blocks: SageLLMPool(kv_cache.KVPool(blocks * BLOCK, BLOCK))


def test_blocks_come_before_they_are_needed_and_go_at_the_end(pool_of):
    pool, sequences = pool_of(100), running({"a": 60})
    planner = LifetimeAllocationPlanner(pool, sequences, block_size=BLOCK)
    assert planner.admits("a")
    planner.start("a")
    for age in range(1, 61):
        assert planner.make_room("a") == 0, "the engine would wait"
        sequences.progressed("a", age)
        planner.carry_out(planner.plan())
        assert planner.held("a") <= (10 + age) // BLOCK + 2
    assert planner.ended("a") == 0  # it was known to end: nothing was allocated beyond
    assert pool.get_free_blocks() == 100


def test_who_probably_ends_gets_nothing_ahead(pool_of):
    sequences = running({"ends": 6, "goes on": 500}, ends=4)
    sequences.progressed("goes on", 4)
    planner = LifetimeAllocationPlanner(pool_of(100), sequences, block_size=BLOCK)
    planner.start("ends")
    planner.start("goes on")
    (plan,) = planner.plan()
    assert plan.request.sequence_id == "goes on"
    assert (plan.request.num_blocks, plan.due_in, plan.probability) == (1, 2, 1.0)


def test_a_longer_lead_asks_for_more_blocks(pool_of):
    sequences = running({"a": 500})
    planner = LifetimeAllocationPlanner(pool_of(100), sequences, block_size=BLOCK, lead=64)
    planner.start("a")
    (plan,) = planner.plan()
    assert plan.request.num_blocks == 4


def test_admission_keeps_room_for_growth(pool_of):
    sequences = running({"a": 800, "b": 800, "c": 20})
    planner = LifetimeAllocationPlanner(pool_of(90), sequences, block_size=BLOCK)
    planner.start("a")
    assert not planner.admits("b")  # it fits now, and not when both have grown
    assert planner.admits("c")


def test_a_full_pool_refuses_ahead_and_raises_when_needed(pool_of):
    pool, sequences = pool_of(2), running({"a": 500, "b": 500})
    planner = LifetimeAllocationPlanner(pool, sequences, block_size=BLOCK)
    planner.start("a")
    planner.start("b")
    assert len(planner.carry_out(planner.plan())) == 2
    sequences.progressed("a", 6)
    with pytest.raises(MemoryError):
        planner.make_room("a")
    planner.ended("b")
    assert planner.make_room("a") == 1


def test_an_answer_that_ends_early_gives_back_what_it_did_not_use(pool_of):
    pool, sequences = pool_of(50), running({"a": 500})
    planner = LifetimeAllocationPlanner(pool, sequences, block_size=BLOCK, lead=80)
    planner.start("a")
    planner.carry_out(planner.plan())
    assert pool.get_free_blocks() == 44
    assert planner.ended("a") == 5
    assert pool.get_free_blocks() == 50


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 90)), min_size=1, max_size=6))
def test_nothing_is_lost_or_held_twice(jobs):
    pool = ListPool(200)
    totals = {f"s{i}": length for i, (_, length) in enumerate(jobs)}
    sequences = running(totals)
    planner = LifetimeAllocationPlanner(pool, sequences, block_size=BLOCK)
    for i, (_, _length) in enumerate(jobs):
        planner.start(f"s{i}")
    for age in range(1, 91):
        for name in [name for name in sequences.ids() if age <= totals[name]]:
            planner.make_room(name)
            sequences.progressed(name, age)
            if age == totals[name]:
                planner.ended(name)
                sequences.finished(name, age, seconds=1.0)
        planner.carry_out(planner.plan())
        held = sum(planner.held(name) for name in totals)
        assert held + pool.get_free_blocks() == 200
    assert pool.get_free_blocks() == 200


def test_bad_input_is_one_line():
    sequences = RunningSequences()
    with pytest.raises(RequestError, match="block_size"):
        LifetimeAllocationPlanner(ListPool(1), sequences, block_size=0)
    with pytest.raises(RequestError, match="within 0–1"):
        LifetimeAllocationPlanner(ListPool(1), sequences, block_size=1, fit=1.5)
    planner = LifetimeAllocationPlanner(ListPool(1), sequences, block_size=1)
    with pytest.raises(UnknownSequenceError, match="not running"):
        planner.start("nobody")
    sequences.arrived(PredictionRequest("a", [], 0, 10))
    with pytest.raises(UnknownSequenceError, match="not started"):
        planner.make_room("a")
    with pytest.raises(RequestError, match="lead must be 0 or more"):
        LifetimeAllocationPlanner(ListPool(1), sequences, block_size=1, lead=-1)


def test_no_block_is_lost_whatever_the_order_of_calls(pool_of):
    pool, sequences = pool_of(100), running({"a": 600, "b": 600})
    planner = LifetimeAllocationPlanner(pool, sequences, block_size=BLOCK)
    planner.start("a")
    with pytest.raises(RequestError, match="was started before"):
        planner.start("a")
    sequences.progressed("a", 5)
    plans = planner.plan()
    assert plans
    planner.ended("a")
    assert planner.carry_out(plans) == []  # it ended in between
    assert pool.get_free_blocks() == 100
    planner.start("a")
    sequences.finished("a", 10, seconds=1.0)
    assert planner.admits("b")  # "a" was not given back yet
    planner.ended("a")
    assert pool.get_free_blocks() == 100


def test_ids_may_be_numbers(pool_of):
    pool, sequences = pool_of(100), RunningSequences()
    planner = LifetimeAllocationPlanner(pool, sequences, block_size=BLOCK)
    sequences.arrived(PredictionRequest(7, [], 0, 512, {"prompt_length": BLOCK}))
    planner.start(7)
    assert planner.make_room(7) == 1
    assert planner.held(7) == planner.held("7") == 2
    planner.ended(7)
    assert pool.get_free_blocks() == 100


def test_sagellms_pool_by_the_specifications_methods(kv_cache):
    from sagellm_lifetime.integrations.sagellm import SageLLMPool
    from sagellm_lifetime.policies.specification import BlockAllocationRequest

    inner = kv_cache.KVPool(10 * BLOCK, BLOCK)
    pool = SageLLMPool(inner)
    ids = pool.allocate(BlockAllocationRequest(4, "a", pinned=True))
    info = pool.get_block_info(ids[0])
    assert (info.sequence_id, info.is_pinned, info.ref_count) == ("a", True, 1)
    pool.free(ids[:1])
    assert pool.get_fragmentation_rate() == 0.1  # a handle of the package is freed whole
    with pytest.raises(MemoryError):
        pool.allocate(BlockAllocationRequest(7, "b"))
    pool.free(ids[1:])
    pool.free(ids)  # again: nothing happens
    assert (pool.get_free_blocks(), pool.get_fragmentation_rate()) == (10, 0.0)
    with pytest.raises(RequestError, match="num_blocks"):
        pool.allocate(BlockAllocationRequest(0, "b"))
    with pytest.raises(NotImplementedError):
        pool.migrate_blocks([], 1)
    assert pool.defragment() == 0


def test_a_manager_evicts_for_an_allocation(kv_cache):
    from sagellm_lifetime.integrations.sagellm import SageLLMPool
    from sagellm_lifetime.policies.specification import BlockAllocationRequest

    pool = SageLLMPool(kv_cache.KVCacheManager(10 * BLOCK, BLOCK))
    first = pool.allocate(BlockAllocationRequest(8, "a"))
    pool.allocate(BlockAllocationRequest(8, "b"))
    pool.free(first)  # evicted since: nothing is freed twice
    assert pool.get_free_blocks() == 2
