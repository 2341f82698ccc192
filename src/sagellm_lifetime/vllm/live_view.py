"""What runs and what waits in an engine core now, for the live page.

It is read once a second on a thread beside the engine's, from lists that are copied in one step, so
the engine does not wait for it. Names are cut and cleaned, since clients choose them; prompts and
answers are not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.vllm.guard import GuardedAdvisor
from sagellm_lifetime.vllm.recent_predictions import FirstPrediction

MOST: Final = 40
"""Sequences that are shown of each kind."""
_SORTED: Final = 1024
"""Waiting sequences that are considered for our order where vLLM's is in force."""
_LONGEST: Final = 64
_EVERY: Final = 16
"""Sequences described between two releases of the GIL."""


def clean(text: object) -> str:
    """Return a name of a client's in at most 64 characters that can be printed.

    >>> clean("a\\u202eb\\n")
    'a\\ufffdb\\ufffd'
    """
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text)[:_LONGEST]
    )


class LiveView:
    """The present sequences of one scheduler.

    Args:
        scheduler: vLLM's.
        advisor: predicts and orders.
        who: returns the features that identify a request's client; ``None`` if none are known.
        clock: seconds, the clock of arrival times.
    """

    def __init__(
        self,
        scheduler: Any,
        advisor: GuardedAdvisor,
        who: Callable[[Any], dict[str, Any]] | None,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._advisor = advisor
        self._who = who
        self._clock = clock
        self._last: dict[str, Any] = {}

    def snapshot(self) -> dict[str, Any]:
        """Return what runs, the queue in our order, and the calibration of recent predictions."""
        try:
            running = list(self._scheduler.running)
            waiting = list(self._scheduler.waiting)
        except (RuntimeError, IndexError):  # the queue changed meanwhile
            return self._last
        statistics = self._advisor.statistics
        queue = self._in_our_order(waiting)
        places = _places(waiting)
        self._last = {
            "running_now": len(running),
            "waiting_now": len(waiting),
            "running": [self._running(request) for request in _gently(running[:MOST])],
            "queue": [
                self._described(request) | {"arrived_as": places.get(request.request_id)}
                for request in _gently(queue)
            ],
            **(statistics.recent.snapshot() if statistics is not None else {}),
        }
        return self._last

    def _in_our_order(self, waiting: Sequence[Any]) -> list[Any]:
        """Return the head of the queue as we order it; in ``act`` that is how it is."""
        if self._advisor.acting or not isinstance(self._scheduler.waiting, deque):
            return list(waiting[:MOST])
        keys = {}
        for request in waiting[:_SORTED]:
            key = self._advisor.queue_key(request.request_id)
            if key is None:  # not ordered yet: as it arrived
                key = (request.priority, True, request.arrival_time, request.arrival_time)
            keys[request.request_id] = key
        first = sorted(waiting[:_SORTED], key=lambda request: keys[request.request_id])
        return first[:MOST]

    def _described(self, request: Any) -> dict[str, Any]:
        first = self._first(request)
        return {
            "id": clean(request.request_id),
            "client": self._client(request),
            "prompt": request.num_prompt_tokens,
            "generated": request.num_output_tokens,
            "predicted": first.total if first is not None else None,
            "confidence": round(first.confidence, 3) if first is not None else None,
            "seconds": round(max(self._clock() - request.arrival_time, 0.0), 2),
            "preemptions": request.num_preemptions,
        }

    def _running(self, request: Any) -> dict[str, Any]:
        """Return a running sequence with the 90 % interval of its length, given its age."""
        row, first = self._described(request), self._first(request)
        if first is not None:
            age = row["generated"]
            row["expected"], row["low"], row["high"] = (
                first.quantile(level, age) for level in (0.5, 0.05, 0.95)
            )
        return row

    def _first(self, request: Any) -> FirstPrediction | None:
        statistics = self._advisor.statistics
        return statistics.first(request.request_id) if statistics is not None else None

    def _client(self, request: Any) -> str | None:
        client = self._who(request).get("client_id") if self._who is not None else None
        return None if client is None else clean(client)


def _places(waiting: Sequence[Any]) -> dict[str, int]:
    """Return the places by arrival, from 1; none for a queue too long to sort."""
    if len(waiting) > _SORTED:
        return {}
    by_arrival = sorted(waiting, key=lambda request: request.arrival_time)
    return {request.request_id: place for place, request in enumerate(by_arrival, start=1)}


def _gently(requests: Sequence[Any]) -> Any:
    """Yield requests, letting the engine's thread run in between."""
    rest = iter(requests)
    while part := list(islice(rest, _EVERY)):
        yield from part
        yield_gil()
