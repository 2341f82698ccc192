"""What a scheduler does, step by step and request by request, told from its output alone.

One JSON object a line: ``{"step": 7, …}`` when a step is over, ``{"request": "r12", …}`` when a
request is. Times are seconds of ``time.time``, lengths are tokens. Nothing of vLLM is imported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from live import KEY


@dataclass(slots=True)
class _One:
    """A request that is there.

    Attributes:
        came: step before which it came; the steps it was there for begin with this one.
        first: step that gave its first token.
        computed: tokens computed by the chunks of the present prefill, and found in the cache.
        had: tokens that were computed before a preemption took them.
        cached: prompt tokens found in the prefix cache when it was first admitted.
    """

    came: int
    came_at: float
    first: int | None = None
    first_at: float | None = None
    admitted: bool = False
    computed: int = 0
    had: int = 0
    cached: int = 0
    preempted: int = 0
    recomputed: int = 0


class Accounts:
    """Of one scheduler without asynchronous scheduling.

    Args:
        requests: the scheduler's own, by their ids.
        file: where the lines go.
        detail: whether a step's line says who was scheduled with how many tokens.
        clock: seconds.
    """

    def __init__(
        self,
        requests: Mapping[str, Any],
        file: TextIO,
        *,
        detail: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._requests = requests
        self._file = file
        self._detail = detail
        self._clock = clock
        self._there: dict[str, _One] = {}
        self._prefilling: dict[str, _One] = {}
        self._fresh: list[str] = []
        self._over: list[dict[str, Any]] = []
        self._steps = 0
        self._step: dict[str, Any] = {}

    def arrived(self, request: Any) -> None:
        """It was queued."""
        self._there[request.request_id] = _One(self._steps, self._clock())

    def scheduled(self, output: Any, started: float, running: list[Any], waiting: int) -> None:
        """The scheduler has put a step together."""
        counts: dict[str, int] = output.num_scheduled_tokens
        for name in output.preempted_req_ids or ():
            self._preempted(name)
        for new in output.scheduled_new_reqs:
            self._admitted(new.req_id, counts[new.req_id])
        for name in output.scheduled_cached_reqs.resumed_req_ids:
            self._admitted(name, counts[name])
        prefill = chunks = 0
        for name in list(self._prefilling):
            count = counts.get(name, 0)
            if count:
                chunks += 1
                prefill += count
                self._chunk(name, count)
        self._step = {
            "step": self._steps,
            "start": started,
            "prefill": prefill,
            "decodes": len(counts) - chunks,
            "context": sum(request.num_computed_tokens for request in running),
            "running": len(running),
            "waiting": waiting,
            "preempted": len(output.preempted_req_ids or ()),
        }
        if self._detail:
            self._step["scheduled"] = [
                [self._key(self._requests[name]), count] for name, count in counts.items()
            ]

    def finished(self, request: Any) -> None:
        """It is over, for whatever reason."""
        one = self._there.pop(request.request_id, None)
        self._prefilling.pop(request.request_id, None)
        if one is None:
            return
        line = {
            "request": self._key(request),
            "prompt": request.num_prompt_tokens,
            "output": request.num_output_tokens,
            "status": request.status.name,
            "arrival": request.arrival_time,
            "came": one.came,
            "came_at": one.came_at,
            # Of an answer of one token, the first is the last.
            "first": self._steps if request.request_id in self._fresh else one.first,
            "first_at": one.first_at,
            "last": self._steps,
            "preempted": one.preempted,
            "recomputed": one.recomputed,
            "cached": one.cached,
        }
        if self._detail:
            line["tokens"] = list(request.output_token_ids)
        self._over.append(line)

    def updated(self) -> None:
        """The step is over, and its tokens are known."""
        now = self._clock()
        for name in self._fresh:
            if name in self._there:
                self._there[name].first, self._there[name].first_at = self._steps, now
        self._fresh.clear()
        lines = []
        if self._step.get("prefill") or self._step.get("decodes"):
            lines.append({**self._step, "end": now, "left": len(self._there)})
            self._steps += 1
        for line in self._over:
            line["end"] = now
            if line["first"] is not None and line["first_at"] is None:
                line["first_at"] = now
            lines.append(line)
        self._over, self._step = [], {}
        self._file.writelines(json.dumps(line) + "\n" for line in lines)
        self._file.flush()

    def _preempted(self, name: str) -> None:
        one = self._there[name]
        one.preempted += 1
        if self._prefilling.pop(name, None) is None:
            one.had = self._requests[name].num_tokens - 1  # the newest was never computed
        else:
            one.had = max(one.had, one.computed)

    def _admitted(self, name: str, count: int) -> None:
        one = self._there[name]
        one.computed = self._requests[name].num_computed_tokens - count
        if not one.admitted:
            one.admitted, one.cached = True, one.computed
        self._prefilling[name] = one

    def _chunk(self, name: str, count: int) -> None:
        one, request = self._prefilling[name], self._requests[name]
        one.recomputed += max(min(count, one.had - one.computed), 0)
        one.computed += count
        if request.is_prefill_chunk:
            return
        del self._prefilling[name]
        if not request.num_output_tokens:
            self._fresh.append(name)

    @staticmethod
    def _key(request: Any) -> str:
        params = request.sampling_params
        return str(((params.extra_args if params else None) or {}).get(KEY, request.request_id))
