"""Signals of the served model about a request, passed on to predictor and history."""

from __future__ import annotations

from collections.abc import Container, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Protocol

from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT
from sagellm_lifetime.features.hidden_state import KEY, SOURCE

if TYPE_CHECKING:
    import numpy as np

REPORT: Final = "lifetime_report"
"""Attribute of vLLM's ``ModelRunnerOutput`` in which a worker's readings travel."""


class ModelSignals(Protocol):
    """Signals of one engine core."""

    def ask(self, request: Any) -> None:
        """Set a request to be watched under its own id, whatever key the client has given."""

    def receive(self, output: Any, present: Container[str]) -> None:
        """Take the signals out of a step's ``ModelRunnerOutput``, of present requests only."""

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
    """The hidden states that the worker reads (``vllm.hidden_watch``).

    Args:
        vllm_config: of the engine.
    """

    def __init__(self, vllm_config: Any) -> None:
        from sagellm_lifetime.vllm.hidden_watch import ASK, layer_read, source_of

        self._ask = ASK
        self.source = source_of(vllm_config.model_config, layer_read(vllm_config))
        """Name of what is read: model, layer and precision."""
        self._readings: dict[str, dict[int, np.ndarray]] = {}
        self._fresh: set[str] = set()

    def ask(self, request: Any) -> None:
        """Set a request to be watched under its own id, whatever key the client has given."""
        # A copy, as samples of one prompt may share their parameters.
        request.sampling_params = params = copy(request.sampling_params)
        params.extra_args = {**(params.extra_args or {}), self._ask: request.request_id}

    def receive(self, output: Any, present: Container[str]) -> None:
        """Take the readings out of a step's output.

        Raises:
            RuntimeError: the worker has stopped to read after an error.
        """
        report = getattr(output, REPORT, None)
        if report is None:
            return
        for name, readings in report.readings.items():
            if name in present:
                self._readings.setdefault(name, {}).update(readings)
                self._fresh.add(name)
        if report.fault:
            raise RuntimeError(f"reading of hidden states: {report.fault}")

    def seen(self, request_id: str) -> dict[str, Any]:
        """Return the readings of a running sequence as ``prompt_features``."""
        readings = self._readings.get(request_id)
        return {KEY: dict(readings), SOURCE: self.source} if readings else {}

    def take_fresh(self) -> set[str]:
        """Return the ids of sequences with readings since the last call."""
        fresh = self._fresh
        if fresh:
            self._fresh = set()
        return fresh

    def pop(self, request_id: str, *, content: bool) -> dict[str, Any]:
        """Return the history columns of a finished sequence, empty without ``content``."""
        self._fresh.discard(request_id)
        readings = self._readings.pop(request_id, None)
        if not content or not readings:
            return {}
        columns: dict[str, Any] = {
            name: readings[age].tolist()
            for age, name in zip(READ_AT, COLUMNS, strict=True)
            if age in readings
        }
        return columns | {SOURCE: self.source}

    def keep(self, request_ids: Container[str]) -> None:
        """Forget the readings of all but these requests."""
        for name in [name for name in self._readings if name not in request_ids]:
            self.pop(name, content=False)


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

    def receive(self, output: Any, present: Container[str]) -> None:
        """Take the signals out of a step's output."""
        for part in self._parts:
            part.receive(output, present)

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
