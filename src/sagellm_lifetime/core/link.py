"""The calibration link: a monotone map of probabilities laid over a conditioned distribution.

``G(u)`` says how often the outcome really fell below the level ``u`` that was predicted
(Kuleshov et al. 2018, "Accurate uncertainties for deep learning using calibrated regression").
It is piecewise linear on ``KNOTS``; the identity means "already calibrated".
"""

from __future__ import annotations

from math import expm1, log, log1p
from typing import Final

import numpy as np

LEVELS: Final = 20
KNOTS: Final[np.ndarray] = np.linspace(0.0, 1.0, LEVELS + 1)
IDENTITY: Final[np.ndarray] = KNOTS.copy()
KNOTS.flags.writeable = False
IDENTITY.flags.writeable = False
_LAST: Final = log(LEVELS)
"""Cumulative hazard at which the last segment begins."""


def _offset(curve: np.ndarray) -> float:
    return -log((1.0 - curve.item(LEVELS - 1)) * LEVELS)


def forward(curve: np.ndarray, step: float) -> float:
    """Calibrated cumulative hazard, ``-log(1 - G(1 - exp(-step)))``.

    In the last segment ``1 - G`` is proportional to ``1 - u``, so there the map is a constant
    added to the hazard: nothing underflows however far in the tail a sequence is.
    """
    if step >= _LAST:
        return step + _offset(curve)
    position = -expm1(-step) * LEVELS
    k = min(int(position), LEVELS - 1)
    low = curve.item(k)
    return -log1p(-(low + (curve.item(k + 1) - low) * (position - k)))


def backward(curve: np.ndarray, step: float) -> float:
    """Inverse of :func:`forward`."""
    if step >= -log1p(-curve.item(LEVELS - 1)):
        return step - _offset(curve)
    q = -expm1(-step)
    k = int(curve.searchsorted(q))
    if k == 0:
        return 0.0
    low = curve.item(k - 1)
    return -log1p(-(k - 1 + (q - low) / (curve.item(k) - low)) / LEVELS)


def forward_many(curves: np.ndarray, index: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """:func:`forward` of ``steps[i]`` under ``curves[index[i]]``."""
    position = -np.expm1(-np.minimum(steps, _LAST)) * LEVELS
    k = np.minimum(position.astype(np.int64), LEVELS - 1)
    low = curves[index, k]
    u = low + (curves[index, k + 1] - low) * (position - k)
    offset = -np.log((1.0 - curves[:, LEVELS - 1]) * LEVELS)
    return np.asarray(
        np.where(steps >= _LAST, steps + offset[index], -np.log1p(-np.minimum(u, 1.0 - 1e-15)))
    )


def backward_level(curves: np.ndarray, step: float) -> np.ndarray:
    """:func:`backward` of one ``step`` under every curve, shape ``(len(curves),)``."""
    return np.array([backward(curve, step) for curve in curves])
