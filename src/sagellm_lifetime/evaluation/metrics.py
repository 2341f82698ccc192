"""Metrics of point predictions, intervals and confidence; functions of arrays.

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
    """Weighted mean; NaN without points or without weight."""
    if len(values) == 0:
        return float("nan")
    if weights is None:
        return float(np.mean(values))
    total = float(weights.sum())
    return float(values @ weights) / total if total > 0 else float("nan")


def mae(predicted: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean absolute error in tokens (the same for remaining and for total lengths)."""
    return average(np.abs(predicted - actual).astype(np.float64), weights)


def median_ae(
    predicted: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Weighted median of the absolute error, tokens (the lower one of two)."""
    if len(predicted) == 0:
        return float("nan")
    errors = np.abs(predicted - actual)
    order = np.argsort(errors, kind="stable")
    mass = np.cumsum(np.ones(len(errors)) if weights is None else weights[order])
    return float(errors[order][min(np.searchsorted(mass, mass[-1] / 2.0), len(errors) - 1)])


def hits_10pct(predicted_total: np.ndarray, actual_total: np.ndarray) -> np.ndarray:
    """``|T - L| <= 0.1 L`` on total lengths, in exact integer arithmetic; bool."""
    return np.asarray(10 * np.abs(predicted_total - actual_total) <= actual_total)


def within_10pct(
    predicted_total: np.ndarray, actual_total: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Share of points whose predicted total is within 10 % of the actual total."""
    return average(hits_10pct(predicted_total, actual_total).astype(np.float64), weights)


def within_10_tokens(
    predicted: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Share of points with an error of at most 10 tokens."""
    return average((np.abs(predicted - actual) <= 10).astype(np.float64), weights)


def pinball(
    quantiles: np.ndarray,
    actual: np.ndarray,
    levels: np.ndarray,
    weights: np.ndarray | None = None,
) -> float:
    """Mean pinball loss over points and levels, tokens.

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
    """Continuous ranked probability score, tokens, as twice the mean pinball loss.

    ``CRPS = 2 * integral of the pinball loss over the levels`` (Gneiting & Ranjan 2011, "Comparing
    density forecasts using threshold- and quantile-weighted scoring rules", eq. 9), here with 19
    equally spaced levels. For a point forecast it reduces to the absolute error.
    """
    return 2.0 * pinball(quantiles, actual, levels, weights)


def coverage(
    low: np.ndarray, high: np.ndarray, actual: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Share of points with ``low <= actual <= high``, both ends included."""
    return average(((low <= actual) & (actual <= high)).astype(np.float64), weights)


def reliability(
    confidence: np.ndarray,
    hits: np.ndarray,
    weights: np.ndarray | None = None,
    bins: int = ECE_BINS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share of hits and share of points in equal-width bins of confidence.

    Three arrays of shape ``(bins,)``; empty bins hold NaN, NaN, 0.
    """
    weight = np.ones(len(confidence)) if weights is None else weights
    index = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    mass = np.bincount(index, weight, bins)
    stated = np.bincount(index, weight * confidence, bins)
    found = np.bincount(index, weight * hits, bins)
    safe = np.where(mass > 0, mass, np.nan)
    return stated / safe, found / safe, mass / max(float(mass.sum()), 1e-300)


def confidence_ece(
    confidence: np.ndarray, hits: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Expected calibration error of ``confidence``: weighted mean over 15 equal-width bins of
    ``|share of hits - mean confidence|`` (Naeini et al. 2015; Guo et al. 2017, eq. 5)."""
    if len(confidence) == 0:
        return float("nan")
    stated, found, share = reliability(confidence, hits, weights)
    return float(np.nansum(np.abs(found - stated) * share))
