"""Score forecasts: all metrics, for each group of points."""

from __future__ import annotations

import math

import numpy as np

from sagellm_lifetime.evaluation import metrics
from sagellm_lifetime.evaluation.point_forecasts import INNER, LEVELS, Forecast, cdf, column
from sagellm_lifetime.evaluation.points import Points

Score = dict[str, float | int | None]


def score_groups(points: Points, forecast: Forecast) -> dict[str, Score]:
    """Return the metrics of a forecast for admission, each age and the steps."""
    return {name: score(points, forecast, index) for name, index in points.groups().items()}


def score(points: Points, forecast: Forecast, index: np.ndarray) -> Score:
    """Return the metrics at the points of ``index``; ``None`` for a metric that is not defined.

    Where rows were cut (:mod:`.cuts`), errors, hits and order compare the total up to the horizon
    with the prediction up to the horizon, weighted for those cut before; intervals are counted by
    :func:`covered`, the confidence by :func:`confidence_hits`. ``mae_ended`` is the error over the
    rows of known length alone, which lack the longest where those were cut.

    A forecast without quantiles is a point mass: its CRPS is its MAE, and it has no intervals.
    """
    at = index[points.seen[index]]
    weight, age = points.weight[at] * points.stands_for[at], points.age[at]
    length, room = points.target[at], points.cuts.horizon - age
    actual, point = length - age, np.minimum(forecast.point[at], room)
    total = age + point
    ended = index[points.known[index]]
    values: dict[str, float | None] = {
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
        "mae_ended": metrics.mae(
            forecast.point[ended], points.remaining[ended], points.weight[ended]
        ),
    }
    if forecast.quantiles is not None:
        q = np.minimum(forecast.quantiles[at], room[:, None])
        values["crps"] = metrics.crps(q[:, INNER], actual, LEVELS[INNER], weight)
        for level in (80, 90):
            inside = covered(points, forecast.quantiles, index, level)
            values[f"coverage_{level}"] = metrics.average(inside, points.weight[index])
    if forecast.confidence is not None:
        checkable, hits, mass = confidence_hits(points, forecast, index)
        stated = forecast.confidence[checkable]
        values["confidence_ece"] = metrics.confidence_ece(stated, hits, mass)
    return {"n": len(at), "n_cut": len(index) - len(ended)} | {
        key: value if value is not None and math.isfinite(value) else None
        for key, value in values.items()
    }


def covered(points: Points, quantiles: np.ndarray, index: np.ndarray, level: int) -> np.ndarray:
    """Return how far each interval covers its outcome, 0 to 1, shape ``(len(index),)``.

    1 or 0 where the end was seen. For a row that was cut, the share of the forecast beyond the cut
    that lies inside the interval, as D-calibration counts censored rows (Haider et al. 2020); 0 if
    the forecast had no chance left beyond the cut.

    Args:
        quantiles: of all points, at :data:`LEVELS`.
        level: of the central interval, in per cent.
    """
    tail = (100 - level) / 200
    low, high = quantiles[index, column(tail)], quantiles[index, column(1 - tail)]
    left = points.remaining[index]
    inside = ((low <= left) & (left <= high)).astype(np.float64)
    cut = ~points.known[index]
    if cut.any():
        # The outcome is at least ``left``, so the interval begins there or at its own start.
        table, least = quantiles[index[cut]], left[cut]
        beyond = 1.0 - cdf(table, least - 1)
        start = np.maximum(low[cut], least)
        part = cdf(table, high[cut]) - cdf(table, start - 1)
        share = np.divide(part, beyond, out=np.zeros(len(part)), where=beyond > 1e-9)
        inside[cut] = np.where(high[cut] >= least, np.clip(share, 0.0, 1.0), 0.0)
    return inside


def confidence_hits(
    points: Points, forecast: Forecast, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points at which the confidence can be checked, their hits and their weights.

    A total within 10 % is known to be missed once the row is longer than the prediction allows, so
    a row that was cut later than that counts like one that ended. The others stand for those cut
    before. Predictions too long to be checked before the horizon are left out, whatever their
    outcome, so that the selection does not depend on the answer.

    Returns:
        Three arrays of one shape: indices, hits (bool) and weights.
    """
    total = points.age[index] + forecast.point[index]
    missed_at = 10 * total // 9 + 1  # the shortest length that is too long for a hit
    end = np.minimum(points.length[index], missed_at)
    # No row is longer than its cap, so a prediction of the cap is always checkable.
    checkable = (missed_at <= points.cuts.horizon) | (points.cap[index] <= points.cuts.horizon)
    is_known = checkable & (points.known[index] | (points.length[index] >= missed_at))
    at, end = index[is_known], end[is_known]
    chance = points.cuts.chance
    weight = points.weight[at] * chance(points.age[at] + 1) / chance(end)
    return at, metrics.hits_10pct(total[is_known], points.length[at]), weight
