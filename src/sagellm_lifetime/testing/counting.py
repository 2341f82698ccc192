"""Checks of tracking and metrics: every sequence is counted exactly once."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from math import isclose, isnan
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.testing.common import EXAMPLES, Make, make_request, variant

_FIELDS = ("total_predictions", "mae", "mse", "accuracy_within_10_percent", "avg_confidence")
_ENDS = ("completions", "censored", "running", "expired", "replaced", "discarded")


def _assert_adds_up(predictor: Predictor) -> dict[str, Any]:
    metrics = predictor.get_metrics()
    total = sum(metrics[end] for end in _ENDS)
    counts = {end: metrics[end] for end in _ENDS}
    assert metrics["total_predictions"] == total, f"{metrics['total_predictions']} of {counts}"
    return metrics


def check_life_of_a_sequence(make: Make) -> None:
    """Check ids that are unknown, completed twice, aborted, discarded and used again."""
    predictor = make()
    predictor.update("unknown", 10, 1.0)
    predictor.discard("unknown")
    metrics = _assert_adds_up(predictor)
    assert metrics["unknown_updates"] == 1
    assert metrics["lessons"] == metrics["discarded"] == 0, "an unknown id was learned"

    predictor.predict(make_request(1))
    predictor.predict(make_request(1, 5))
    predictor.update(1, 10, 1.0)
    predictor.update(1, 10, 1.0)
    metrics = _assert_adds_up(predictor)
    assert (metrics["completions"], metrics["unknown_updates"]) == (1, 2), "counted twice"
    assert metrics["total_predictions"] == 1, "a second request is not another sequence"

    predictor.predict(make_request(2))
    predictor.update(2, 4, 1.0, finish_reason="abort")
    assert _assert_adds_up(predictor)["censored"] == 1

    predictor.predict(make_request(3, 50))
    predictor.predict(make_request(3, 0))
    assert _assert_adds_up(predictor)["replaced"] == 1, "an age that falls is a new sequence"

    predictor.discard(3)
    predictor.discard(3)
    predictor.update(3, 10, 1.0)
    metrics = _assert_adds_up(predictor)
    assert (metrics["discarded"], metrics["running"], metrics["unknown_updates"]) == (1, 0, 3)

    predictor.predict(make_request(1))
    predictor.update(1, 10, 1.0)
    assert _assert_adds_up(predictor)["completions"] == 2, "an id may be used again"


def check_capacity_and_expiry(make: Make) -> None:
    """Check that tracking is bounded and drops the least recently predicted sequence."""
    predictor = variant(make, capacity=4)
    for i in range(4):
        predictor.predict(make_request(i))
    predictor.predict(make_request(0, 1))
    predictor.predict(make_request("new"))
    metrics = _assert_adds_up(predictor)
    assert (metrics["running"], metrics["expired"]) == (4, 1)
    predictor.update(1, 10, 1.0)
    assert predictor.get_metrics()["unknown_updates"] == 1, "1 was the oldest"
    predictor.update(0, 10, 1.0)
    assert predictor.get_metrics()["completions"] == 1, "0 had been predicted again"

    predictor = variant(make, expire_after=0.0)
    for i in range(10):
        predictor.predict(make_request(i))
    metrics = _assert_adds_up(predictor)
    assert (metrics["running"], metrics["expired"]) == (1, 9), "sequences do not expire"


def check_counts_add_up(make: Make) -> None:
    """Check that calls in any order neither lose a sequence nor count one twice."""
    ids = st.integers(0, 5)
    steps = st.one_of(
        st.tuples(st.just("predict"), ids, st.integers(0, 60)),
        st.tuples(st.just("batch"), ids, st.integers(0, 60)),
        st.tuples(st.just("update"), ids, st.sampled_from(["stop", "length", "abort", "error"])),
        st.tuples(st.just("discard"), ids, st.none()),
    )

    @EXAMPLES
    @given(st.lists(steps, max_size=40), st.sampled_from([2, 4, 100]))
    def law(calls: list[tuple[str, int, Any]], capacity: int) -> None:
        predictor = variant(make, capacity=capacity, online="off")
        running: dict[int, int] = {}
        for call, i, argument in calls:
            if call in ("predict", "batch"):
                if call == "predict":
                    predictor.predict(make_request(i, argument))
                else:
                    ids_in_batch = (i, i + 1, i)
                    predictor.predict_batch([make_request(name, argument) for name in ids_in_batch])
                    running[i + 1] = argument
                running[i] = argument
            elif call == "update":
                predictor.update(i, 70, 1.0, finish_reason=argument)
                running.pop(i, None)
            else:
                predictor.discard(i)
                running.pop(i, None)
            metrics = _assert_adds_up(predictor)
            assert metrics["running"] <= capacity
            if capacity == 100:
                assert metrics["running"] == len(running), f"{metrics['running']} tracked"

    law()


def check_metrics_by_hand(make: Make) -> None:
    """Check metrics against hand-computed ones, and NaN before anything is scored."""
    predictor = make()
    metrics = predictor.get_metrics()
    assert set(_FIELDS) <= set(metrics), f"fields missing: {set(_FIELDS) - set(metrics)}"
    assert metrics["total_predictions"] == 0
    for field in _FIELDS[1:]:
        assert isnan(metrics[field]), f"{field} is {metrics[field]} before anything was scored"
    errors, hits, confidences = [], [], []
    lengths = (100, 80, 400, 250, 31, 300, 290, 305, 120)
    for i, length in enumerate(lengths):
        first = predictor.predict(make_request(i, i))
        predictor.predict(make_request(i, 20))
        if i == 4:
            predictor.update(i, 25, 1.0, finish_reason="abort")
            continue
        if i == 5:
            predictor.update(i, length, 1.0, finish_reason="length")
            continue
        predictor.update(i, length, 1.0)
        error = i + first.estimated_remaining_tokens - length
        errors.append(abs(error))
        hits.append(abs(error) <= 0.1 * length)
        confidences.append(first.confidence)
    n = len(errors)
    wanted = {
        "total_predictions": len(lengths),
        "mae": sum(errors) / n,
        "mse": sum(e * e for e in errors) / n,
        "accuracy_within_10_percent": sum(hits) / n,
        "avg_confidence": sum(confidences) / n,
        "scored": n,
        "capped": 1,
        "censored": 2,
    }
    metrics = predictor.get_metrics()
    for field, value in wanted.items():
        assert isclose(metrics[field], value), f"{field} is {metrics[field]}, by hand {value}"


def check_threads(make: Make) -> None:
    """Check that counts add up after four threads predict, update and discard at once."""
    predictor = make()
    per_thread = 30

    def work(thread: int) -> None:
        for i in range(per_thread):
            name = f"{thread}-{i}"
            predictor.predict(make_request(name))
            predictor.predict_batch([make_request(name, 3), make_request("shared", i)])
            predictor.quantiles([name], np.array([3]), 0.5)
            if i % 3 == 0:
                predictor.discard(name)
            else:
                predictor.update(name, 20 + i, 0.5)
            if i % 10 == 0:
                predictor.get_metrics()

    interval = sys.getswitchinterval()
    # Switching threads every few instructions soon breaks what is not guarded.
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, thread) for thread in range(4)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    metrics = _assert_adds_up(predictor)
    assert metrics["completions"] == 4 * (per_thread - per_thread // 3)
    assert metrics["discarded"] == 4 * (per_thread // 3)
    assert metrics["running"] == 1


CHECKS = [
    check_life_of_a_sequence,
    check_capacity_and_expiry,
    check_counts_add_up,
    check_metrics_by_hand,
    check_threads,
]
