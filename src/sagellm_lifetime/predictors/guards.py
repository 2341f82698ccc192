"""What every call is checked for, and how a batch is taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import FINISH_REASONS, PredictionRequest, SequenceId

_LONGEST = 10**8
"""Above this a length is a mistake, as it is in a history."""


def waves(requests: Sequence[PredictionRequest], most: int) -> list[list[int]]:
    """Indices such that no wave has an id twice, nor more than ``most`` (sequences of one wave must
    not push each other out of the tracker), and every id keeps its order."""
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


def check_completion(
    sequence_id: SequenceId, length: int, seconds: float, finish_reason: str
) -> None:
    if (
        type(length) is int
        and type(seconds) is float
        and 0 <= length <= _LONGEST
        and 0.0 <= seconds < inf
        and finish_reason in FINISH_REASONS
    ):
        return
    if finish_reason not in FINISH_REASONS:
        raise RequestError(
            f"finish_reason {finish_reason!r} is unknown: one of {', '.join(FINISH_REASONS)}"
        )
    if isinstance(length, bool) or not hasattr(length, "__index__") or not 0 <= length <= _LONGEST:
        raise RequestError(
            f"actual_length of {sequence_id!r} must be an int from 0 to {_LONGEST}: {length}"
        )
    if not hasattr(seconds, "__float__") or not 0.0 <= float(seconds) < float("inf"):
        raise RequestError(f"actual_time of {sequence_id!r} must be seconds >= 0: {seconds}")
