"""Tracking and metrics: every sequence is counted once, whatever happens to it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from math import isclose, isnan
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.testing.common import EXAMPLES, Make, asked, variant

_FIELDS = ("total_predictions", "mae", "mse", "accuracy_within_10_percent", "avg_confidence")
_ENDS = ("completions", "censored", "running", "expired", "replaced", "discarded")


def _assert_adds_up(predictor: Predictor) -> dict[str, Any]:
    metrics = predictor.get_metrics()
    total = sum(metrics[end] for end in _ENDS)
    counts = {end: metrics[end] for end in _ENDS}
    assert metrics["total_predictions"] == total, f"{metrics['total_predictions']} of {counts}"
    return metrics


def check_life_of_a_sequence(make: Make) -> None:
    """Unknown, completed twice, aborted, discarded and re-used ids are all defined."""
    predictor = make()
    predictor.update("unknown", 10, 1.0)
    predictor.discard("unknown")
    metrics = _assert_adds_up(predictor)
    assert metrics["unknown_updates"] == 1
    assert metrics["lessons"] == metrics["discarded"] == 0, "an unknown id taught something"

    predictor.predict(asked(1))
    predictor.predict(asked(1, 5))
    predictor.update(1, 10, 1.0)
    predictor.update(1, 10, 1.0)
    metrics = _assert_adds_up(predictor)
    assert (metrics["completions"], metrics["unknown_updates"]) == (1, 2), "counted twice"
    assert metrics["total_predictions"] == 1, "asking again is not another sequence"

    predictor.predict(asked(2))
    predictor.update(2, 4, 1.0, finish_reason="abort")
    assert _assert_adds_up(predictor)["censored"] == 1

    predictor.predict(asked(3, 50))
    predictor.predict(asked(3, 0))
    assert _assert_adds_up(predictor)["replaced"] == 1, "an age that falls is a new sequence"

    predictor.discard(3)
    predictor.discard(3)
    predictor.update(3, 10, 1.0)
    metrics = _assert_adds_up(predictor)
    assert (metrics["discarded"], metrics["running"], metrics["unknown_updates"]) == (1, 0, 3)

    predictor.predict(asked(1))
    predictor.update(1, 10, 1.0)
    assert _assert_adds_up(predictor)["completions"] == 2, "an id may be used again"


def check_capacity_and_expiry(make: Make) -> None:
    """Tracking is bounded: the sequence not heard of for longest makes room."""
    predictor = variant(make, capacity=4)
    for i in range(4):
        predictor.predict(asked(i))
    predictor.predict(asked(0, 1))
    predictor.predict(asked("new"))
    metrics = _assert_adds_up(predictor)
    assert (metrics["running"], metrics["expired"]) == (4, 1)
    predictor.update(1, 10, 1.0)
    assert predictor.get_metrics()["unknown_updates"] == 1, "1 was the oldest"
    predictor.update(0, 10, 1.0)
    assert predictor.get_metrics()["completions"] == 1, "0 had been asked about again"

    predictor = variant(make, expire_after=0.0)
    for i in range(10):
        predictor.predict(asked(i))
    metrics = _assert_adds_up(predictor)
    assert (metrics["running"], metrics["expired"]) == (1, 9), "sequences do not expire"


def check_counts_add_up(make: Make) -> None:
    """Whatever is called in whatever order, no sequence is lost or counted twice."""
    ids = st.integers(0, 5)
    steps = st.one_of(
        st.tuples(st.just("predict"), ids, st.integers(0, 60)),
        st.tuples(st.just("batch"), ids, st.integers(0, 60)),
        st.tuples(st.just("update"), ids, st.sampled_from(["stop", "length", "abort", "error"])),
        st.tuples(st.just("discard"), ids, st.none()),
    )

    @EXAMPLES
    @given(st.lists(steps, max_size=40), st.sampled_from([2, 4, 100]))
    def law(sequence: list[tuple[str, int, Any]], capacity: int) -> None:
        predictor = variant(make, capacity=capacity, online="off")
        running: dict[int, int] = {}
        for kind, i, what in sequence:
            if kind in ("predict", "batch"):
                if kind == "predict":
                    predictor.predict(asked(i, what))
                else:
                    predictor.predict_batch([asked(i, what), asked(i + 1, what), asked(i, what)])
                    running[i + 1] = what
                running[i] = what
            elif kind == "update":
                predictor.update(i, 70, 1.0, finish_reason=what)
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
    """NaN before anything is scored; then the first prediction of each that ends by itself."""
    predictor = make()
    metrics = predictor.get_metrics()
    assert set(_FIELDS) <= set(metrics), f"fields missing: {set(_FIELDS) - set(metrics)}"
    assert metrics["total_predictions"] == 0
    for field in _FIELDS[1:]:
        assert isnan(metrics[field]), f"{field} is {metrics[field]} before anything was scored"
    errors, hits, said = [], [], []
    lengths = (100, 80, 400, 250, 31, 300, 290, 305, 120)
    for i, length in enumerate(lengths):
        first = predictor.predict(asked(i, i))
        predictor.predict(asked(i, 20))
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
        said.append(first.confidence)
    n = len(errors)
    wanted = {
        "total_predictions": len(lengths),
        "mae": sum(errors) / n,
        "mse": sum(e * e for e in errors) / n,
        "accuracy_within_10_percent": sum(hits) / n,
        "avg_confidence": sum(said) / n,
        "scored": n,
        "capped": 1,
        "censored": 2,
    }
    metrics = predictor.get_metrics()
    for field, value in wanted.items():
        assert isclose(metrics[field], value), f"{field} is {metrics[field]}, by hand {value}"


def check_threads(make: Make) -> None:
    """Four threads predict, update and discard at once; nothing fails and counts add up."""
    predictor = make()
    each = 30

    def work(thread: int) -> None:
        for i in range(each):
            name = f"{thread}-{i}"
            predictor.predict(asked(name))
            predictor.predict_batch([asked(name, 3), asked("shared", i)])
            predictor.quantiles([name], np.array([3]), 0.5)
            if i % 3 == 0:
                predictor.discard(name)
            else:
                predictor.update(name, 20 + i, 0.5)
            if i % 10 == 0:
                predictor.get_metrics()

    interval = sys.getswitchinterval()
    # Switched every few instructions, what is not guarded soon breaks.
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, thread) for thread in range(4)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    metrics = _assert_adds_up(predictor)
    assert metrics["completions"] == 4 * (each - each // 3)
    assert metrics["discarded"] == 4 * (each // 3)
    assert metrics["running"] == 1


CHECKS = [
    check_life_of_a_sequence,
    check_capacity_and_expiry,
    check_counts_add_up,
    check_metrics_by_hand,
    check_threads,
]
