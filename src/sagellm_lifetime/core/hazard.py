"""Arithmetic of cumulative hazards on the grid: one sequence at a time, and many at once.

A row ``H`` has ``BINS + 1`` entries, ``H[k] = -log P(L > EDGES[k])``, ``H[0] = 0``, never
decreasing. Conditioning on an age is a subtraction that cannot underflow:
``-log P(L > a + n | L > a) = H(a + n) - H(a)``.

The hazard is constant inside a bin, except where it rises steeply (:func:`_is_steep`): there the
lengths are spread evenly over the bin. Otherwise the last bin of a narrow group, in which nearly
all that are left end, would have them end at its beginning.

A wide row places the hazard inside its bins. After the ``BINS + 1`` entries come
``KNOTS`` lengths, ascending, and the ``KNOTS`` cumulative hazards there; unused ones are infinite.
Between two neighbours among edges and knots the hazard is constant, or the lengths are spread
evenly, as in their bin. A value that recurs has a knot before it and one at it, so that all of its
mass lies on that one length (:func:`with_atoms`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, expm1, log, log1p
from typing import Final

import numpy as np

from sagellm_lifetime.core.grid import (
    BINS,
    EDGE_LIST,
    EDGES,
    MAX_LENGTH,
    TAIL_HAZARD,
    WIDTHS,
    bin_of,
)

ROW = BINS + 1
_STEEP: Final = 0.25
"""Cumulative hazard of a bin above which its lengths may be spread evenly; below it the two forms
differ by less than 3 % of the bin."""
_RISE: Final = 1.5
"""Least ratio of its hazard per token to that of the bin before, for the same."""
_LEAST: Final = 1e-9
"""Least share of the sequences at risk that survives a bin."""
_LEAST_LOG: Final = log(_LEAST)
MOST_ATOMS: Final = 8
KNOTS: Final = 2 * MOST_ATOMS
WIDE: Final = ROW + 2 * KNOTS
_KNOTS_END: Final = ROW + KNOTS
_NO_KNOTS: Final = np.full(WIDE, np.inf, dtype=np.float32)
Atoms = tuple[tuple[int, float], ...]
"""Values that recur, ascending, and the share of those in its bin that end exactly there."""
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
    edge, low = EDGE_LIST[k], row.item(k)
    if length == edge:
        return float(low)
    high = row.item(k + 1)
    even = high - low > _STEEP and _is_steep(row, k)
    if row.size == ROW:
        return float(_inside(low, high, length - edge, _WIDTH_LIST[k], even))
    i = bisect_right(row.data, length, ROW, _KNOTS_END)
    start, end, low, high = _narrowed(row, i, edge, EDGE_LIST[k + 1], low, high)
    return float(_inside(low, high, length - start, end - start, even))


def _is_steep(row: np.ndarray, k: int) -> bool:
    """Return whether much ends in bin ``k``, at a rate per token above that of the bin before.

    Where it is no higher than before (a memoryless tail), a constant hazard is the better guess.
    """
    span = row.item(k + 1) - row.item(k)
    if k == 0 or span <= _STEEP:
        return bool(span > _STEEP)
    before = row.item(k) - row.item(k - 1)
    return bool(span * _WIDTH_LIST[k - 1] > _RISE * before * _WIDTH_LIST[k])


def _inside(low: float, high: float, over: float, width: float, even: bool) -> float:
    """Return the hazard ``over`` tokens after the beginning of a stretch ``low`` to ``high``.

    Args:
        low: cumulative hazard where the stretch begins.
        high: cumulative hazard where it ends.
        over: tokens, from 0 to ``width``.
        width: tokens of the stretch.
        even: whether lengths are spread evenly, rather than the hazard constant.
    """
    if not even:
        return low + (high - low) * over / width
    return min(low - log1p(expm1(low - high) * (over / width)), high) if over < width else high


def _part(low: float, high: float, hazard: float, even: bool) -> float:
    """Return the part of a stretch at whose end the hazard is reached, up to rounding."""
    return expm1(low - hazard) / expm1(low - high) if even else (hazard - low) / (high - low)


def _narrowed(
    row: np.ndarray, i: int, start: float, end: float, low: float, high: float
) -> tuple[float, float, float, float]:
    """Narrow a stretch of a wide row to the knots around it; ``i`` is the first knot after it."""
    if i > ROW and row.item(i - 1) > start:
        start, low = row.item(i - 1), row.item(i - 1 + KNOTS)
    if i < _KNOTS_END and row.item(i) < end:
        end, high = row.item(i), row.item(i + KNOTS)
    return start, end, low, high


def inverse(row: np.ndarray, hazard: float) -> float:
    """Return the smallest length with ``H(length) >= hazard``, up to rounding (a float).

    For exact whole numbers see :func:`first_reaching`.
    """
    # Not searchsorted, which makes a float64 copy of the row and releases the GIL for that.
    k = bisect_left(row.data, hazard, 0, ROW)
    if k > BINS:
        return MAX_LENGTH + (hazard - row.item(BINS)) / TAIL_HAZARD
    if k == 0:
        return 0.0
    start, end, low, high = _around(row, k, hazard)
    return float(start + _part(low, high, hazard, _is_steep(row, k - 1)) * (end - start))


def _around(row: np.ndarray, k: int, hazard: float) -> tuple[float, float, float, float]:
    """Return the stretch inside bin ``k - 1`` in which the hazard is reached."""
    stretch = EDGE_LIST[k - 1], EDGE_LIST[k], row.item(k - 1), row.item(k)
    if row.size > ROW:
        i = bisect_left(row.data, hazard, _KNOTS_END, WIDE) - KNOTS
        return _narrowed(row, i, *stretch)
    return stretch


def first_reaching(row: np.ndarray, base: float, step: float, start: int) -> int:
    """Return the smallest ``n >= 1`` with ``H(start + n) - base >= step``.

    Floats are compared as :func:`cumulative` returns them, so that a survival and a quantile never
    disagree.

    Args:
        row: cumulative hazards, shape ``(BINS + 1,)``.
        base: hazard from which the step is counted.
        step: cumulative hazard to add, above 0.
        start: tokens generated so far.
    """
    target = base + step
    k = bisect_left(row.data, target, 0, ROW)
    if 0 < k <= BINS:
        # The answer nearly always is well inside the stretch, and then no further search is needed.
        begin, end, low, high = _around(row, k, target)
        width, even = end - begin, _is_steep(row, k - 1)
        length = ceil(begin + _part(low, high, target, even) * width)
        n = length - start
        if n > 1 and begin < length <= end:
            at = high if length == end else _inside(low, high, length - begin, width, even)
            if at - base >= step > _inside(low, high, length - 1 - begin, width, even) - base:
                return n
    elif k == 0:
        n = 1
    else:
        n = ceil(MAX_LENGTH + (target - row.item(BINS)) / TAIL_HAZARD) - start
    return _searched(row, base, step, start, max(n, 1))


def _searched(row: np.ndarray, base: float, step: float, start: int, n: int) -> int:
    """Return :func:`first_reaching` by bisection, from a guess ``n`` and growing steps."""
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
    """Return ``H(lengths[i])`` of ``rows[index[i]]``; float64, shape of ``lengths``.

    Where rows are wide, ``index`` and ``lengths`` have one dimension.
    """
    k = EDGES.searchsorted(lengths, side="right") - 1
    edge, width = EDGES.take(k), _WIDTHS.take(k)
    low = rows[index, k].astype(np.float64)
    high = rows[index, np.minimum(k + 1, BINS)].astype(np.float64)
    over = lengths - edge
    # The last edge has no bin after it, so the tail is added separately.
    beyond = over * _TAIL_HAZARDS.take(k)
    steep = _steep_ones(rows, index, k, high - low)
    if rows.shape[1] > ROW:
        knotted = np.flatnonzero(rows[index, ROW] < edge + width)
        if knotted.size:
            count = (rows[index[knotted], ROW:_KNOTS_END] <= lengths[knotted, None]).sum(axis=1)
            start, end = edge.astype(np.float64), edge + width
            _narrow(rows, index[knotted], count, (start, end, low, high), knotted)
            over, width = lengths - start, end - start
    return np.asarray(_inside_many(low, high, over, width, steep) + beyond)


def _steep_ones(
    rows: np.ndarray, index: np.ndarray, k: np.ndarray, spans: np.ndarray
) -> np.ndarray:
    """Return the flat places, ascending, at which :func:`_is_steep` holds for bin ``k``."""
    places = np.flatnonzero(spans > _STEEP)
    if places.size:
        bins = k.flat[places]
        row = np.broadcast_to(index, k.shape).flat[places]
        last = np.maximum(bins - 1, 0)
        # In float64, as in the scalar form.
        before = rows[row, bins].astype(np.float64) - rows[row, last].astype(np.float64)
        before *= bins > 0
        places = places[spans.flat[places] * _WIDTHS[last] > _RISE * before * _WIDTHS[bins]]
    return places


def _inside_many(
    low: np.ndarray, high: np.ndarray, over: np.ndarray, width: np.ndarray, steep: np.ndarray
) -> np.ndarray:
    """Return :func:`_inside` of many stretches, evenly spread at the flat places ``steep``."""
    at = low + (high - low) * over / width
    if steep.size:
        # Each as a Python float, since logarithms of NumPy differ from those of the scalar form.
        columns = [c.flat[steep].tolist() for c in (low, high, over, width)]
        at.flat[steep] = [_inside(a, b, n, w, True) for a, b, n, w in zip(*columns, strict=True)]
    return np.asarray(at)


def _narrow(
    rows: np.ndarray,
    index: np.ndarray,
    count: np.ndarray,
    stretches: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    some: np.ndarray,
) -> None:
    """Narrow ``some`` of the stretches in place; ``count`` knots lie before each."""
    start, end, low, high = stretches
    for at, is_closer, place, value in (
        (np.maximum(count - 1, 0), np.greater, start, low),
        (np.minimum(count, KNOTS - 1), np.less, end, high),
    ):
        knot = rows[index, ROW + at]
        closer = is_closer(knot, place[some])
        closer &= (count > 0) if place is start else (count < KNOTS)
        place[some[closer]] = knot[closer]
        value[some[closer]] = rows[index, _KNOTS_END + at][closer]


def first_reaching_many(
    rows: np.ndarray, index: np.ndarray, base: np.ndarray, steps: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Return :func:`first_reaching` of ``N`` sequences; int64, shape ``(N,)``."""
    target = base + steps
    used_rows = rows.take(index, axis=0)
    # First entry not below: rows never decrease, so it is the first False.
    upper = np.clip((used_rows[:, :ROW] < target[:, None]).argmin(axis=1), 1, BINS)
    where = np.arange(len(used_rows))
    low = used_rows[where, upper - 1].astype(np.float64)
    high = used_rows[where, upper].astype(np.float64)
    begin, close = EDGES.take(upper - 1), EDGES.take(upper)
    steep = _steep_ones(used_rows, where, upper - 1, high - low)
    if rows.shape[1] > ROW:
        knotted = np.flatnonzero(used_rows[:, ROW] < close)
        if knotted.size:
            count = (used_rows[knotted, _KNOTS_END:] < target[knotted, None]).sum(axis=1)
            begin, close = begin.astype(np.float64), close.astype(np.float64)
            _narrow(used_rows, knotted, count, (begin, close, low, high), knotted)
    span, width = high - low, close - begin
    part = np.minimum((target - low) / np.where(span > 0, span, 1.0), 2.0)
    part[steep] = np.expm1((low - target)[steep]) / np.expm1(-span[steep])
    end = np.ceil(begin + part * width)
    over = end - begin
    reached = np.where(over == width, high, _inside_many(low, high, over, width, steep))
    before = _inside_many(low, high, over - 1.0, width, steep)
    tokens = (end - starts).astype(np.int64)
    is_exact = (reached - base >= steps) & ((before - base < steps) | (tokens == 1))
    is_exact &= (over >= 1.0) & (over <= width) & (tokens >= 1)
    # Search where rounding missed the whole number, and beyond the grid.
    for i in np.flatnonzero(~is_exact).tolist():
        row = rows[index.item(i)]
        tokens[i] = first_reaching(row, base.item(i), steps.item(i), starts.item(i))
    return tokens


