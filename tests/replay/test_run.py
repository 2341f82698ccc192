"""The loop around the real scheduler: nothing leaks, nothing is lost, always the same."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.replay.compare import replay
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.load import LOADS, at_load, capacity, wait_share
from sagellm_lifetime.replay.metrics import MEASURED, metrics
from sagellm_lifetime.replay.policies import POLICIES, ReplayPolicy, policy
from sagellm_lifetime.replay.run import Run
from sagellm_lifetime.replay.trace import at_once, at_rate, make_trace, rate_of
from sagellm_lifetime.vllm.compat.versions import series, version
from sagellm_lifetime.workloads import generate

pytestmark = pytest.mark.usefixtures("vllm")

DESIGN = {
    "mean_latency_s",
    "p50_latency_s",
    "p99_latency_s",
    "mean_ttft_s",
    "tokens_per_s",
    "makespan_s",
    "preemptions",
    "recomputed_tokens",
    "reserved_unused_block_s",
    "goodput",
    "max_wait_s",
}
# Exact counts of each reference policy on the small trace, so that no change goes unseen; of every
# release series from the one that is named on.
GOLDEN = {
    "fcfs": {"steps": 3433, "preemptions": 56, "recomputed_tokens": 28527},
    "fcfs-watermark": {"steps": 3450, "preemptions": 35, "recomputed_tokens": 17601},
    "priority-max-tokens": {"steps": 3485, "preemptions": 54, "recomputed_tokens": 32120},
    "priority-prompt-length": {"steps": 3540, "preemptions": 48, "recomputed_tokens": 29838},
}
# A sequence that preempts itself under vLLM's priorities no longer ends the step for the others.
GOLDEN_SINCE_0_33 = GOLDEN | {
    "priority-max-tokens": {"steps": 3484, "preemptions": 54, "recomputed_tokens": 32105},
    "priority-prompt-length": {"steps": 3537, "preemptions": 48, "recomputed_tokens": 29855},
}


@pytest.fixture(scope="module")
def fcfs(vllm, trace, tight, cost):
    run = Run(trace, tight, cost, POLICIES["fcfs"])
    return run, run.execute()


@pytest.mark.parametrize("name", list(POLICIES))
def test_golden_counts(name, trace, tight, cost):
    found = replay(trace, tight, cost, policy(name)).metrics
    golden = (GOLDEN_SINCE_0_33 if series(version()) >= (0, 33) else GOLDEN)[name]
    assert {key: found[key] for key in golden} == golden
    assert found.keys() >= DESIGN


def test_a_replay_takes_hundreds_of_steps_a_second(fcfs):
    assert metrics(fcfs[1])["steps_per_cpu_s"] > 500


def test_the_same_run_twice(fcfs, trace, tight, cost):
    again = metrics(Run(trace, tight, cost, POLICIES["fcfs"]).execute())
    first = metrics(fcfs[1])
    assert {k: v for k, v in first.items() if k not in MEASURED} == {
        k: v for k, v in again.items() if k not in MEASURED
    }


def test_every_request_ends_with_its_own_length_and_all_memory_is_back(trace, tight, cost):
    grown = {}

    def watch(scheduler, trace, run):
        free = scheduler._free_request

        def freed(request, *args, **kwargs):
            grown[request.request_id] = (request.num_output_tokens, request.status.name)
            return free(request, *args, **kwargs)

        scheduler._free_request = freed

    run = Run(trace, tight, cost, ReplayPolicy("fcfs", install=watch))
    result = run.execute()
    ends = {
        "stop": "FINISHED_STOPPED",
        "length": "FINISHED_LENGTH_CAPPED",
        "abort": "FINISHED_ABORTED",
    }
    assert grown == {one.id: (one.output_length, ends[one.finish_reason]) for one in trace}
    assert {one.finish_reason for one in trace} == set(ends)
    pool = run.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == result.blocks == tight.blocks - 1
    assert not run.scheduler.requests
    assert (result.first > result.arrival).all()
    assert (result.finish >= result.first).all()
    assert (result.waited >= 0).all()


def test_the_scheduler_cannot_see_a_length(trace, tight, cost):
    length = tight.model_length(trace)
    run = Run(trace, tight, cost, POLICIES["fcfs"])
    for one in trace:
        made = run._make(one, one.arrival)
        assert made.max_tokens == (one.max_length or length - one.prompt_length)
        assert one.output_length not in vars(made).values() or one.output_length in (
            made.max_tokens,
            made.num_prompt_tokens,
        )
        assert made.num_output_tokens == 0
        longer = run._make(replace(one, output_length=one.output_length + 1), one.arrival)
        assert repr(longer.sampling_params) == repr(made.sampling_params)
        assert longer.sampling_params.extra_args == made.sampling_params.extra_args


def test_shared_prefixes_hit_the_cache_and_others_do_not(cost):
    frame = generate("mooncake-conversation", 60, seed=2).filter(pl.col("prompt_length") < 20_000)
    settings = EngineSettings(blocks=30_000, prefix_caching=True)
    trace = at_rate(make_trace(frame), 0.2)
    result = Run(trace, settings, cost, POLICIES["fcfs"]).execute()
    seen, shared = set(), 0
    for one in trace:  # block by block from the start, as long as all were seen before
        for block in one.blocks[: one.prompt_length // 512]:
            if block not in seen:
                break
            shared += 512
        seen |= set(one.blocks)
    assert shared > 10_000
    assert result.cached_tokens == pytest.approx(shared, rel=0.05)
    off = Run(trace, replace(settings, prefix_caching=False), cost, POLICIES["fcfs"]).execute()
    assert off.cached_tokens == 0
    alone = make_trace(frame.drop("prefix_hashes"))
    assert Run(alone, settings, cost, POLICIES["fcfs"]).execute().cached_tokens == 0


def test_offline_and_closed_loop_finish_the_same_work(trace, tight, cost, fcfs):
    offline = Run(at_once(trace), tight, cost, POLICIES["fcfs"]).execute()
    closed = Run(trace, tight, cost, POLICIES["fcfs"], concurrency=4).execute()
    assert offline.output.sum() == closed.output.sum() == fcfs[1].output.sum()
    assert max(point[2] + point[3] for point in closed.memory) == 4
    assert offline.arrival.max() == 0


def test_recomputed_tokens_are_prefill_beyond_the_prompts(fcfs):
    result = fcfs[1]
    again = result.prefill_tokens - result.prompt.sum()
    # A resumed request also computes its newest token in the prefill: one for each resumption.
    assert result.recomputed_tokens == again - result.preemptions


def test_the_watermark_is_what_is_set_aside(trace, tight, cost, fcfs):
    assert fcfs[1].reserved_unused_block_s == 0
    kept = Run(trace, replace(tight, watermark=0.1), cost, POLICIES["fcfs"]).execute()
    assert kept.reserved_unused_block_s > 0


def test_the_tuned_watermark_is_no_worse_than_any(trace, tight, cost, fcfs):
    tuned = replay(trace, tight, cost, POLICIES["fcfs-watermark"])
    assert tuned.metrics["mean_latency_s"] <= metrics(fcfs[1])["mean_latency_s"]


def test_loads_queue_as_they_should(trace, tight, cost):
    able = capacity(trace, tight, cost)
    most = wait_share(Run(at_once(trace), tight, cost, POLICIES["fcfs"]).execute())
    found = {name: at_load(name, trace, tight, cost) for name in LOADS}
    for name, one in found.items():
        assert one.reached
        assert one.capacity == able
        assert rate_of(one.trace) == pytest.approx(one.rate)
        assert LOADS[name].least * most <= wait_share(one.default) <= LOADS[name].most
        steps = np.log(one.rate / (LOADS[name].share * able)) / np.log(LOADS[name].factor)
        assert steps == pytest.approx(round(steps), abs=1e-6)
    rates = [one.rate for one in found.values()]
    assert rates == sorted(rates)


def test_a_load_that_no_rate_reaches_says_so(trace, tight, cost, monkeypatch):
    few = replace(tight, max_num_seqs=4)
    together = [replace(one, arrival=100.0 * (k // 20)) for k, one in enumerate(trace[:40])]
    monkeypatch.setattr("sagellm_lifetime.replay.load.TRIES", 2)
    told = []
    found = at_load("relaxed", together, few, cost, lambda *at: told.append(at))
    assert told == sorted(told)
    assert {tried for tried, share in told if share == 1.0} == set(range(max(told)[0] + 1))
    assert not found.reached
    assert wait_share(found.default) > LOADS["relaxed"].most
    assert at_load("overload", together, few, cost).reached
    assert at_load("2.5", together, few, cost).reached


def test_a_policy_that_serves_nobody_is_one_line(trace, tight, cost):
    def lazy(scheduler, trace, run):
        newer = hasattr(scheduler, "max_num_active_reqs")  # since vLLM 0.31
        setattr(scheduler, "max_num_active_reqs" if newer else "max_num_running_reqs", 0)

    with pytest.raises(LifetimeError, match="stuck") as error:
        Run(trace[:3], tight, cost, ReplayPolicy("lazy", install=lazy)).execute()
    assert "\n" not in str(error.value)


def test_what_a_policy_is_given(trace, tight, cost):
    seen = {}

    def install(scheduler, trace, run):
        seen.update(clock=scheduler.clock(), trace=trace, run=run)

    run = Run(trace[:5], tight, cost, ReplayPolicy("x", install=install))
    run.execute()
    assert seen == {"clock": 0.0, "trace": trace[:5], "run": run}
    assert run.scheduler.clock() == run.now > 0


def test_memory_over_time_is_within_the_pool(fcfs):
    used = np.array([point[1] for point in fcfs[1].memory])
    assert used.max() <= fcfs[1].blocks
    assert used.max() > 0.9 * fcfs[1].blocks


def test_memory_is_drawn_as_idle_while_nobody_is_there(trace, tight, cost, monkeypatch):
    from sagellm_lifetime.replay import result

    def far_apart(count):
        return [replace(one, arrival=1000.0 * k) for k, one in enumerate(trace[:count])]

    def held(count):
        """Block-seconds, as the step plot has them; and what is true."""
        ran = Run(far_apart(count), tight, cost, POLICIES["fcfs"]).execute()
        times = np.array([point[0] for point in ran.memory])
        used = np.array([point[1] for point in ran.memory])
        assert (np.diff(times) >= 0).all()
        assert ran.memory[-1] == (ran.finish.max(), 0, 0, 0)
        busy = (ran.finish - ran.arrival).sum()
        return (np.diff(times) * (used[:-1] > 0)).sum(), busy

    seconds, busy = held(3)
    assert seconds == pytest.approx(busy)
    # Where few points are kept, the short go, not the idle times.
    monkeypatch.setattr(result.Samples.__init__, "__defaults__", (32,))
    seconds, busy = held(12)
    assert busy / 2 < seconds < 2 * busy
