"""When to hand generated tokens over: at the ages at which they are new evidence.

A sequence grows by one token a step, so the step at which it will be old enough is known; until
then nobody looks at it. With speculative decoding it is older by then than it had to be.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sagellm_lifetime.features.trajectory import CHUNK_AGES


class TokenFeed:
    """A wheel of steps."""

    def __init__(self) -> None:
        self._step = 0
        self._wheel: defaultdict[int, list[str]] = defaultdict(list)
        self._next: dict[str, tuple[int, int]] = {}
        """Per sequence: the step at which it is looked at, and the age that it must have."""

    def start(self, request: Any) -> None:
        """It runs; from its present age on."""
        if request.request_id not in self._next:
            self._plan(request.request_id, request.num_output_tokens)

    def stop(self, request_id: str) -> None:
        """It is over."""
        self._next.pop(request_id, None)

    def advance(self, requests: Mapping[str, Any]) -> list[Any]:
        """A step begins: those of ``requests`` that have grown enough."""
        self._step += 1
        grown = []
        for name in self._wheel.pop(self._step, ()):
            due = self._next.get(name)
            if due is None or due[0] != self._step:
                continue  # it ended, and perhaps its name is used again
            request = requests.get(name)
            if request is None:
                self.stop(name)
                continue
            age = request.num_output_tokens
            if age >= due[1]:
                grown.append(request)
                self._plan(name, age)
            else:
                self._at(name, due[1], due[1] - age)
        return grown

    def _plan(self, name: str, age: int) -> None:
        place = bisect_right(CHUNK_AGES, age)
        if place < len(CHUNK_AGES):
            self._at(name, CHUNK_AGES[place], CHUNK_AGES[place] - age)
        else:
            self.stop(name)

    def _at(self, name: str, age: int, steps: int) -> None:
        step = self._step + max(steps, 1)
        self._next[name] = (step, age)
        self._wheel[step].append(name)
