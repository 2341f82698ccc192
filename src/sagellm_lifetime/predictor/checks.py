"""Checks of calls' arguments and of models' rows, and the division of a batch into waves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import LifetimeError, RequestError, shown
from sagellm_lifetime.core.grid import EDGES
from sagellm_lifetime.core.hazard import KNOTS, ROW, WIDE
from sagellm_lifetime.core.protocol import (
    FINISH_REASONS,
    MAX_DURATION_S,
    PredictionRequest,
    SequenceId,
)
from sagellm_lifetime.core.values import as_sequence_id, number, whole
from sagellm_lifetime.models.base import LengthModel

_PACKAGE: Final = __name__.partition(".")[0]
_LONGEST: Final = 10**8
"""Upper limit of a length in tokens, as in a history."""


def waves(requests: Sequence[PredictionRequest], most: int) -> list[list[int]]:
    """Return the indices of a batch in waves, to be predicted one after another.

    No wave has an id twice, and every id keeps its order. No wave has more than ``most`` requests,
    so that its sequences do not drop each other from the tracker.
    """
    if len({request.sequence_id for request in requests}) == len(requests):
        return [
            list(range(start, min(start + most, len(requests))))
            for start in range(0, len(requests), most)
        ]
    if len(requests) > most:
        return [[i] for i in range(len(requests))]
    turns: dict[SequenceId, int] = {}
    waves: list[list[int]] = []
    for i, request in enumerate(requests):
        turn = turns.get(request.sequence_id, 0)
        turns[request.sequence_id] = turn + 1
        if turn == len(waves):
            waves.append([])
        waves[turn].append(i)
    return waves


def check_iterable(requests: Iterable[PredictionRequest]) -> Iterable[PredictionRequest]:
    """Return an iterator over a batch. Raises :class:`RequestError` if it is not iterable."""
    try:
        return iter(requests)
    except TypeError:  # the type of an array without dimensions has an iterator, the array has none
        pass
    raise RequestError(f"a batch must be a list of PredictionRequest: {shown(requests)}")


def check_completion(
    sequence_id: Any, length: Any, seconds: Any, finish_reason: Any
) -> tuple[SequenceId, int, float, str]:
    """Return the four arguments of an ``update`` with plain types.

    Raises:
        RequestError: an invalid id, a number that is negative, not finite or above the limit of a
            length (10**8 tokens) or a time (10**8 s), or an unknown finish reason.
    """
    if (
        (type(sequence_id) is str or type(sequence_id) is int)
        and type(length) is int
        and type(seconds) is float
        and 0 <= length <= _LONGEST
        and 0.0 <= seconds <= MAX_DURATION_S
        and type(finish_reason) is str
        and finish_reason in FINISH_REASONS
    ):
        return sequence_id, length, seconds, finish_reason
    sequence_id = as_sequence_id(sequence_id)
    if not isinstance(finish_reason, str) or finish_reason not in FINISH_REASONS:
        raise RequestError(
            f"finish_reason {shown(finish_reason)} is unknown: one of {', '.join(FINISH_REASONS)}"
        )
    tokens, time = whole(length), number(seconds)
    if tokens is None or not 0 <= tokens <= _LONGEST:
        raise RequestError(
            f"actual_length of {shown(sequence_id)} must be an int from 0 to {_LONGEST}: "
            f"{shown(length)}"
        )
    if time is None or not 0.0 <= time <= MAX_DURATION_S:
        raise RequestError(
            f"actual_time of {shown(sequence_id)} must be seconds from 0 to {MAX_DURATION_S}: "
            f"{shown(seconds)}"
        )
    return sequence_id, tokens, time, str.__str__(finish_reason)


@cache
def is_own(model_class: type[LengthModel]) -> bool:
    """Return True for a model class of this package, whose tests check its rows."""
    return model_class.__module__.partition(".")[0] == _PACKAGE


def check_rows(model: LengthModel, rows: Any, count: int) -> list[np.ndarray]:
    """Return the rows of a model of another package, as a list, after a check of each.

    Args:
        model: the model, which a message names.
        rows: result of its ``hazards``.
        count: number of pieces of evidence that it was given.

    Raises:
        LifetimeError: another number of rows, or a row that is no cumulative hazard.
    """
    try:
        checked = list(rows)
    except TypeError:
        raise _unfit(model, f"returned {shown(rows)}, not rows") from None
    if len(checked) != count:
        raise _unfit(model, f"returned {len(checked)} rows for {count} pieces of evidence")
    for row in checked:
        problem = _problem_of(row)
        if problem:
            raise _unfit(model, problem)
    return checked


def _unfit(model: LengthModel, problem: str) -> LifetimeError:
    return LifetimeError(f"the hazards of model {model.name!r} cannot be used: {problem}")


def _problem_of(row: Any) -> str:
    """Return why a value is no row of cumulative hazards, or ``""``."""
    if not isinstance(row, np.ndarray) or row.dtype != np.float32 or row.ndim != 1:
        given = f"{row.dtype} of {row.shape}" if isinstance(row, np.ndarray) else shown(row)
        return f"a row is a float32 array with one dimension: {given}"
    if len(row) not in (ROW, WIDE):
        return (
            f"a row of cumulative hazards has {ROW} or {WIDE} numbers, and the model's has "
            f"{len(row)}"
        )
    edges = row[:ROW]
    if edges[0] != 0.0:
        return f"a row starts at 0, and this at {edges.item(0)}"
    # A comparison with NaN is False, so finite at the end means finite everywhere.
    if not (edges[1:] >= edges[:-1]).all() or not np.isfinite(edges[-1]):
        return "a row is finite and never falls, and this has NaN, infinity or falls"
    if len(row) == WIDE and not _fits_knots(row):
        return "the knots of a wide row do not ascend between its edges"
    return ""


def _fits_knots(row: np.ndarray) -> bool:
    """Return True if the knots of a wide row ascend, lie between its edges, and end in infinity."""
    lengths, hazards = row[ROW : ROW + KNOTS], row[ROW + KNOTS :]
    used = int(np.isfinite(lengths).sum())
    if not (np.isposinf(lengths[used:]).all() and np.isposinf(hazards[used:]).all()):
        return False
    lengths, hazards = lengths[:used], hazards[:used]
    if not ((lengths > 0).all() and (lengths < EDGES[-1]).all()):
        return False
    bins = EDGES.searchsorted(lengths, side="right") - 1
    is_ascending = (lengths[1:] > lengths[:-1]).all() and (hazards[1:] >= hazards[:-1]).all()
    is_between = (row[bins] <= hazards).all() and (hazards <= row[bins + 1]).all()
    return bool(is_ascending and is_between)
