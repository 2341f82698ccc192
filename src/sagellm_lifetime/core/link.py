"""Calibration link: a monotone map of cumulative hazards, applied to a conditioned distribution.

A predicted hazard ``x = -log P(R > n)`` is mapped to ``F(x)``, learned so that outcomes exceed
``n`` with probability ``exp(-F(x))``. In probabilities this is ``G(u) = 1 - exp(-F(x))`` at
the level ``u = 1 - exp(-x)`` (Kuleshov et al. 2018, "Accurate uncertainties for deep learning using
calibrated regression").

``F`` is piecewise linear: in each segment it grows by the predicted hazard times one factor, the
ratio of observed to expected ends (piecewise exponential model; Holford 1980, "The analysis of
rates and of survivorship using log-linear models"). The last factor also applies beyond the last
knot, so nothing underflows in the far tail.

A link is a float64 vector of ``LEVELS + 1`` numbers:

* ``F`` at 0, at the levels 0.05, 0.10, … 0.95, and 1, 2, 4, … 64 of hazard behind that;
* then of the first of these segments the share of ``F`` up to each decade of ``u``, and 1. (Shares,
  so that ``F`` below the level 0.05 is bounded by its value there.)

``IDENTITY`` means "already calibrated".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import exp, inf, log1p
from typing import Any, Final

import numpy as np

# Even levels are too coarse for the tails of an overconfident predictor: where its standard
# deviation is a quarter of the true one, 90 % of a normal law lie between the levels 2e-11 and
# 1 - 2e-11. So decades below, and steps of hazard that double above.
_BELOW: Final = -np.log1p(-(10.0 ** np.array([-24, -18, *range(-12, -1)])))
_EVEN: Final = -np.log1p(-np.arange(1, 20) / 20)
_ABOVE: Final = _EVEN[-1] + 2.0 ** np.arange(7)
EDGES: Final[np.ndarray] = np.concatenate([[0.0], _BELOW, _EVEN, _ABOVE])
"""Predicted cumulative hazards at which a segment begins or ends, shape ``(SEGMENTS + 1,)``."""
SEGMENTS: Final = len(EDGES) - 1
TAIL: Final = SEGMENTS - len(_ABOVE)
"""The first segment above the level 0.95."""
EXPECTED: Final[np.ndarray] = np.exp(-EDGES[:-1]) * -np.expm1(-np.diff(EDGES))
"""Share of the outcomes of a calibrated prediction that end in each segment; it equals the mean
hazard that they survive there."""
_SPANS: Final = np.diff(EDGES)
_BOUNDS: Final = np.append(EDGES[:-1], EDGES[-2] + 256.0)
"""``EDGES`` with a finite last one: outcomes beyond it have the same weight."""

_FIRST: Final = float(_EVEN[0])
_KNOTS: Final[list[float]] = [0.0, *_EVEN.tolist(), *_ABOVE.tolist()]
_WIDTHS: Final[list[float]] = np.diff(_KNOTS).tolist()
_LAST: Final = len(_KNOTS) - 1
_DECADES: Final[list[float]] = [0.0, *_BELOW.tolist(), _FIRST]
_LAST_DECADE: Final = len(_DECADES) - 2
_DECADE_WIDTHS: Final[list[float]] = np.diff(_DECADES).tolist()
LEVELS: Final = _LAST + len(_DECADES) - 1
_EPSILON: Final = 2.0**-52
_NEARLY: Final = 1.0 - 2.0**-53
_LEAST: Final = 1e-300


def from_factors(factors: np.ndarray) -> np.ndarray:
    """Return links of shape ``(..., LEVELS + 1)`` from factors of shape ``(..., SEGMENTS)``."""
    at = np.cumsum(factors * _SPANS, axis=-1)
    # Rounding may lose the last segment beside a huge sum, yet its factor applies to all beyond.
    at[..., -1] = np.maximum(at[..., -1], np.nextafter(at[..., -2], inf))
    low, first = at[..., : len(_BELOW)], at[..., len(_BELOW) :]
    ones = np.ones((*factors.shape[:-1], 1))
    return np.concatenate([0.0 * ones, first, low / first[..., :1], ones], axis=-1)


IDENTITY: Final[np.ndarray] = from_factors(np.ones(SEGMENTS))
for _shared in (EDGES, EXPECTED, IDENTITY):
    _shared.flags.writeable = False


def forward(curve: np.ndarray, step: float) -> float:
    """Return the calibrated cumulative hazard ``F(step)``; 0 below 0.

    Never decreasing, not even by rounding, and exactly what :func:`forward_many` returns.
    """
    if step < _FIRST:
        # A difference of two hazards may be below zero by rounding, and factors are large here.
        if step <= 0.0:
            return 0.0
        k = bisect_right(_DECADES, step) - 1
        first = curve.item(1)
        low = first * curve.item(_LAST + k) if k else 0.0
        high = first * curve.item(_LAST + k + 1) if k < _LAST_DECADE else first
        part = (step - _DECADES[k]) / _DECADE_WIDTHS[k]
    else:
        k = bisect_right(_KNOTS, step, 2, _LAST) - 1
        low, high = curve.item(k), curve.item(k + 1)
        part = (step - _KNOTS[k]) / _WIDTHS[k]
    value = low + (high - low) * part
    return float(high if part < 1.0 and value > high else value)


def backward(curve: np.ndarray, step: float) -> float:
    """Return the inverse of :func:`forward`, up to rounding (see :func:`threshold`)."""
    # Bisecting in Python reads few entries and is faster than a call into NumPy.
    first = curve.item(1)
    if step < first:
        share = max(step, 0.0) / first
        k = bisect_left(curve, share, _LAST + 1, LEVELS) - _LAST - 1
        low = curve.item(_LAST + k) if k else 0.0
        part = (share - low) / (curve.item(_LAST + k + 1) - low)
        return float(_DECADES[k] + part * (_DECADES[k + 1] - _DECADES[k]))
    k = bisect_left(curve, step, 2, _LAST) - 1
    low = curve.item(k)
    return float(_KNOTS[k] + (step - low) / (curve.item(k + 1) - low) * _WIDTHS[k])


def last_factor(curve: np.ndarray) -> float:
    """Return the factor beyond the last knot."""
    return float(curve.item(_LAST) - curve.item(_LAST - 1)) / _WIDTHS[-1]


def forward_many(curves: np.ndarray, index: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return :func:`forward` of ``steps[i]`` under ``curves[index[i]]``."""
    below = curves[:, 1:2] * curves[:, _LAST + 1 : LEVELS]
    at = np.concatenate([np.zeros((len(curves), 1)), below, curves[:, 1 : _LAST + 1]], axis=1)
    steps = np.maximum(steps, 0.0)
    k = EDGES[1:-1].searchsorted(steps, side="right")
    low, high = at[index, k], at[index, k + 1]
    part = (steps - EDGES.take(k)) / _SPANS.take(k)
    value = low + (high - low) * part
    return np.asarray(np.minimum(value, high, out=value, where=part < 1.0))


