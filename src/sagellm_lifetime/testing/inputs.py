"""Checks of inputs: kinds of ids and numbers, missing and unknown features, nonsense."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.testing.common import (
    Make,
    assert_refused,
    make_request,
    outlook,
    trained,
    variant,
)
from sagellm_lifetime.testing.contract import check_answer

_NONSENSE: list[dict[str, Any]] = [
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "hot"},
    {"temperature": 1e19},
    {"temperature": -1e308},
    {"turn": float("nan")},
    {"turn": -3},
    {"turn": 10**400},
    {"prompt_length": -1},
    {"prompt_length": 10**400},
    {"arrival_time": float("nan")},
    {"eos_logprob": float("-inf"), "entropy": float("nan")},
    {"eos_logprob": "low", "entropy": [1]},
    {"prefix_hashes": [-(2**63), 2**64 - 1, 2**200, 3]},
    {"prefix_hashes": "abc"},
    {"model": "\ud800", "client_id": "\udfff", "session_id": ""},
    {"prompt_text": "\ud800 \x00 😀", "output_text": ""},
    {"has_tools": "yes", "response_format": {"type": "json"}, "enable_thinking": 0},
    {"hidden_state": [0.0, float("nan")]},
]
_IMPOSSIBLE: list[tuple[Any, Any]] = [
    (-1, None),
    (1.0, None),
    (True, None),
    (None, None),
    ("7", None),
    (2**80, None),
    (0, -1),
    (0, 1.5),
    (0, float("nan")),
    (0, "512"),
    (0, 2**80),
]


def check_every_kind_of_id_and_number(make: Make) -> None:
    """Check ids that are ints or strings and NumPy's integers; each sequence is its own."""
    predictor = make()
    for name in (0, -5, 2**70, "0", "", "req-1#2", "käse\n"):
        request = make_request(name)
        check_answer(predictor.predict(request), request)
    assert predictor.get_metrics()["total_predictions"] == 7, "1 and '1' are two sequences"
    plain = outlook(make().predict(make_request(1, 200, 250)))
    for integer in (np.uint8, np.int16, np.int32, np.uint64, np.int64):
        request = make_request(1, integer(200), integer(250))
        result = make().predict(request)
        check_answer(result, request)
        assert outlook(result) == plain, f"{integer.__name__} lengths change the answer"
    predictor.predict(make_request(1))
    numbers: tuple[Any, Any] = np.int32(300), np.float32(3.0)
    predictor.update(1, *numbers)


def check_empty_and_partial_tokens(make: Make) -> None:
    """Check answers without tokens, with only the prompt, and with prompt and output."""
    predictor = trained(make)
    for i, tokens in enumerate(([], [1, 2, 3], list(range(100)), list(range(140)))):
        for age in (0, 40, 100):
            request = make_request(f"{i} {age}", age, 512, tokens, prompt_length=40)
            check_answer(predictor.predict(request), request)
            predictor.update(f"{i} {age}", 150, 1.0)


def check_unknown_features_are_ignored(make: Make) -> None:
    """Check that an unknown key changes nothing."""
    predictor, twin = trained(make), trained(make)
    plain = predictor.predict(make_request("x", 0, 512, client_id="c1"))
    odd = twin.predict(make_request("x", 0, 512, client_id="c1", unknown_key=object()))
    assert outlook(plain) == outlook(odd)


def check_missing_differs_from_zero(make: Make) -> None:
    """Check that ``None`` and 0 are accepted, and differ where the contract says so."""
    predictor = trained(make)
    assert predictor.predict(make_request("none", 0, None)).estimated_remaining_tokens >= 1
    assert predictor.predict(make_request("zero", 0, 0)).estimated_remaining_tokens == 0
    for key in ("prompt_length", "turn", "temperature", "arrival_time", "has_tools"):
        for value in (0, None):
            features: dict[str, Any] = {key: value}
            request = make_request(f"{key} {value}", 0, 512, **features)
            check_answer(predictor.predict(request), request)
    without = outlook(predictor.predict(make_request("without")))
    nothing = outlook(predictor.predict(make_request("nothing", prompt_length=None, turn=None)))
    assert without == nothing, "a key that is None is a key that is missing"


