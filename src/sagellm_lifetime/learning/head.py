"""From the outputs of a network to a row of cumulative hazards (NumPy; the serving side).

With ``base`` the hazards of the residual-life table, ``c`` the network's logits on the grid and
``r`` its logits relative to the age ``a`` at which the evidence was read, the discrete hazard is

    logit h[k] = logit base[k] + c[k] + r(log(midpoint[k] / a)),   r piecewise linear, 0 for a = 0

and ``-log(1 - h) = softplus(logit h)`` adds up to the cumulative hazard. The relative part says
things like "about twice what has been generated", which no fixed grid can.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.grid import BINS, EDGES

TOKEN_DIM: Final = 24
NAME_DIM: Final = 16
RELATIVE: Final = 40
RELATIVE_KNOTS: Final = np.concatenate(
    [np.linspace(0.0, 1.6, 33)[:-1], np.linspace(1.6, 7.0, RELATIVE - 32)]
)
"""Logarithm of length over age: steps of 5 % up to five times the age, then wider."""
LOG_MIDDLE: Final = np.log((EDGES[:-1] + EDGES[1:] + 1) / 2.0)
_LIMIT: Final = 14.0


def base_logits(hazards: np.ndarray) -> np.ndarray:
    """Logits of discrete hazards, bounded so that the network can correct them."""
    h = np.clip(hazards, 1e-5, 1.0 - 1e-5)
    return np.log(h) - np.log1p(-h)


def rows_from_outputs(outputs: np.ndarray, base: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """Cumulative hazards from network outputs.

    Args:
        outputs: shape ``(N, BINS + RELATIVE)``.
        base: logits of the residual-life table, shape ``(N, BINS)``.
        ages: age at which the evidence was read, shape ``(N,)``.

    Returns:
        rows of shape ``(N, BINS + 1)``.
    """
    logits = outputs[:, :BINS] + base
    for i in np.flatnonzero(ages):
        logits[i] += np.interp(LOG_MIDDLE - np.log(ages[i]), RELATIVE_KNOTS, outputs[i, BINS:])
    np.clip(logits, -_LIMIT, _LIMIT, out=logits)
    return hazard.from_steps(np.logaddexp(0.0, logits))
