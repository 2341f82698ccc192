"""Metrics of point predictions, intervals and confidence, as functions of arrays.

Shapes: every array has shape ``(N,)``, quantiles ``(N, Q)``. Lengths are in tokens. ``weights``
(default: all equal) are the shares of the points; every metric accepts them. Metrics of order are
in :mod:`~sagellm_lifetime.evaluation.ranking`. All return NaN when there is nothing to score.
"""

from __future__ import annotations

import numpy as np

from sagellm_lifetime.evaluation.ranking import c_index, kendall_tau

__all__ = [
    "c_index",
    "confidence_ece",
    "coverage",
    "crps",
    "hits_10pct",
    "kendall_tau",
    "mae",
    "median_ae",
    "pinball",
    "reliability",
    "within_10_tokens",
    "within_10pct",
]

ECE_BINS = 15


def average(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the weighted mean; NaN without points or without weight."""
    if len(values) == 0:
        return float("nan")
    if weights is None:
        return float(np.mean(values))
    total = float(weights.sum())
    return float(values @ weights) / total if total > 0 else float("nan")


def mae(predicted: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the mean absolute error in tokens (equal for remaining and total lengths).

    >>> mae(np.array([100, 200]), np.array([110, 180]))
    15.0
    """
    return average(np.abs(predicted - actual).astype(np.float64), weights)


def median_ae(
    predicted: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the weighted median of the absolute error in tokens (the lower one of two)."""
    if len(predicted) == 0:
        return float("nan")
    errors = np.abs(predicted - actual)
    order = np.argsort(errors, kind="stable")
    mass = np.cumsum(np.ones(len(errors)) if weights is None else weights[order])
    return float(errors[order][min(np.searchsorted(mass, mass[-1] / 2.0), len(errors) - 1)])


def hits_10pct(predicted_total: np.ndarray, actual_total: np.ndarray) -> np.ndarray:
    """Return where ``|T - L| <= 0.1 L`` on total lengths, in exact integers; bool, ``(N,)``."""
    return np.asarray(10 * np.abs(predicted_total - actual_total) <= actual_total)


def within_10pct(
    predicted_total: np.ndarray, actual_total: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the share of points whose predicted total is within 10 % of the actual total."""
    return average(hits_10pct(predicted_total, actual_total).astype(np.float64), weights)


def within_10_tokens(
    predicted: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the share of points with an error of at most 10 tokens."""
    return average((np.abs(predicted - actual) <= 10).astype(np.float64), weights)


def pinball(
    quantiles: np.ndarray,
    actual: np.ndarray,
    levels: np.ndarray,
    weights: np.ndarray | None = None,
) -> float:
    """Return the mean pinball loss over points and levels, in tokens.

    ``max(q (y - x), (q - 1) (y - x))`` for the quantile ``x`` at level ``q`` (Koenker & Bassett
    1978, "Regression quantiles").

    Args:
        quantiles: shape ``(N, Q)``.
        levels: shape ``(Q,)``.
    """
    gap = actual[:, None] - quantiles
    loss = np.maximum(levels * gap, (levels - 1.0) * gap).mean(axis=1)
    return average(loss, weights)


def crps(
    quantiles: np.ndarray,
    actual: np.ndarray,
    levels: np.ndarray,
    weights: np.ndarray | None = None,
) -> float:
    """Return the continuous ranked probability score in tokens: twice the mean pinball loss.

    ``CRPS = 2 * integral of the pinball loss over the levels`` (Gneiting & Ranjan 2011, "Comparing
    density forecasts using threshold- and quantile-weighted scoring rules", eq. 9), here with 19
    equally spaced levels. For a point forecast it reduces to the absolute error.
    """
    return 2.0 * pinball(quantiles, actual, levels, weights)


def coverage(
    low: np.ndarray, high: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the share of points with ``low <= actual <= high``, both ends included."""
    return average(((low <= actual) & (actual <= high)).astype(np.float64), weights)


def reliability(
    confidence: np.ndarray,
    hits: np.ndarray,
    weights: np.ndarray | None = None,
    bins: int = ECE_BINS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean confidence, share of hits and share of points per bin of confidence.

    The bins have equal width. Three arrays of shape ``(bins,)``; empty bins hold NaN, NaN, 0.
    """
    weight = np.ones(len(confidence)) if weights is None else weights
    index = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    mass = np.bincount(index, weight, bins)
    stated = np.bincount(index, weight * confidence, bins)
    hit = np.bincount(index, weight * hits, bins)
    safe = np.where(mass > 0, mass, np.nan)
    return stated / safe, hit / safe, mass / max(float(mass.sum()), 1e-300)


def confidence_ece(
    confidence: np.ndarray, hits: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Return the expected calibration error of ``confidence``.

    The weighted mean over 15 equal-width bins of ``|share of hits - mean confidence|`` (Naeini et
    al. 2015; Guo et al. 2017, eq. 5).
    """
    if len(confidence) == 0:
        return float("nan")
    stated, hit_share, share = reliability(confidence, hits, weights)
    return float(np.nansum(np.abs(hit_share - stated) * share))
