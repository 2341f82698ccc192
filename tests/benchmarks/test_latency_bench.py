"""The cases of ``benchmarks/latency.py`` under pytest-benchmark (skipped by ``--benchmark-skip``).

pytest tests/benchmarks/test_latency_bench.py --benchmark-only
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagellm_lifetime import PREDICTORS

pytest.importorskip("torch")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def latency() -> Iterator[Any]:
    import torch

    threads = torch.get_num_threads()
    sys.path.insert(0, str(BENCHMARKS))
    torch.set_num_threads(1)
    yield import_module("latency")
    torch.set_num_threads(threads)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module", params=PREDICTORS)
def predictor(request: pytest.FixtureRequest, latency: Any) -> Any:
    return latency.trained(request.param, latency.history(), epochs=1)


def test_first_prediction(benchmark: Any, latency: Any, predictor: Any) -> None:
    calls = latency.Calls()
    benchmark.pedantic(predictor.predict, setup=lambda: ((calls.start(),), {}), rounds=300)


def test_later_step(benchmark: Any, latency: Any, predictor: Any) -> None:
    calls = latency.Calls()
    start = calls.start()
    predictor.predict(start)
    predictor.predict(calls.later(start, 4096))
    benchmark(predictor.predict, calls.later(start, 4100))


def test_predict_batch(benchmark: Any, latency: Any, predictor: Any) -> None:
    calls = latency.Calls()
    starts, ages = latency.running(predictor, calls)
    requests = [calls.later(r, int(a) + 1) for r, a in zip(starts, ages, strict=True)]
    benchmark(predictor.predict_batch, requests)


def test_quantiles(benchmark: Any, latency: Any, predictor: Any) -> None:
    starts, ages = latency.running(predictor, latency.Calls())
    ids = [start.sequence_id for start in starts]
    found = benchmark(predictor.quantiles, ids, ages, 0.5)
    assert np.all(found >= 1)


def test_new_chunk(benchmark: Any, latency: Any, predictor: Any) -> None:
    calls = latency.Calls()

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        start = calls.start()
        predictor.predict(start)
        return (calls.later(start, 128),), {}

    benchmark.pedantic(predictor.predict, setup=setup, rounds=200)


def test_update(benchmark: Any, latency: Any, predictor: Any) -> None:
    calls = latency.Calls()

    def setup() -> tuple[tuple[Any, int, float], dict[str, Any]]:
        start = calls.start()
        predictor.predict(start)
        return (start.sequence_id, 300, 4.0), {}

    benchmark.pedantic(predictor.update, setup=setup, rounds=300)
