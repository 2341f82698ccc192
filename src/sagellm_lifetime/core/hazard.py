"""Arithmetic of cumulative hazards on the grid: one sequence at a time, and many at once.

A row ``H`` has ``BINS + 1`` entries, ``H[k] = -log P(L > EDGES[k])``, ``H[0] = 0``, never
decreasing. The hazard is constant inside a bin, so conditioning on an age is a subtraction that
cannot underflow: ``-log P(L > a + n | L > a) = H(a + n) - H(a)``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from sagellm_lifetime.core.grid import BINS, EDGE_LIST, EDGES, MAX_LENGTH, TAIL_HAZARD, WIDTHS

ROW = BINS + 1


def cumulative(row: np.ndarray, length: float) -> float:
    """``H(length)`` of one row, ``length >= 0``."""
    if length >= MAX_LENGTH:
        return row.item(BINS) + (length - MAX_LENGTH) * TAIL_HAZARD
    k = bisect_right(EDGE_LIST, length) - 1
    low = EDGE_LIST[k]
    base = row.item(k)
    if length == low:
        return base
    return float(base + (row.item(k + 1) - base) * (length - low) / (EDGE_LIST[k + 1] - low))


def inverse(row: np.ndarray, hazard: float) -> float:
    """Smallest length with ``H(length) >= hazard`` (a float; callers round up)."""
    top = row.item(BINS)
    if hazard > top:
        return MAX_LENGTH + (hazard - top) / TAIL_HAZARD
    # Not searchsorted: it makes a float64 copy of the row, and lets go of the GIL for that.
    k = bisect_left(row.data, hazard)
    if k == 0:
        return 0.0
    low = row.item(k - 1)
    return EDGE_LIST[k - 1] + (hazard - low) / (row.item(k) - low) * (
        EDGE_LIST[k] - EDGE_LIST[k - 1]
    )


def cumulative_many(rows: np.ndarray, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """``H(lengths[i])`` of ``rows[index[i]]``; float64, shape of ``lengths``."""
    inside = np.minimum(lengths, MAX_LENGTH)
    k = np.minimum(np.searchsorted(EDGES, inside, side="right") - 1, BINS - 1)
    low = rows[index, k].astype(np.float64)
    high = rows[index, k + 1]
    value = low + (high - low) * ((inside - EDGES[k]) / WIDTHS[k])
    return np.asarray(value + (lengths - inside) * TAIL_HAZARD)


def inverse_many(rows: np.ndarray, index: np.ndarray, hazards: np.ndarray) -> np.ndarray:
    """Smallest length with ``H >= hazards[i]`` in ``rows[index[i]]``; float64."""
    taken = rows.take(index, axis=0)
    # First entry not below: rows never decrease, so it is the first False.
    low = (taken < hazards[:, None]).argmin(axis=1)
    upper = np.clip(low, 1, BINS)
    where = np.arange(len(taken))
    base = taken[where, upper - 1].astype(np.float64)
    span = taken[where, upper] - base
    part = (hazards - base) / np.where(span > 0, span, 1.0)
    value = EDGES[upper - 1] + part * WIDTHS[upper - 1]
    beyond = hazards - taken[:, BINS]
    return np.asarray(
        np.where(
            beyond > 0,
            MAX_LENGTH + beyond / TAIL_HAZARD,
            np.where(hazards <= 0.0, 0.0, np.clip(value, EDGES[upper - 1], EDGES[upper])),
        )
    )


def from_hazards(discrete: np.ndarray) -> np.ndarray:
    """Rows from per-bin hazards ``P(L in bin | L > its lower edge)``, shape ``(..., BINS)``."""
    # Ufuncs: for one row np.clip and np.cumsum take longer to find their arguments than to compute.
    steps = np.log1p(-np.minimum(np.maximum(discrete, 0.0), 1.0 - 1e-9))
    return from_steps(np.negative(steps, steps))


def from_steps(steps: np.ndarray) -> np.ndarray:
    """Rows from per-bin increments of the cumulative hazard, shape ``(..., BINS)``."""
    rows = np.zeros((*steps.shape[:-1], ROW), dtype=np.float32)
    np.add.accumulate(steps, axis=-1, out=rows[..., 1:])
    return rows


def log_logistic(median: float, log_sd: float) -> np.ndarray:
    """Row of the log-logistic distribution with that median and standard deviation of ``log L``.

    ``S(n) = 1 / (1 + (n / median) ** beta)`` with ``beta = pi / (sqrt(3) * log_sd)``
    (Bennett 1983): a closed form beside the log-normal, with the heavier tail that lengths have.
    """
    beta = np.pi / (np.sqrt(3.0) * max(log_sd, 1e-3))
    with np.errstate(divide="ignore"):
        exponent = beta * (np.log(EDGES) - np.log(median))
    return np.logaddexp(0.0, exponent).astype(np.float32)
