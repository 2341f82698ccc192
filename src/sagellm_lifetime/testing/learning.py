"""Checks of learning: lengths, kinds of requests, and lower bounds as lower bounds."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.testing.common import (
    Make,
    assert_refused,
    make_request,
    trained,
    what_is_known,
)


def _estimate(predictor: Predictor, request: PredictionRequest) -> int:
    estimate = predictor.predict(request).estimated_remaining_tokens
    predictor.discard(request.sequence_id)
    return estimate


def check_learns_a_constant_length(make: Make) -> None:
    """Check that 100 completions of 300 tokens give an estimate of 300 and high confidence."""
    predictor = make()
    untrained = predictor.predict(make_request("before")).confidence
    for i in range(100):
        predictor.predict(make_request(i))
        predictor.update(i, 300, 3.0)
    result = predictor.predict(make_request("after"))
    assert 270 <= result.estimated_remaining_tokens <= 330, (
        f"{result.estimated_remaining_tokens} after 100 completions of 300"
    )
    assert result.confidence > max(untrained, 0.5), f"confidence {result.confidence}"


def check_learning_reaches_running_sequences(make: Make) -> None:
    """Check that a sequence predicted before some completions is predicted from them later."""
    predictor = make()
    predictor.predict(make_request("running", 0, None))
    for i in range(64):
        predictor.predict(make_request(i, 0, None))
        predictor.update(i, 1500, 3.0)
    estimate = predictor.predict(make_request("running", 1, None)).estimated_remaining_tokens
    assert 1000 <= estimate <= 2250, f"{estimate} left, of sequences of 1500"


def check_separates_kinds(make: Make) -> None:
    """Check that two kinds of requests that differ in every feature get different estimates."""
    predictor = make()
    kinds: list[dict[str, Any]] = [
        {"cap": 200, "client_id": "short", "model": "small", "prompt_length": 20},
        {"cap": 4000, "client_id": "long", "model": "large", "prompt_length": 3000},
    ]
    rng = np.random.default_rng(0)
    for i in range(120):
        predictor.predict(make_request(i, **kinds[i % 2]))
        predictor.update(i, int((50, 1000)[i % 2] * rng.uniform(0.9, 1.1)), 1.0)
    short, long = (_estimate(predictor, make_request(f"new{k}", **kinds[k])) for k in (0, 1))
    assert short < 150, f"{short} for the kind of 50 tokens"
    assert long > 500, f"{long} for the kind of 1000 tokens"


def check_aborts_do_not_shorten(make: Make) -> None:
    """Check that sequences of 400 tokens stay at 400 if 30 % are aborted at uniform ages."""
    predictor = make()
    rng = np.random.default_rng(1)
    for i in range(160):
        predictor.predict(make_request(i, 0, 2048))
        if rng.random() < 0.3:
            reason = ("abort", "error")[i % 2]
            predictor.update(i, int(rng.integers(1, 400)), 1.0, finish_reason=reason)
        else:
            predictor.update(i, 400, 1.0)
    distribution = predictor.predict(make_request("new", 0, 2048)).distribution
    assert distribution is not None
    low, middle = distribution.quantile(0.15), distribution.quantile(0.5)
    # If aborts counted as lengths, 15 % of the sequences would be below 200.
    assert low >= 280, f"15 % end before {low}, of sequences of 400 of which 30 % are aborted"
    assert 340 <= middle <= 460, f"{middle}, of sequences of 400 of which 30 % are aborted"


def check_only_aborts_do_not_shorten(make: Make) -> None:
    """Check that aborts after 8 tokens, without other endings, do not make 8 a length."""
    predictor = make()
    before = _estimate(predictor, make_request("before", 0, 2048))
    for i in range(100):
        predictor.predict(make_request(i, 0, 2048))
        predictor.update(i, 8, 1.0, finish_reason="abort")
    after = _estimate(predictor, make_request("after", 0, 2048))
    assert after >= 0.7 * before, f"{before} before and {after} after 100 aborts at 8 tokens"


def check_caps_do_not_shorten(make: Make) -> None:
    """Check that sequences cut at their cap are taken to be at least that long."""
    predictor = make()
    for i in range(100):
        predictor.predict(make_request(i, 0, 300))
        predictor.update(i, 300, 1.0, finish_reason="length")
    for cap, least in ((300, 300), (4096, 270)):
        estimate = _estimate(predictor, make_request(f"cap{cap}", 0, cap))
        assert estimate >= 0.9 * least, f"{estimate} under cap {cap}: all had at least 300"


def check_bad_completions_are_refused(make: Make) -> None:
    """Check that a bad completion is refused in one line and its sequence still tracked."""
    predictor = trained(make)
    bad: list[tuple[Any, Any, Any]] = [
        (-1, 1.0, "stop"),
        (10.0, 1.0, "stop"),
        (float("nan"), 1.0, "stop"),
        (float("inf"), 1.0, "stop"),
        (True, 1.0, "stop"),
        ("10", 1.0, "stop"),
        (None, 1.0, "stop"),
        (10**30, 1.0, "stop"),
        (10, -1.0, "stop"),
        (10, float("nan"), "stop"),
        (10, float("inf"), "stop"),
        (10, None, "stop"),
        (10, "1", "stop"),
        (10, 1.0, "finished"),
        (10, 1.0, ""),
        (10, 1.0, None),
    ]
    predictor.predict(make_request("kept"))
    before, known = predictor.get_metrics(), what_is_known(predictor)
    for length, seconds, reason in bad:
        update = partial(predictor.update, "kept", length, seconds, finish_reason=reason)
        assert_refused(RequestError, f"update({length!r}, {seconds!r}, {reason!r})", update)
    after = predictor.get_metrics()
    assert after["running"] == before["running"], "a refused completion lost its sequence"
    assert after["lessons"] == before["lessons"]
    assert what_is_known(predictor) == known, "a refused completion was learned"
    predictor.update("kept", 10, 1.0)
    assert predictor.get_metrics()["completions"] == before["completions"] + 1


def check_odd_completions_are_learned(make: Make) -> None:
    """Check that odd completions count: no token, above the cap, instant, after a year."""
    predictor = make()
    odd = [(0, 0.0, "stop"), (0, 0.0, "abort"), (5000, 1.0, "stop"), (3, 4e7, "stop")]
    odd += [(10**6, 1e-9, "length"), (1, 1.0, "error")]
    for i, (length, seconds, reason) in enumerate(odd * 16):
        predictor.predict(make_request(i, 100, 512))
        predictor.update(i, length, seconds, finish_reason=reason)
    metrics = predictor.get_metrics()
    assert metrics["lessons"] == 16 * len(odd)
    estimate = _estimate(predictor, make_request("after"))
    assert 0 < estimate <= 512


CHECKS = [
    check_learns_a_constant_length,
    check_learning_reaches_running_sequences,
    check_separates_kinds,
    check_aborts_do_not_shorten,
    check_only_aborts_do_not_shorten,
    check_caps_do_not_shorten,
    check_bad_completions_are_refused,
    check_odd_completions_are_learned,
]
