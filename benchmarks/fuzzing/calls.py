"""Calls of a predictor's methods with arguments of any kind."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzzing import need, refused
from fuzzing.values import anything, mostly
from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.errors import LifetimeError, shown

KINDS = ("survival", "orca", "linear", "baseline")
FEATURES = {
    "prompt_length": 100,
    "prompt_text": "Why?",
    "model": "m",
    "client_id": "c",
    "session_id": "s",
    "turn": 1,
    "arrival_time": 1.0,
    "prefix_hashes": [1, 2],
    "temperature": 0.7,
    "has_tools": True,
    "response_format": "json",
    "enable_thinking": False,
    "eos_logprob": [-3.0],
    "entropy": [1.0],
}


class Shared:
    """A predictor of each kind, and a sequence of each that runs throughout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.predictors = [create_predictor(kind, seed=0) for kind in KINDS]
        for predictor in self.predictors:
            for i in range(40):
                predictor.predict(PredictionRequest(i, [], 0, 500, {"client_id": "c"}))
                predictor.update(i, 50 + i, 1.0)
            predictor.predict(PredictionRequest("steady", [], 3, 500, {"client_id": "c"}))


def setup(folder: Path) -> Shared:
    """Return predictors that have learned a little."""
    return Shared(folder)


def attempt(shared: Shared, rng: Random) -> str:
    """Make one call; the sequence that runs throughout must be there afterwards, unharmed."""
    predictor = rng.choice(shared.predictors)
    call = rng.choice([predict, update, quantiles, batch, create, distribution])
    before = predictor.get_metrics()
    try:
        call(predictor, rng)
        word = "taken"
    except LifetimeError as error:
        word = refused(error)
        if call in (predict, update):
            after = predictor.get_metrics()
            changed = [k for k in ("running", "completions", "replaced") if before[k] != after[k]]
            need(not changed, f"{call.__name__} was refused and changed {changed}: {error}")
    steady = predictor.quantiles(["steady"], np.array([3]), [0.1, 0.5, 0.9])
    need(bool((np.diff(steady[0]) >= 0).all() and steady.min() >= 1), f"quantiles {steady}")
    return word


def _request(rng: Random) -> PredictionRequest:
    usual = {k: v for k, v in FEATURES.items() if rng.random() < 0.3}
    for name in rng.sample(list(FEATURES), rng.choice([0, 0, 1, 2])):
        usual[name] = anything(rng)
    identity = mostly(rng, rng.choice(["a", "b", 7, 8]))
    if isinstance(identity, str) and identity == "steady":
        identity = "a"
    return PredictionRequest(
        identity,
        mostly(rng, [rng.randrange(1000) for _ in range(rng.randrange(40))]),
        mostly(rng, rng.randrange(200)),
        mostly(rng, rng.choice([None, 1, 500, 4096])),
        mostly(rng, usual),
    )


def _sound(result: Any) -> None:
    """Raise :class:`Violation` for an answer that cannot be."""
    need(result.estimated_remaining_tokens >= 0, f"{result}")
    need(0.0 <= result.confidence <= 1.0, f"{result}")
    need(math.isfinite(result.estimated_time) and result.estimated_time >= 0.0, f"{result}")


def predict(predictor: Any, rng: Random) -> None:
    """Predict one sequence."""
    _sound(predictor.predict(_request(rng)))


def batch(predictor: Any, rng: Random) -> None:
    """Predict several."""
    requests = [_request(rng) for _ in range(rng.randrange(4))]
    results = predictor.predict_batch(requests)
    need(len(results) == len(requests), f"{len(results)} answers to {len(requests)} requests")
    for result in results:
        _sound(result)


def update(predictor: Any, rng: Random) -> None:
    """Tell of an end."""
    predictor.update(
        mostly(rng, rng.choice(["a", "b", 7, 8])),
        mostly(rng, rng.randrange(500)),
        mostly(rng, rng.random() * 10),
        finish_reason=mostly(rng, rng.choice(["stop", "length", "abort", "error"])),
    )


def quantiles(predictor: Any, rng: Random) -> None:
    """Ask in the array form."""
    found = predictor.quantiles(
        mostly(rng, ["steady"]),
        mostly(rng, np.array([rng.randrange(3, 300)])),
        mostly(rng, [0.1, 0.9]),
    )
    need(bool((np.asarray(found) >= 0).all()), f"quantiles {found}")


def distribution(predictor: Any, rng: Random) -> None:
    """Ask a distribution."""
    said = predictor.predict(PredictionRequest("steady", [], 3, 500, {"client_id": "c"}))
    name, usual = rng.choice(
        [("survival", 5), ("quantile", 0.5), ("interval", 0.9), ("given", 4), ("within", 50)]
    )
    value = mostly(rng, usual, 0.2)
    found = getattr(said.distribution, name)(value)
    if name in ("survival", "within"):
        need(0.0 <= found <= 1.0, f"{name}({shown(value)}) = {found}")
    elif name == "quantile":
        need(found >= 1, f"{name}({shown(value)}) = {found}")


def create(predictor: Any, rng: Random) -> None:
    """Make a predictor with options of any kind."""
    name = mostly(rng, rng.choice(KINDS))
    option = rng.choice(["seed", "capacity", "expire_after", "max_nodes", "window_size", "oops"])
    value = anything(rng)
    if isinstance(value, int) and not isinstance(value, bool) and value > 10**6:
        value = -value  # a capacity of 2**31 is allowed, and takes its time
    made = create_predictor(name, **{option: value})
    _sound(made.predict(PredictionRequest(1, [], 0, None)))
