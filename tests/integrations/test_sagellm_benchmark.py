"""The simulated engines of the benchmark serve everything, and count what happens."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(kv_cache, control_plane, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "sagellm_parts"]:
        del sys.modules[name]


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    count = 60
    return pl.DataFrame(
        {
            "arrival_time": np.arange(count) * 0.5,
            "prompt_length": rng.integers(50, 400, count),
            "actual_length": rng.integers(20, 300, count),
        }
    )


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize("strategy", ["lru", "lifetime"])
def test_eviction(frame, strategy):
    from sagellm_parts import eviction

    requests = eviction.plain(frame, 60, 1.0)
    found = eviction.Engine(requests, 6000, strategy, eviction.trained(frame)).run()
    assert all(request.generated == request.length for request in requests)
    assert found["prefill_s"] >= 0.0001 * frame["prompt_length"].sum()
    assert found["mean_s"] > 0.0


@pytest.mark.usefixtures("benchmarks")
def test_pool(frame, kv_cache):
    from sagellm_parts import eviction, pool

    for make in (
        lambda blocks: pool.ByRatio(blocks, 512, 1.0),
        lambda blocks: pool.ByPlanner(blocks, 512, eviction.trained(frame), 0.95, 16, 0.5),
    ):
        blocks = pool.SageLLMPool(kv_cache.KVPool(6400, 16))
        jobs = pool.jobs_of(frame.to_dicts(), 512)
        found = pool.serve(jobs, make(blocks), blocks, 6400)
        assert all(job.generated == job.length for job in jobs)
        assert blocks.get_free_blocks() == 400
        assert 0.0 < found["unused"] <= found["idle"] < 1.0


@pytest.mark.usefixtures("benchmarks")
def test_orders(frame):
    from sagellm_parts import orders

    for case in ("arrival", "shortest first"):
        assert orders.run(frame, case, slots=4)["makespan_s"] > 0.0
