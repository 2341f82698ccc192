"""The specification's own benchmark, exactly as it is written, and its repaired twin.

The benchmark predicts at ``actual // 2``: the age gives the answer away. The rule "remaining =
current length" scores an MAE of 0.49 tokens and 100 % there, so its figures say how fast a
predictor learns that rule, nothing of lifetimes. It is kept, labelled as leaking. The twin draws
the ages independently of the length, and the best that anyone can reach stands beside.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.protocol import LifetimePredictorProtocol, PredictionRequest
from sagellm_lifetime.evaluation.metrics import hits_10pct

SAMPLES: Final = 1000
CAPS: Final = (50, 500)
SHARES: Final = (0.6, 0.9)
SECONDS_PER_TOKEN: Final = 0.02
Progress = Callable[[int, int], None]


def samples(seed: int = 0, count: int = SAMPLES) -> Iterator[tuple[int, int]]:
    """``(max_length, actual)`` of the specification: ``max_length = randint(50, 500)``, ``actual =
    int(max_length * uniform(0.6, 0.9))``."""
    rng = random.Random(seed)
    for _ in range(count):
        cap = rng.randint(*CAPS)
        yield cap, int(cap * rng.uniform(*SHARES))


def run_benchmark(
    predictor: LifetimePredictorProtocol, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """The benchmark of the specification, from whatever state the predictor is in (untrained).

    Each sample is predicted once, at half of its true length with the token
    ids 0, 1, 2, ... and learned at once. An error counts as a hit below 10 % of the actual total.
    """
    errors, actuals, rule = [], [], []
    for i, (cap, actual) in enumerate(samples(seed)):
        half = actual // 2
        request = PredictionRequest(
            sequence_id=i, token_ids=list(range(half)), current_length=half, max_length=cap
        )
        estimate = predictor.predict(request).estimated_remaining_tokens
        errors.append(abs(estimate - (actual - half)))
        rule.append(abs(half - (actual - half)))
        actuals.append(actual)
        predictor.update(i, actual, actual * SECONDS_PER_TOKEN)
        if progress is not None:
            progress(i + 1, SAMPLES)
    length = np.array(actuals)
    return {
        "leaks": True,
        "why": "it predicts at half of the true length, so the age tells the answer",
        "samples": SAMPLES,
        **_strict(np.array(errors), length),
        "rule_remaining_is_current": _strict(np.array(rule), length),
    }


def run_repaired(
    predictor: LifetimePredictorProtocol, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """The same lengths, asked at age 0 and at an age below 60 % of ``max_length``, then learned.

    That age is uniform on ``0 .. int(0.6 max_length) - 1``: every sample is alive there, so it says
    nothing of the length. ``last_half`` leaves out the 500 samples it takes to learn.
    """
    ages = np.random.default_rng(seed)
    errors = np.zeros((SAMPLES, 2), dtype=np.int64)
    hits = np.zeros((SAMPLES, 2), dtype=bool)
    lengths, caps = np.zeros(SAMPLES, dtype=np.int64), np.zeros(SAMPLES, dtype=np.int64)
    rule = np.zeros(SAMPLES, dtype=np.int64)
    for i, (cap, actual) in enumerate(samples(seed)):
        later = int(ages.integers(0, int(SHARES[0] * cap)))
        for j, age in enumerate((0, later)):
            request = PredictionRequest(
                sequence_id=i, token_ids=list(range(age)), current_length=age, max_length=cap
            )
            estimate = predictor.predict(request).estimated_remaining_tokens
            errors[i, j] = abs(age + estimate - actual)
            hits[i, j] = bool(hits_10pct(np.array(age + estimate), np.array(actual)))
        lengths[i], caps[i], rule[i] = actual, cap, abs(2 * later - actual)
        predictor.update(i, actual, actual * SECONDS_PER_TOKEN)
        if progress is not None:
            progress(i + 1, SAMPLES)
    half = SAMPLES // 2
    found: dict[str, Any] = {"leaks": False, "samples": SAMPLES}
    for j, name in enumerate(("admission", "uniform_age")):
        found[name] = _means(errors[:, j], hits[:, j])
        found[name]["last_half"] = _means(errors[half:, j], hits[half:, j])
    found["rule_remaining_is_current"] = _means(rule, 10 * rule <= lengths)
    found["bayes_floor"] = bayes_floor()
    found["bayes_floor_on_these_samples"] = _best_on(caps, lengths)
    return found


def bayes_floor() -> dict[str, float]:
    """The best possible scores given ``max_length``, over the distribution of the benchmark.

    ``actual = int(max_length * U)`` with ``U`` uniform on (0.6, 0.9): its probabilities are exact.
    ``mae`` and ``within_10pct`` are those of the median, which has the least MAE;
    ``best_within_10pct`` is the share of the total that is chosen for that share alone.
    """
    rows = []
    for cap in range(CAPS[0], CAPS[1] + 1):
        length, mass = length_masses(cap)
        guess = np.arange(length[0], length[-1] + 1)
        error = np.abs(guess[:, None] - length) @ mass
        inside = hits_10pct(guess[:, None], length[None, :]) @ mass
        median = int(np.argmin(error))
        rows.append((error[median], inside[median], inside.max()))
    mae, at_median, best = np.mean(rows, axis=0)
    return {
        "mae": float(mae),
        "within_10pct": float(at_median),
        "best_within_10pct": float(best),
    }


def length_masses(cap: int) -> tuple[np.ndarray, np.ndarray]:
    """Possible lengths ``int(cap * U)``, ``U`` uniform on (0.6, 0.9), and their probabilities."""
    low, high = SHARES[0] * cap, SHARES[1] * cap
    length = np.arange(int(low), int(np.ceil(high)))
    mass = np.minimum(length + 1, high) - np.maximum(length, low)
    keep = mass > 1e-9
    return length[keep], mass[keep] / mass.sum()


def _best_on(caps: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    guess = np.array([_median(*length_masses(int(cap))) for cap in caps])
    errors = np.abs(guess - lengths)
    return _means(errors, hits_10pct(guess, lengths))


def _median(length: np.ndarray, mass: np.ndarray) -> int:
    return int(length[np.searchsorted(np.cumsum(mass), 0.5 - 1e-12)])


def _means(errors: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
    return {"mae": float(np.mean(errors)), "within_10pct": float(np.mean(hits))}


def _strict(errors: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """As the specification counts: ``error < 0.1 * actual``, strictly."""
    return _means(errors, errors < 0.1 * lengths)
