"""Arithmetic of cumulative hazards on the grid: one sequence at a time, and many at once.

A row ``H`` has ``BINS + 1`` entries, ``H[k] = -log P(L > EDGES[k])``, ``H[0] = 0``, never
decreasing. The hazard is constant inside a bin, so conditioning on an age is a subtraction that
cannot underflow: ``-log P(L > a + n | L > a) = H(a + n) - H(a)``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import ceil
from typing import Final

import numpy as np

from sagellm_lifetime.core.grid import BINS, EDGE_LIST, EDGES, MAX_LENGTH, TAIL_HAZARD, WIDTHS

ROW = BINS + 1
_WIDTH_LIST: Final[list[int]] = WIDTHS.tolist()
_WIDTHS: Final = np.append(WIDTHS, 1).astype(np.float64)
_TAIL_HAZARDS: Final = np.append(np.zeros(BINS), TAIL_HAZARD)
"""By edge: the width of the bin that begins there, and the hazard per token beyond the grid."""


def cumulative(row: np.ndarray, length: float) -> float:
    """Return ``H(length)`` of one row, ``length >= 0``.

    Exactly what :func:`cumulative_many` returns: the same operations in the same order.
    """
    if length >= MAX_LENGTH:
        return float(row.item(BINS) + (length - MAX_LENGTH) * TAIL_HAZARD)
    k = bisect_right(EDGE_LIST, length) - 1
    edge = EDGE_LIST[k]
    low = row.item(k)
    if length == edge:
        return float(low)
    return float(low + (row.item(k + 1) - low) * (length - edge) / _WIDTH_LIST[k])


def inverse(row: np.ndarray, hazard: float) -> float:
    """Return the smallest length with ``H(length) >= hazard``, up to rounding (a float).

    For exact whole numbers see :func:`first_reaching`.
    """
    # Not searchsorted: it makes a float64 copy of the row, and lets go of the GIL for that.
    k = bisect_left(row.data, hazard)
    if k > BINS:
        return MAX_LENGTH + (hazard - row.item(BINS)) / TAIL_HAZARD
    if k == 0:
        return 0.0
    low = row.item(k - 1)
    return float(EDGE_LIST[k - 1] + (hazard - low) / (row.item(k) - low) * _WIDTH_LIST[k - 1])


def first_reaching(row: np.ndarray, base: float, step: float, start: int) -> int:
    """Return the smallest ``n >= 1`` with ``H(start + n) - base >= step``.

    The comparison is the one of floats, as :func:`cumulative` returns them: whoever asks for a
    survival and whoever asks for a quantile never disagree.

    Args:
        row: cumulative hazards, shape ``(BINS + 1,)``.
        base: hazard from which the step is counted.
        step: hazard to live through, above 0.
        start: tokens generated so far.
    """
    target = base + step
    k = bisect_left(row.data, target)
    if 0 < k <= BINS:
        # Nearly always the answer lies well inside the bin: tell so without a second look-up.
        edge, width, low = EDGE_LIST[k - 1], _WIDTH_LIST[k - 1], row.item(k - 1)
        high = row.item(k)
        end = ceil(edge + (target - low) / (high - low) * width)
        n = end - start
        if n > 1 and edge < end <= EDGE_LIST[k]:
            span = high - low
            at = high if end == EDGE_LIST[k] else low + span * (end - edge) / width
            if at - base >= step > low + span * (end - 1 - edge) / width - base:
                return n
    elif k == 0:
        n = 1
    else:
        n = ceil(MAX_LENGTH + (target - row.item(BINS)) / TAIL_HAZARD) - start
    return _searched(row, base, step, start, max(n, 1))


def _searched(row: np.ndarray, base: float, step: float, start: int, n: int) -> int:
    """:func:`first_reaching` from a guess ``n``, by doubling the distance and halving it again."""
    far = 1
    if cumulative(row, start + n) - base >= step:
        low, high = n - 1, n
        while low > 0 and cumulative(row, start + low) - base >= step:
            high = low
            low = max(low - far, 0)
            far *= 2
    else:
        low, high = n, n + 1
        while cumulative(row, start + high) - base < step:
            low = high
            high += far
            far *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if cumulative(row, start + middle) - base >= step:
            high = middle
        else:
            low = middle
    return high


def cumulative_many(rows: np.ndarray, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return ``H(lengths[i])`` of ``rows[index[i]]``; float64, shape of ``lengths``."""
    k = EDGES.searchsorted(lengths, side="right") - 1
    over = lengths - EDGES.take(k)
    low = rows[index, k].astype(np.float64)
    value = low + (rows[index, np.minimum(k + 1, BINS)] - low) * over / _WIDTHS.take(k)
    # The last edge has no bin behind it, so nothing was added there: the tail comes on top.
    return np.asarray(value + over * _TAIL_HAZARDS.take(k))


def first_reaching_many(
    rows: np.ndarray, index: np.ndarray, base: np.ndarray, steps: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Return :func:`first_reaching` of ``N`` sequences; int64, shape ``(N,)``."""
    target = base + steps
    taken = rows.take(index, axis=0)
    # First entry not below: rows never decrease, so it is the first False.
    upper = np.clip((taken < target[:, None]).argmin(axis=1), 1, BINS)
    where = np.arange(len(taken))
    low = taken[where, upper - 1].astype(np.float64)
    high = taken[where, upper].astype(np.float64)
    span = high - low
    edge, width = EDGES.take(upper - 1), WIDTHS.take(upper - 1)
    part = np.minimum((target - low) / np.where(span > 0, span, 1.0), 2.0)
    end = np.ceil(edge + part * width)
    over = end - edge
    at = np.where(over == width, high, low + span * over / width)
    before = low + span * (over - 1.0) / width
    found = (end - starts).astype(np.int64)
    sure = (at - base >= steps) & ((before - base < steps) | (found == 1))
    sure &= (over >= 1.0) & (over <= width) & (found >= 1)
    # Where rounding put it beside the whole number, and beyond the grid, it is searched for.
    for i in np.flatnonzero(~sure).tolist():
        row = rows[index.item(i)]
        found[i] = first_reaching(row, base.item(i), steps.item(i), starts.item(i))
    return found


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
