"""Schedule of new generated tokens, which are evidence at certain ages.

A sequence grows by one token a step (by a few with speculative decoding), so the step at which it
reaches an age is roughly known, and it is not checked before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagellm_lifetime.features.evidence import CHUNK_AGES


@dataclass(frozen=True, slots=True)
class _Due:
    """A planned check of a sequence.

    Attributes:
        step: of the check.
        next_age: age that it must have, tokens.
        since: step of the last check.
        age: at the last check, tokens.
    """

    step: int
    next_age: int
    since: int
    age: int


class TokenFeed:
    """A timing wheel of checks by step."""

    def __init__(self) -> None:
        self._step = 0
        self._wheel: defaultdict[int, list[str]] = defaultdict(list)
        self._due: dict[str, _Due] = {}

    def start(self, request: Any) -> None:
        """Watch a running request from its present age on."""
        if request.request_id not in self._due:
            self._plan(request.request_id, request.num_output_tokens, 1.0)

    def stop(self, request_id: str) -> None:
        """Drop an ended request."""
        self._due.pop(request_id, None)

    def advance(self, requests: Mapping[str, Any]) -> list[Any]:
        """Begin a step; return those of ``requests`` that have reached their next age."""
        self._step += 1
        grown = []
        for name in self._wheel.pop(self._step, ()):
            due = self._due.get(name)
            if due is None or due.step != self._step:
                continue  # ended, and its id may be used again
            request = requests.get(name)
            if request is None:
                self.stop(name)
                continue
            age = request.num_output_tokens
            if age >= due.next_age:
                grown.append(request)
            self._plan(name, age, max((age - due.age) / (self._step - due.since), 1.0))
        return grown

    def _plan(self, name: str, age: int, pace: float) -> None:
        place = bisect_right(CHUNK_AGES, age)
        if place == len(CHUNK_AGES):
            self.stop(name)
            return
        next_age = CHUNK_AGES[place]
        step = self._step + max(int((next_age - age) / pace), 1)
        self._due[name] = _Due(step, next_age, self._step, age)
        self._wheel[step].append(name)
