"""From forecasts to the metrics of the design, group by group."""

from __future__ import annotations

import math

import numpy as np

from sagellm_lifetime.evaluation import metrics
from sagellm_lifetime.evaluation.forecast import INNER, LEVELS, Forecast, column
from sagellm_lifetime.evaluation.points import Points

Score = dict[str, float | int | None]


def score_groups(points: Points, forecast: Forecast) -> dict[str, Score]:
    """Metrics of one forecast for admission, each age and the steps."""
    return {name: score(points, forecast, index) for name, index in points.groups().items()}


def score(points: Points, forecast: Forecast, index: np.ndarray) -> Score:
    """Metrics at some points; ``None`` where a metric is not defined.

    Rows of unknown length (see ``points.known_lengths``) count in the C-index only. A forecast
    without quantiles is a point mass: its CRPS is its MAE, and it has no intervals.
    """
    at = index[points.known[index]]
    weight, actual, age = points.weight[at], points.remaining[at], points.age[at]
    point = forecast.point[at]
    total, length = age + point, points.length[at]
    found: dict[str, float | None] = {
        "mae": metrics.mae(point, actual, weight),
        "median_ae": metrics.median_ae(point, actual, weight),
        "within_10pct": metrics.within_10pct(total, length, weight),
        "within_10_tokens": metrics.within_10_tokens(point, actual, weight),
        "kendall_tau": metrics.kendall_tau(point, actual, weight),
        "crps": metrics.mae(point, actual, weight),
        "coverage_80": None,
        "coverage_90": None,
        "confidence_ece": None,
        "c_index": metrics.c_index(
            forecast.point[index],
            points.remaining[index],
            points.known[index],
            points.weight[index],
        ),
    }
    if forecast.quantiles is not None:
        q = forecast.quantiles[at]
        found["crps"] = metrics.crps(q[:, INNER], actual, LEVELS[INNER], weight)
        for level in (80, 90):
            tail = (100 - level) / 200
            low, high = q[:, column(tail)], q[:, column(1 - tail)]
            found[f"coverage_{level}"] = metrics.coverage(low, high, actual, weight)
    if forecast.confidence is not None:
        hits = metrics.hits_10pct(total, length)
        found["confidence_ece"] = metrics.confidence_ece(forecast.confidence[at], hits, weight)
    return {"n": len(at)} | {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in found.items()
    }
