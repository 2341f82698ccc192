"""Conversion of a network's outputs to a row of cumulative hazards (NumPy; the serving side).

With ``base`` the hazards of the residual-life table, ``c`` the network's logits over the length
and ``r`` its logits over the length relative to the age ``a`` at which the evidence was read,

    logit h[k] = logit base[k] + c(log midpoint[k]) + r(log(midpoint[k] / a))

and ``-log(1 - h) = softplus(logit h)`` adds up to the cumulative hazard. Both corrections are
piecewise linear: the table provides the fine structure (spikes at recurring lengths), and a network
with a free logit per bin learned the noise of its training set (dev/LOG.md). The relative part, 0
for ``a = 0``, expresses lengths such as "twice the tokens generated so far", which a fixed grid
cannot.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.grid import BINS, EDGES, WIDTHS, bin_of

TOKEN_DIM: Final = 24
NAME_DIM: Final = 16
ABSOLUTE: Final = 28
RELATIVE: Final = 40
OUTPUTS: Final = ABSOLUTE + RELATIVE
RELATIVE_KNOTS: Final = np.concatenate(
    [np.linspace(0.0, 1.6, 33)[:-1], np.linspace(1.6, 7.0, RELATIVE - 32)]
)
"""Knots in the logarithm of length over age: 5 % apart up to five times the age, then wider."""
LOG_MIDDLE: Final = np.log((EDGES[:-1] + EDGES[1:] + 1) / 2.0)
ABSOLUTE_KNOTS: Final = np.linspace(0.0, LOG_MIDDLE[-1], ABSOLUTE)


def interpolation(at: np.ndarray, knots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left knots and the shares of the right ones for linear interpolation.

    Outside of the knots the interpolation is constant.

    Args:
        at: positions, any shape, which is also that of both results.
        knots: ascending positions of the knots.
    """
    k = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    return k, np.clip((at - knots[k]) / (knots[k + 1] - knots[k]), 0.0, 1.0)


def _basis() -> np.ndarray:
    k, share = interpolation(LOG_MIDDLE, ABSOLUTE_KNOTS)
    eye = np.eye(ABSOLUTE)
    return ((1.0 - share) * eye[:, k] + share * eye[:, k + 1]).astype(np.float32)


BASIS: Final = _basis()
"""Basis that maps absolute logits to bins, float32 of shape ``(ABSOLUTE, BINS)``."""
_LIMIT: Final = 14.0


def base_logits(hazards: np.ndarray) -> np.ndarray:
    """Return logits of discrete hazards, bounded so that a network can correct them.

    Args:
        hazards: shape ``(..., BINS)``, which is also that of the result.
    """
    h = np.minimum(np.maximum(hazards, 1e-5), 1.0 - 1e-5)
    return np.log(h / (1.0 - h))


def corrections_by_bin(corrections: np.ndarray, age: int) -> np.ndarray:
    """Return the sum of both corrections of each bin, shape ``(BINS,)``.

    Args:
        corrections: output of the network, shape ``(BINS + RELATIVE,)``.
        age: age at which the evidence was read, tokens.
    """
    absolute = corrections[:BINS]
    if not age:
        return absolute
    return absolute + np.interp(LOG_MIDDLE - np.log(age), RELATIVE_KNOTS, corrections[BINS:])


def hazard_steps(logits: np.ndarray) -> np.ndarray:
    """Return ``-log(1 - h)`` of logits of hazards, which are changed; of their shape."""
    # fmax and fmin replace NaN, which a network may return for an unusual request.
    np.fmin(np.fmax(logits, -_LIMIT, out=logits), _LIMIT, out=logits)
    return np.asarray(np.log1p(np.exp(logits)))


def corrected_row(by_bin: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return the cumulative hazards of one sequence, float32 of shape ``(BINS + 1,)``.

    Args:
        by_bin: corrections of each bin, shape ``(BINS,)``.
        base: logits of the residual-life table, shape ``(BINS,)``.
    """
    return hazard.from_steps(hazard_steps(by_bin + base))


def log_losses(
    by_bin: np.ndarray,
    base: np.ndarray,
    shares: np.ndarray,
    outcome: tuple[int, int, bool],
) -> np.ndarray:
    """Return the log losses of one answer by the share of the corrections applied, nats.

    As in :mod:`~sagellm_lifetime.networks.loss`, without PyTorch.

    Args:
        by_bin: corrections of each bin, shape ``(BINS,)``.
        base: logits of the residual-life table, shape ``(BINS,)``.
        shares: shares of the corrections, shape ``(S,)``, which is also that of the result.
        outcome: age at which the evidence was read, length, and True if that is a lower bound.
    """
    age, length, censored = outcome
    corrections = np.multiply.outer(shares, by_bin)
    corrections[shares == 0.0] = 0.0  # also where a correction is not a number
    steps = hazard_steps(corrections + base)
    length = max(length, 0 if censored else age + 1)
    event = bin_of(length)
    begin, end = int(EDGES[event]), int(EDGES[event + 1])
    stop = length if censored else begin
    alive = np.minimum(EDGES[1:], stop) - np.maximum(EDGES[:-1], age)
    survived = steps @ (np.maximum(alive, 0) / WIDTHS)
    if censored:
        return np.asarray(survived)
    last = steps[:, event] * (max(end - max(age, begin), 1) / (end - begin))
    return np.asarray(survived - np.log(-np.expm1(-last) + 1e-9))
