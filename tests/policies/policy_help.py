"""Sequences and forecasts of every shape for the tests of the policies."""

from __future__ import annotations

from math import erfc, log, sqrt

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.batch import LengthDistributionBatch
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.grid import EDGES
from sagellm_lifetime.policies.state import Sequences, SurvivalForecast

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)


def sequences(count: int, **columns) -> Sequences:
    """``count`` sequences of 100 tokens, half of them generated, arriving one a second."""
    given = {
        "tokens": np.full(count, 100),
        "generated": np.full(count, 50),
        "recompute": np.full(count, 100),
        "arrival": np.arange(count, dtype=np.float64),
        "urgency": np.zeros(count, dtype=np.int64),
        "preemptions": np.zeros(count, dtype=np.int64),
        "pinned": np.zeros(count, dtype=bool),
    }
    return Sequences(**given | {name: np.asarray(values) for name, values in columns.items()})


def known(remaining, confidence=1.0) -> SurvivalForecast:
    """Of lengths that are known, believed so much."""
    forecast = SurvivalForecast.exact(np.asarray(remaining, dtype=np.float64))
    return SurvivalForecast(
        forecast.survival, np.broadcast_to(np.asarray(confidence), len(forecast))
    )


def predicted(rows, ages=None, caps=None) -> SurvivalForecast:
    """Of predicted distributions, fully confident."""
    ages = ages or [0] * len(rows)
    caps = caps or [None] * len(rows)
    items = [
        LengthDistribution(row, age, 0, cap) for row, age, cap in zip(rows, ages, caps, strict=True)
    ]
    return SurvivalForecast.of(LengthDistributionBatch.stack(items), np.ones(len(rows)))


def exponential(mean: float) -> np.ndarray:
    """Row of the exponential distribution: without memory."""
    return (EDGES / mean).astype(np.float32)


def log_normal(median: float, log_sd: float) -> np.ndarray:
    """Row of the log-normal distribution."""
    z = [(log(edge / median) / log_sd if edge else -40.0) for edge in EDGES.tolist()]
    survival = np.array([0.5 * erfc(each / sqrt(2.0)) for each in z])
    return -np.log(np.maximum(survival, 1e-30)).astype(np.float32)


def log_logistic(median: float, log_sd: float) -> np.ndarray:
    """Row of the log-logistic distribution."""
    return hazard.log_logistic(median, log_sd)


@st.composite
def running(draw, least: int = 1, most: int = 12) -> tuple[Sequences, SurvivalForecast]:
    """Sequences of all kinds, with distinct arrivals, and what is expected of them."""
    count = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return any_sequences(rng, count), any_forecast(rng, count)


def any_sequences(rng: np.random.Generator, count: int) -> Sequences:
    """Drawn from a seed."""
    generated = rng.integers(0, 2000, count)
    tokens = generated + rng.integers(1, 3000, count)
    return Sequences(
        tokens=tokens,
        generated=generated,
        recompute=np.maximum(tokens - rng.integers(0, 200, count), 1),
        arrival=rng.permutation(count) + rng.random(),
        urgency=rng.integers(0, 3, count),
        preemptions=rng.integers(0, 6, count),
        pinned=rng.random(count) < 0.25,
    )


def any_forecast(rng: np.random.Generator, count: int) -> SurvivalForecast:
    """Drawn from a seed: half of them known, half of them predicted."""
    exact = SurvivalForecast.exact(np.ceil(np.exp(rng.uniform(0, 9, count))))
    rows = [log_logistic(np.exp(rng.uniform(0.5, 8)), rng.uniform(0.1, 1.5)) for _ in range(count)]
    spread = predicted(rows)
    survival = np.where((rng.random(count) < 0.5)[:, None], exact.survival, spread.survival)
    return SurvivalForecast(survival, rng.random(count))


def reordered(
    sequences: Sequences, forecast: SurvivalForecast, index
) -> tuple[Sequences, SurvivalForecast]:
    """The same in another order."""
    columns = {name: getattr(sequences, name)[index] for name in Sequences.__slots__}
    return Sequences(**columns), forecast.take(index)