def with_atoms(row: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Return a wide row in which values that recur are exact, shape ``(WIDE,)``.

    The hazard at the edges stays. Inside a bin the share of each atom ends at its length, and the
    others are spread evenly over the bin.

    Args:
        row: cumulative hazards, shape ``(BINS + 1,)``.
        atoms: at most :data:`MOST_ATOMS`.
    """
    wide = _NO_KNOTS.copy()
    wide[:ROW] = row
    place = ROW
    for k, length, part in _knots(atoms):
        low, high = row.item(k), row.item(k + 1)
        ended = -expm1(low - high) * part
        if ended < 1.0:
            wide[place] = length
            wide[place + KNOTS] = min(low - log1p(-ended), high)
            place += 1
    return wide


@lru_cache(maxsize=1024)
def _knots(atoms: Atoms) -> tuple[tuple[int, int, float], ...]:
    """Return the knots of atoms: bin, length, and the share of the bin that has ended there."""
    knots = []
    k, before, rest = -1, 0.0, 1.0
    for value, share in atoms:
        if bin_of(value) != k:
            k, before = bin_of(value), 0.0
            rest = max(1.0 - sum(part for other, part in atoms if bin_of(other) == k), 0.0)
        for length, ended in ((value - 1, before), (value, before + share)):
            even = rest * (length - EDGE_LIST[k]) / _WIDTH_LIST[k]
            if EDGE_LIST[k] < length < EDGE_LIST[k + 1]:
                knots.append((k, length, min(ended + even, 1.0)))
        before += share
    return tuple(knots)


def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return rows as one matrix, wide if any of them is."""
    if len({len(row) for row in rows}) <= 1:
        return np.stack(rows)
    return np.stack([row if len(row) == WIDE else widened(row[None])[0] for row in rows])


def widened(rows: np.ndarray) -> np.ndarray:
    """Return rows without atoms in the form of wide ones."""
    return np.pad(rows, ((0, 0), (0, WIDE - ROW)), constant_values=np.inf)


def from_hazards(discrete: np.ndarray) -> np.ndarray:
    """Return rows from per-bin hazards ``P(L in bin | L > lower edge)``, shape ``(..., BINS)``."""
    # Ufuncs, because np.clip and np.cumsum spend more time on their arguments than on one row.
    # Summed in place before the conversion, which else goes through a small buffer.
    steps = np.negative(discrete)
    np.minimum(np.maximum(steps, _LEAST - 1.0, steps), 0.0, steps)
    sums = np.add.accumulate(np.log1p(steps, steps), axis=-1)
    rows = np.zeros((*steps.shape[:-1], ROW), dtype=np.float32)
    np.negative(sums, rows[..., 1:], casting="same_kind")
    return rows


def from_logs(logs: np.ndarray) -> np.ndarray:
    """Return rows from ``log(1 - h)`` of each bin, shape ``(..., BINS)``.

    Equal to :func:`from_hazards` of ``h`` but for rounding, without an exponential and a logarithm.
    """
    steps = np.minimum(np.maximum(logs, _LEAST_LOG), 0.0)
    rows = np.zeros((*steps.shape[:-1], ROW), dtype=np.float32)
    np.negative(np.add.accumulate(steps, axis=-1), rows[..., 1:], casting="same_kind")
    return rows


def from_steps(steps: np.ndarray) -> np.ndarray:
    """Return rows from increments of the cumulative hazard per bin, shape ``(..., BINS)``."""
    rows = np.zeros((*steps.shape[:-1], ROW), dtype=np.float32)
    np.add.accumulate(steps, axis=-1, out=rows[..., 1:])
    return rows


def log_logistic(median: float, log_sd: float) -> np.ndarray:
    """Return the row of a log-logistic law with this median and standard deviation of ``log L``.

    ``S(n) = 1 / (1 + (n / median) ** beta)`` with ``beta = pi / (sqrt(3) * log_sd)``
    (Bennett 1983): a closed form beside the log-normal, with the heavier tail that lengths have.
    """
    beta = np.pi / (np.sqrt(3.0) * max(log_sd, 1e-3))
    with np.errstate(divide="ignore"):
        exponent = beta * (np.log(EDGES) - np.log(median))
    return np.logaddexp(0.0, exponent).astype(np.float32)
