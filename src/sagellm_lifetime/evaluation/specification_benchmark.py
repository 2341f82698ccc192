"""The specification's own benchmark, exactly as written, and a repaired one.

The benchmark predicts at ``actual // 2``: the age reveals the answer. The rule "remaining =
current length" scores an MAE of 0.49 tokens and 100 % there, so its figures only tell how
fast a predictor learns that rule. It is kept, labelled as leaking. The repaired benchmark draws the
ages independently of the length and reports the best possible scores too.
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
    """Yield ``(max_length, actual)`` as the specification draws them.

    ``max_length = randint(50, 500)``, ``actual = int(max_length * uniform(0.6, 0.9))``.
    """
    rng = random.Random(seed)
    for _ in range(count):
        cap = rng.randint(*CAPS)
        yield cap, int(cap * rng.uniform(*SHARES))


def run_benchmark(
    predictor: LifetimePredictorProtocol, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Run the benchmark of the specification on an untrained predictor; return its scores.

    Each sample is predicted once, at half of its true length with the token ids 0, 1, 2, ..., and
    learned at once. An error below 10 % of the actual total counts as a hit.
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
    """Run the repaired benchmark; return its scores.

    The same lengths, predicted at age 0 and at an age that is uniform on ``0 .. int(0.6 *
    max_length) - 1``, then learned. Every sample is alive at that age, so it reveals nothing of the
    length. ``last_half`` leaves out the first 500 samples, from which the predictor learns.
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
    scores: dict[str, Any] = {"leaks": False, "samples": SAMPLES}
    for j, name in enumerate(("admission", "uniform_age")):
        scores[name] = _means(errors[:, j], hits[:, j])
        scores[name]["last_half"] = _means(errors[half:, j], hits[half:, j])
    scores["rule_remaining_is_current"] = _means(rule, 10 * rule <= lengths)
    scores["bayes_floor"] = bayes_floor()
    scores["bayes_floor_on_these_samples"] = _best_on(caps, lengths)
    return scores


def bayes_floor() -> dict[str, float]:
    """Return the best possible scores given ``max_length``, over the benchmark's distribution.

    ``actual = int(max_length * U)`` with ``U`` uniform on (0.6, 0.9) has exact probabilities.
    ``mae`` and ``within_10pct`` are those of the median, which has the least MAE;
    ``best_within_10pct`` is the share for the total that maximises it.
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
    """Return the lengths ``int(cap * U)``, ``U`` uniform on (0.6, 0.9), and their probabilities."""
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
    """Return the scores as the specification counts hits: ``error < 0.1 * actual``, strictly."""
    return _means(errors, errors < 0.1 * lengths)