def threshold(curve: np.ndarray | None, q: float, lived: float = 0.0) -> float:
    """Return the smallest predicted hazard at which a share ``q`` has ended.

    The smallest float ``step`` with ``1 - exp(lived - F(step)) >= q``, in the very operations with
    which a survival is computed, so that a quantile is exact.

    Args:
        curve: link, shape ``(LEVELS + 1,)``, or ``None`` for the identity.
        q: share, above 0 and up to 1.
        lived: calibrated hazard already survived.
    """
    if lived:
        return _threshold(curve, q, lived)
    key = id(curve), q
    entry = _kept.get(key)
    if entry is None or entry[0] is not curve:
        entry = curve, _threshold(curve, q, 0.0)
        _keep(key, entry)
    return entry[1]


def thresholds(curves: np.ndarray, q: float) -> np.ndarray:
    """Return :func:`threshold` under every curve, shape ``(len(curves),)``; not to be changed."""
    key = id(curves), q
    entry = _kept.get(key)
    if entry is None or entry[0] is not curves:
        entry = curves, np.array([_threshold(curve, q, 0.0) for curve in curves])
        _keep(key, entry)
    return entry[1]


_kept: dict[tuple[int, float], tuple[np.ndarray | None, Any]] = {}
"""Cached thresholds by id of the link and level, each with its link."""
_MOST_KEPT: Final = 1024


