"""Checks that ``predict_batch`` and ``quantiles`` equal ``predict``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest, PredictionResult
from sagellm_lifetime.testing.common import (
    LEVELS,
    Make,
    finished_sequences,
    make_request,
    questions,
    teach,
    trained,
    variant,
)


def _assert_equal(batch: Sequence[PredictionResult], single: Sequence[PredictionResult]) -> None:
    assert len(batch) == len(single), "one answer per request"
    for i, (a, b) in enumerate(zip(batch, single, strict=True)):
        place = f"answer {i} of the batch"
        assert type(a.estimated_remaining_tokens) is int, f"{place} is no int"
        assert a.estimated_remaining_tokens == b.estimated_remaining_tokens, (
            f"{place}: {a.estimated_remaining_tokens} tokens, single {b.estimated_remaining_tokens}"
        )
        assert abs(a.confidence - b.confidence) <= 1e-9, f"{place}: confidence differs"
        assert abs(a.estimated_time - b.estimated_time) <= 1e-9, f"{place}: time differs"
        assert a.source == b.source, f"{place}: source differs"
        assert a.distribution is not None
        assert b.distribution is not None
        assert np.allclose(
            [a.distribution.survival(n) for n in (1, 5, 50, 500, 5000)],
            [b.distribution.survival(n) for n in (1, 5, 50, 500, 5000)],
        ), f"{place}: distribution differs"


def check_batch_equals_single(make: Make) -> None:
    """Check answers, their order and what is tracked, untrained and trained, for batch sizes."""
    for count in (0, 24):
        predictor, twin = trained(make, count), trained(make, count)
        requests = questions()
        for size in (1, 3, 10):
            for start in range(0, len(requests), size):
                part = requests[start : start + size]
                _assert_equal(predictor.predict_batch(part), [twin.predict(r) for r in part])
        running = predictor.get_metrics()["running"], twin.get_metrics()["running"]
        assert running[0] == running[1], f"{running[0]} tracked by batch, {running[1]} one by one"


def check_empty_batch(make: Make) -> None:
    """Check that an empty batch gives an empty list."""
    assert make().predict_batch([]) == []


def check_same_sequence_twice_in_a_batch(make: Make) -> None:
    """Check that an id may occur several times in a batch, older or as a new sequence."""
    predictor, twin = trained(make), trained(make)
    requests: list[PredictionRequest] = []
    tokens = list(range(400))
    for age in (0, 40, 41, 200, 10):
        requests.append(make_request("again", age, 2048, tokens[: 100 + age], client_id="c3"))
        requests.append(make_request(f"else{age}", age, None))
    _assert_equal(predictor.predict_batch(requests), [twin.predict(r) for r in requests])
    assert predictor.get_metrics()["replaced"] == twin.get_metrics()["replaced"] == 1


def check_batch_larger_than_capacity(make: Make) -> None:
    """Check that sequences that evict each other from the tracker get their own answers."""
    predictor, twin = variant(make, capacity=3), variant(make, capacity=3)
    for learner in (predictor, twin):
        teach(learner)
    requests = questions()
    requests.append(make_request("q4", 1, None))
    _assert_equal(predictor.predict_batch(requests), [twin.predict(r) for r in requests])
    _assert_equal(predictor.predict_batch(requests[:-1]), [twin.predict(r) for r in requests[:-1]])


def check_learning_after_batches(make: Make) -> None:
    """Check that completions of sequences predicted in batches are learned the same."""
    predictor, twin = make(), make()
    stream = list(finished_sequences(40))
    for start in range(0, len(stream), 8):
        part = stream[start : start + 8]
        predictor.predict_batch([request for sequence in part for request in sequence.requests])
        for sequence in part:
            for request in sequence.requests:
                twin.predict(request)
        for sequence in part:
            for learner in (predictor, twin):
                learner.update(
                    sequence.requests[0].sequence_id,
                    sequence.length,
                    sequence.seconds,
                    finish_reason=sequence.finish_reason,
                )
    requests = questions()
    _assert_equal(predictor.predict_batch(requests), [twin.predict(r) for r in requests])


def check_array_form_equals_predict(make: Make) -> None:
    """Check that ``quantiles(ids, ages, levels)`` equals the distributions of ``predict``."""
    predictor = trained(make)
    requests = questions()
    ages = np.array([r.current_length for r in requests])
    results = [predictor.predict(r) for r in requests]
    ids = [r.sequence_id for r in requests]
    table = predictor.quantiles(ids, ages, np.array(LEVELS))
    assert table.shape == (len(ids), len(LEVELS)), f"shape {table.shape}"
    assert np.issubdtype(table.dtype, np.integer), f"dtype {table.dtype}"
    for row, result in zip(table.tolist(), results, strict=True):
        assert result.distribution is not None
        wanted = [result.distribution.quantile(level) for level in LEVELS]
        assert row == wanted, f"{row} by array, {wanted} by predict"
    # At later ages, without predict before: equal to what predict returns afterwards.
    later = np.where(ages < 512, ages + 3, ages)
    points = predictor.quantiles(ids, later, 0.5)
    assert points.shape == (len(ids),)
    for point, request, age in zip(points.tolist(), requests, later.tolist(), strict=True):
        bare = PredictionRequest(
            request.sequence_id, [], age, request.max_length, request.prompt_features
        )
        estimate = predictor.predict(bare).estimated_remaining_tokens
        assert point == estimate, f"{point} by array, {estimate} by predict at age {age}"
    try:
        predictor.quantiles(["never seen"], np.array([0]), 0.5)
    except KeyError:
        pass
    else:
        raise AssertionError("an id that is not tracked must raise KeyError")


def check_array_form_knows_the_newest_cap(make: Make) -> None:
    """Check that a cap set, raised or lowered after the first request bounds ``quantiles``."""
    predictor = trained(make)
    for age, cap in ((0, None), (1, 20), (2, 40), (3, None)):
        wanted = predictor.predict(make_request("capped", age, cap)).distribution
        assert wanted is not None
        values = predictor.quantiles(["capped"], np.array([age]), 0.99).tolist()
        assert values == [wanted.quantile(0.99)], f"cap {cap}: {values}"


CHECKS = [
    check_batch_equals_single,
    check_empty_batch,
    check_same_sequence_twice_in_a_batch,
    check_batch_larger_than_capacity,
    check_learning_after_batches,
    check_array_form_equals_predict,
    check_array_form_knows_the_newest_cap,
]
