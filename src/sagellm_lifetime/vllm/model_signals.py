"""Signals of the served model about a request, passed on to predictor and history."""

from __future__ import annotations

from collections.abc import Container, Sequence
from copy import copy
from typing import Any, Protocol

from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT
from sagellm_lifetime.features.hidden_state import KEY, SOURCE


class ModelSignals(Protocol):
    """Signals of one engine core, whose model must run in the same process."""

    def ask(self, request: Any) -> None:
        """Set a request to be watched under its own id, whatever key the client has given."""

    def seen(self, request_id: str) -> dict[str, Any]:
        """Return the signals of a running sequence as ``prompt_features``."""

    def take_fresh(self) -> set[str]:
        """Return the ids of sequences whose signals are new evidence since the last call."""

    def pop(self, request_id: str, *, content: bool) -> dict[str, Any]:
        """Return the history columns of a finished sequence, and forget its notes.

        Args:
            request_id: of the sequence.
            content: True if the history may hold what gives the prompt away.
        """

    def keep(self, request_ids: Container[str]) -> None:
        """Forget the notes of all but these requests."""


class HiddenSignals:
    """The hidden states that the model's process has read (``vllm.hidden_watch``)."""

    def __init__(self) -> None:
        from sagellm_lifetime.vllm import hidden_watch

        self._watch = hidden_watch

    def ask(self, request: Any) -> None:
        """Set a request to be watched under its own id, whatever key the client has given."""
        # A copy, as samples of one prompt may share their parameters.
        request.sampling_params = params = copy(request.sampling_params)
        extra = {**(params.extra_args or {}), self._watch.ASK: request.request_id}
        params.extra_args = extra

    def seen(self, request_id: str) -> dict[str, Any]:
        """Return the readings of a running sequence as ``prompt_features``."""
        readings = self._watch.readings_of(request_id)
        return {KEY: dict(readings), SOURCE: self._watch.source()} if readings else {}

    def take_fresh(self) -> set[str]:
        """Return the ids of sequences with new readings.

        Raises:
            Exception: what has failed in the model's process since the last call.
        """
        return self._watch.take_fresh()

    def pop(self, request_id: str, *, content: bool) -> dict[str, Any]:
        """Return the history columns of a finished sequence, empty without ``content``."""
        readings = self._watch.pop(request_id)
        if not content or not readings:
            return {}
        columns: dict[str, Any] = {
            name: readings[age].tolist()
            for age, name in zip(READ_AT, COLUMNS, strict=True)
            if age in readings
        }
        return columns | {SOURCE: self._watch.source()}

    def keep(self, request_ids: Container[str]) -> None:
        """Forget the readings of all but these requests."""
        self._watch.keep(request_ids)


class AllSignals:
    """Several kinds of signals as one.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[ModelSignals]) -> None:
        self._parts = tuple(parts)

    def ask(self, request: Any) -> None:
        """Set a request to be watched under its own id, whatever key the client has given."""
        for part in self._parts:
            part.ask(request)

    def seen(self, request_id: str) -> dict[str, Any]:
        """Return the signals of a running sequence as ``prompt_features``."""
        return {key: one for part in self._parts for key, one in part.seen(request_id).items()}

    def take_fresh(self) -> set[str]:
        """Return the ids of sequences whose signals are new evidence since the last call."""
        return set().union(*(part.take_fresh() for part in self._parts))

    def pop(self, request_id: str, *, content: bool) -> dict[str, Any]:
        """Return the history columns of a finished sequence, and forget its notes."""
        columns: dict[str, Any] = {}
        for part in self._parts:
            columns |= part.pop(request_id, content=content)
        return columns

    def keep(self, request_ids: Container[str]) -> None:
        """Forget the notes of all but these requests."""
        for part in self._parts:
            part.keep(request_ids)