def _keep(key: tuple[int, float], entry: tuple[np.ndarray | None, Any]) -> None:
    """Cache the thresholds of a link, unless the link can be written to."""
    if entry[0] is None or not entry[0].flags.writeable:
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        _kept[key] = entry


def _threshold(curve: np.ndarray | None, q: float, lived: float) -> float:
    def is_reached(step: float) -> bool:
        return 1.0 - exp(lived - (step if curve is None else forward(curve, step))) >= q

    hazard = lived - log1p(-min(q, _NEARLY))
    guess = max(hazard if curve is None else backward(curve, hazard), _LEAST)
    low = high = guess
    far = _EPSILON
    if is_reached(high):
        while is_reached(low):
            high = low
            low = guess * (1.0 - far) if far < 1.0 else 0.0
            far *= 2.0
    else:
        while high < inf and not is_reached(high):
            low = high
            high = guess * (1.0 + far)
            far *= 2.0
    middle = (low + high) / 2.0
    while low < middle < high:
        if is_reached(middle):
            high = middle
        else:
            low = middle
        middle = (low + high) / 2.0
    return high


def lived(
    step: tuple[np.ndarray, np.ndarray], bins: tuple[np.ndarray, np.ndarray], censored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the contributions of ``N`` outcomes to the factors.

    A length is an integer, so an outcome covers a step of predicted hazard; it is spread over that
    step as predicted, uniform in probability. In the tail it is spread over its whole bin of the
    grid: the constant hazard inside a bin is a convention and not a prediction, and where a bin
    holds nearly all outcomes, the place of one length in it would create a tail. A censored outcome
    survived up to its length.

    Args:
        step: predicted cumulative hazard one token before the outcome, and at it, shape ``(N,)``.
        bins: the same where the bin of the outcome begins and ends.
        censored: True where the outcome is only a lower bound, shape ``(N,)``.

    Returns:
        The share of each outcome that ended in each segment, and the predicted hazard that it
        survived there, shape ``(N, SEGMENTS)``; the sum of the first over the sum of the
        second is the factor.
    """
    ended, time = _within(*step)
    share = ended[:, TAIL:].sum(axis=1, keepdims=True)
    beyond = _within(np.maximum(bins[0], EDGES[TAIL]), bins[1])
    ended[:, TAIL:] = share * beyond[0][:, TAIL:]
    time[:, TAIL:] = share * beyond[1][:, TAIL:]
    ended[censored] = 0.0
    time[censored] = np.diff(np.minimum(_BOUNDS, step[1][censored, None]), axis=1)
    return ended, time


def _within(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`lived` of outcomes that lie in the steps ``low..high`` as predicted."""
    # A step without predicted hazard is empty, so its end is used.
    high = np.clip(high, 1e-30, _BOUNDS[-1])[:, None]
    low = np.minimum(low[:, None], high * (1.0 - 1e-6))
    step = high - low
    inside = np.clip(_BOUNDS - low, 0.0, step)
    ends = -np.expm1(-step)
    ended = np.diff(-np.expm1(-inside) / ends, axis=1)
    # Before the step nothing has ended; inside it, integrate the share that has not ended yet.
    rest = ended - np.diff(inside, axis=1) * np.exp(-step) / ends
    return ended, np.diff(np.minimum(_BOUNDS, low), axis=1) + np.maximum(rest, 0.0)
