"""Checks of the arguments of calls, and the division of a batch into waves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import (
    FINISH_REASONS,
    MAX_DURATION_S,
    PredictionRequest,
    SequenceId,
)
from sagellm_lifetime.core.values import as_sequence_id, number, whole

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
    except TypeError:  # an array without dimensions has an iterator by its type alone
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
