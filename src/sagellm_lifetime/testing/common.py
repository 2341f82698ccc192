"""Helpers of the checks: requests, finished sequences to learn from, and comparisons."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
from hypothesis import HealthCheck, settings

from sagellm_lifetime.core.protocol import PredictionRequest, PredictionResult
from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.predictor.base import Predictor

Make = Callable[[], Predictor]
LEVELS: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
MODEL_FILE: Final = "model.safetensors"

EXAMPLES: Final = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
"""Hypothesis settings of every property: reproducible, and quick enough for all predictors."""

_trained: WeakKeyDictionary[Make, dict[int, Predictor]] = WeakKeyDictionary()


@cache
def _around(model: type[LengthModel]) -> Make:
    return lambda: Predictor(model(seed=0))


def factory(make: Make | type[LengthModel]) -> Make:
    """Return a function that makes predictors: around a model class, or the given one."""
    if isinstance(make, type) and issubclass(make, LengthModel):
        return _around(make)
    return cast("Make", make)


class FinishedSequence(NamedTuple):
    """The requests of one sequence, and how it ended."""

    requests: list[PredictionRequest]
    length: int
    seconds: float
    finish_reason: str


def make_request(
    sequence_id: Any, age: Any = 0, cap: Any = 512, tokens: Sequence[int] = (), **features: Any
) -> PredictionRequest:
    """Return a request; keywords become ``prompt_features``."""
    return PredictionRequest(sequence_id, list(tokens), age, cap, features or None)


def finished_sequences(
    count: int, *, seed: int = 0, name: str = "completion"
) -> Iterator[FinishedSequence]:
    """Yield varied sequences: clients, sessions, caps, prompts with content, ways to finish."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        client = int(rng.integers(4))
        length = int(np.clip(rng.lognormal(4.0 + client / 2, 0.4), 2, 500))
        prompt = rng.integers(0, 30_000, int(rng.integers(1, 80))).tolist()
        features = {"client_id": f"c{client}", "session_id": f"s{i % 7}", "model": f"m{client % 2}"}
        cap = (512, 600, None, 2048)[client]
        requests = [PredictionRequest(f"{name}-{i}", prompt, 0, cap, dict(features))]
        for age in (40, 130):
            if age < length and client % 2:
                written = rng.integers(0, 30_000, age).tolist()
                requests.append(
                    PredictionRequest(f"{name}-{i}", prompt + written, age, cap, dict(features))
                )
        reason = str(rng.choice(["stop", "stop", "stop", "abort", "error"]))
        yield FinishedSequence(requests, length, length * 0.01, reason)


def teach(
    predictor: Predictor, count: int = 24, *, seed: int = 0, name: str = "completion"
) -> None:
    """Predict and update :func:`finished_sequences` with a predictor."""
    for sequence in finished_sequences(count, seed=seed, name=name):
        for request in sequence.requests:
            predictor.predict(request)
        predictor.update(
            sequence.requests[0].sequence_id,
            sequence.length,
            sequence.seconds,
            finish_reason=sequence.finish_reason,
        )


def trained(make: Make, count: int = 24) -> Predictor:
    """Return a new predictor that has learned from ``count`` sequences.

    It is trained once per ``make`` and cloned afterwards, because training a network takes longer
    than all checks. (``check_seeded`` and ``check_clone`` train anew.)
    """
    originals = _trained.setdefault(make, {})
    if count not in originals:
        originals[count] = make()
        teach(originals[count], count)
    return originals[count].clone()


def variant(make: Make, **options: Any) -> Predictor:
    """Return a new predictor with some options changed; options it does not have are ignored."""
    predictor = make()
    known = predictor.options
    return predictor.new(**{k: v for k, v in options.items() if k in known})


def questions(name: str = "q") -> list[PredictionRequest]:
    """Return requests of many kinds, one sequence each."""
    rng = np.random.default_rng(7)
    kinds = [
        make_request(f"{name}0", 0, 512, client_id="c0", model="m0"),
        make_request(f"{name}1", 0, None, client_id="c3", session_id="s1"),
        make_request(f"{name}2", 17, 600, client_id="c1", prompt_length=40),
        make_request(f"{name}3", 300, 65_535, client_id="unknown"),
        make_request(f"{name}4", 0, None),
        make_request(f"{name}5", 5000, None, client_id="c2"),
        make_request(f"{name}6", 511, 512),
        make_request(f"{name}7", 512, 512),
    ]
    content = rng.integers(0, 30_000, 260).tolist()
    kinds.append(make_request(f"{name}8", 200, 2048, content, client_id="c3", session_id="s2"))
    kinds.append(make_request(f"{name}9", 0, 2048, content, prompt_text="List ten ideas. Why?"))
    return kinds


def outlook(result: PredictionResult) -> tuple[Any, ...]:
    """Return all numbers of an answer as a tuple, comparable with ``==``."""
    distribution = result.distribution
    assert distribution is not None, "a prediction carries its distribution"
    return (
        result.estimated_remaining_tokens,
        result.confidence,
        result.estimated_time,
        result.source,
        *(distribution.quantile(level) for level in LEVELS),
        *(distribution.survival(n) for n in (0, 1, 10, 100, 1000, 100_000)),
    )


def outlooks(predictor: Predictor, requests: Sequence[PredictionRequest]) -> list[tuple[Any, ...]]:
    """Return :func:`outlook` of the answers to requests, predicted one at a time."""
    return [outlook(predictor.predict(request)) for request in requests]


def assert_refused(
    error_type: type[Exception], description: str, call: Callable[[], object]
) -> None:
    """Raise :class:`AssertionError` unless the call raises that error, with one line."""
    try:
        call()
    except error_type as error:
        message = str(error)
    else:
        raise AssertionError(f"{description} was not refused")
    assert "\n" not in message, f"the error for {description} has more than one line"


def what_is_known(predictor: Predictor) -> bytes:
    """Return what was learned: the bytes of the arrays of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(Path(folder) / "checkpoint")
        return (Path(folder) / "checkpoint" / MODEL_FILE).read_bytes()
