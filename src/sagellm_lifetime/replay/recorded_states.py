"""Hidden states of a history as signals of the replayed engine, at the steps that read them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from sagellm_lifetime.core.hidden_states import READ_AT
from sagellm_lifetime.features.hidden_state import KEY, SOURCE
from sagellm_lifetime.replay.trace import TraceRequest


class RecordedStates:
    """Readings of a trace, which reach the scheduler as those of a live model do.

    The reading after prefill is there in the step after the first token, the later ones in the step
    after the token of their age. A preempted sequence keeps what was read.

    Args:
        trace: its requests, with the readings that the history has.
        scheduler: the replayed engine's; the ages of its running requests are looked at.
    """

    def __init__(self, trace: Sequence[TraceRequest], scheduler: Any) -> None:
        self._readings = {one.id: one.hidden for one in trace if one.hidden}
        self._sources = {one.id: one.hidden_source for one in trace if one.hidden}
        self._scheduler = scheduler
        self._read: dict[str, int] = {}
        """Number of stages of each request that have been read."""

    def __bool__(self) -> bool:
        return bool(self._readings)

    def ask(self, request: Any) -> None:
        """Watch a request."""
        if request.request_id in self._readings:
            self._read[request.request_id] = 0

    def read(self, request_id: str, stages: int = 1) -> bool:
        """Read so many stages of a request at once; return True if that is new evidence."""
        before = self._read.get(request_id, len(READ_AT))
        if stages <= before:
            return False
        self._read[request_id] = stages
        return any(age in self._readings[request_id] for age in READ_AT[before:stages])

    def receive(self, output: Any, present: Container[str]) -> None:
        """Do nothing: a replay runs no model."""

    def seen(self, request_id: str) -> dict[str, Any]:
        """Return the readings of a sequence so far as ``prompt_features``."""
        ages = READ_AT[: self._read.get(request_id, 0)]
        known: Mapping[int, Any] = self._readings.get(request_id) or {}
        found = {age: known[age] for age in ages if age in known}
        if not found:
            return {}
        source = self._sources[request_id]
        return {KEY: found} if source is None else {KEY: found, SOURCE: source}

    def take_fresh(self) -> set[str]:
        """Return the ids of running sequences that have reached the age of a reading."""
        fresh = set()
        for request in self._scheduler.running:
            name, age = request.request_id, request.num_output_tokens
            if self._read.get(name, len(READ_AT)) == len(READ_AT):
                continue
            stages = sum(max(at, 1) <= age for at in READ_AT)
            if self.read(name, stages):
                fresh.add(name)
        return fresh

    def pop(self, request_id: str, *, content: bool) -> dict[str, Any]:
        """Forget a finished sequence; a replay records nothing."""
        self._read.pop(request_id, None)
        return {}

    def keep(self, request_ids: Container[str]) -> None:
        """Forget all but these sequences."""
        self._read = {name: read for name, read in self._read.items() if name in request_ids}