def check_nonsense_does_no_harm(make: Make) -> None:
    """Check that an odd feature is refused in one line or answered, and spoils nothing."""
    predictor = make()
    for _ in range(2):
        for i, odd in enumerate(_NONSENSE):
            tokens = list(range(150))
            request = PredictionRequest(f"odd{i}", tokens, 100, 512, {"prompt_length": 50, **odd})
            with suppress(RequestError):
                check_answer(predictor.predict(request), request)
                predictor.update(f"odd{i}", 200, 1.0)
    for i in range(60):
        predictor.predict(make_request(f"sane{i}", temperature=1.0))
        predictor.update(f"sane{i}", 200, 1.0)
    request = make_request("after", temperature=1.0)
    result = predictor.predict(request)
    check_answer(result, request)
    assert 100 <= result.estimated_remaining_tokens <= 300, "nonsense has spoilt what is learned"
    predictor.clone()


def check_impossible_requests_are_refused(make: Make) -> None:
    """Check that a refusal is one line and tracks nothing, also for the rest of a batch."""
    predictor = make()
    for age, cap in _IMPOSSIBLE:
        bad, description = make_request("bad", age, cap), f"age {age!r} under cap {cap!r}"
        assert_refused(RequestError, description, partial(predictor.predict, bad))
        batch = [make_request("good"), bad]
        assert_refused(
            RequestError, f"a batch with {description}", partial(predictor.predict_batch, batch)
        )
    assert predictor.get_metrics()["running"] == 0, "a refused batch was tracked"
    assert_refused(
        RequestError, "a list as sequence_id", lambda: predictor.predict(make_request([]))
    )


def check_refused_request_changes_nothing(make: Make) -> None:
    """Check that a refused request leaves the running sequence of its id as it was."""
    predictor, twin = trained(make), trained(make)
    tokens = list(range(30))
    for learner in (predictor, twin):
        learner.predict(make_request("running", 40, 512, tokens, prompt_length=30))
    before = str(predictor.get_metrics())  # NaN is not equal to itself
    for odd in ({"temperature": float("nan")}, {"prompt_length": "many"}, {"turn": 10**400}):
        for age in (0, 39):
            bad = make_request("running", age, 512, tokens, **odd)
            assert_refused(RequestError, str(list(odd)), partial(predictor.predict, bad))
            assert_refused(RequestError, str(list(odd)), partial(predictor.predict_batch, [bad]))
    for ending in ((-1, 1.0), (5, float("nan")), (5, 10**400), (10**5000, 1.0), (True, 1.0)):
        update = partial(predictor.update, "running", *ending)
        assert_refused(RequestError, "an impossible completion", update)
    later = make_request("running", 41, 512, [*tokens, *range(41)], prompt_length=30)
    assert str(predictor.get_metrics()) == before, "a refused call has changed the metrics"
    assert outlook(predictor.predict(later)) == outlook(twin.predict(later))


def check_refused_batch_changes_nothing(make: Make) -> None:
    """Check that a batch of any size with one impossible request predicts nothing."""
    good, bad = make_request("good"), make_request("bad", prompt_length="many")
    again = [make_request("again", 3), make_request("again", 0, temperature=float("inf"))]
    for batch in (
        [good, bad],
        [bad, good],
        [good, *again],
        [good, make_request("other"), bad, good],
    ):
        for capacity in (2, 64):
            predictor = variant(make, capacity=capacity)
            for name in ("one", "two"):
                predictor.predict(make_request(name, 7))
            before = str(predictor.get_metrics())  # NaN is not equal to itself
            assert_refused(RequestError, "the batch", partial(predictor.predict_batch, batch))
            assert str(predictor.get_metrics()) == before, "a refused batch has changed the metrics"
            for name in ("one", "two", "good"):
                predictor.update(name, 60, 1.0)
            metrics = predictor.get_metrics()
            ends = metrics["completions"], metrics["unknown_updates"]
            assert ends == (2, 1), f"{ends} completed and unknown after a refused batch"


CHECKS = [
    check_every_kind_of_id_and_number,
    check_empty_and_partial_tokens,
    check_unknown_features_are_ignored,
    check_missing_differs_from_zero,
    check_nonsense_does_no_harm,
    check_impossible_requests_are_refused,
    check_refused_request_changes_nothing,
    check_refused_batch_changes_nothing,
]
