"""The running sequences, which all adapters share: who runs, how far it is, what is predicted.

sageLLM's handles and requests carry an id and little else, so the engine tells this object of
arrivals, progress and ends, and the adapters join by the id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np

from sagellm_lifetime.core.errors import RequestError, UnknownSequenceError, shown
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
)
from sagellm_lifetime.core.values import whole
from sagellm_lifetime.policies.specification.asking import ask, forecast_of
from sagellm_lifetime.policies.state import SurvivalForecast
from sagellm_lifetime.predictor.base import Predictor


def sequences_or_new(sequences: RunningSequences | None) -> RunningSequences:
    """Return what an adapter was given, or new running sequences for None.

    Raises:
        RequestError: it is something else, perhaps the predictor itself.
    """
    if sequences is None:
        return RunningSequences()
    if not isinstance(sequences, RunningSequences):
        raise RequestError(
            f"sequences must be RunningSequences(predictor), got a {type(sequences).__name__}"
        )
    return sequences


class RunningSequences:
    """Sequences between arrival and end, with a predictor that learns from every end.

    Args:
        predictor: any predictor of the protocol; an untrained ``survival`` by default.
        capacity: most sequences kept; the oldest arrival is forgotten beyond it.

    Example:
        >>> from sagellm_lifetime import PredictionRequest
        >>> from sagellm_lifetime.integrations.sagellm import RunningSequences
        >>> running = RunningSequences()
        >>> result = running.arrived(PredictionRequest("chat-7", [], 0, 512))
        >>> running.progressed("chat-7", 40)
        >>> "chat-7" in running, running.request("chat-7").current_length
        (True, 40)
        >>> running.finished("chat-7", 120, seconds=2.4)
        >>> "chat-7" in running
        False
    """

    def __init__(
        self, predictor: LifetimePredictorProtocol | None = None, *, capacity: int = 65_536
    ) -> None:
        if predictor is None:
            from sagellm_lifetime.predictor.registry import create_predictor

            predictor = create_predictor("survival")
        self.predictor = predictor
        self._capacity = capacity
        self._requests: OrderedDict[str, PredictionRequest] = OrderedDict()
        self._lock = RLock()

    def arrived(self, request: PredictionRequest) -> PredictionResult:
        """Record an arrival, and return its first prediction.

        Raises:
            RequestError: the request has an impossible value.
        """
        request = replace(request, sequence_id=str(request.sequence_id))
        with self._lock:
            result = self.predictor.predict(request)
            self._requests[str(request.sequence_id)] = request
            while len(self._requests) > self._capacity:
                self._requests.popitem(last=False)
        return result

    def progressed(self, request_id: str, generated: int) -> None:
        """Record that a sequence has generated ``generated`` tokens so far.

        Raises:
            UnknownSequenceError: the sequence is not running.
            RequestError: ``generated`` is below what was recorded before, or no whole number.
        """
        tokens = whole(generated)
        if tokens is None:
            raise RequestError(f"tokens generated must be a whole number, got {shown(generated)}")
        with self._lock:
            request = self._known(request_id)
            if tokens < request.current_length:
                raise RequestError(
                    f"sequence {shown(request_id)} had generated {request.current_length} tokens, "
                    f"now {shown(generated)}: tokens generated never become fewer"
                )
            if request.max_length is not None:
                tokens = min(tokens, request.max_length)
            self._requests[str(request_id)] = replace(request, current_length=tokens)

    def finished(
        self, request_id: str, length: int, *, seconds: float, reason: str = "stop"
    ) -> None:
        """Record the end of a sequence; the predictor learns from it.

        Args:
            request_id: as at its arrival.
            length: tokens generated in all.
            seconds: from its arrival.
            reason: ``stop``, ``length``, ``abort`` or ``error``.

        Raises:
            UnknownSequenceError: the sequence is not running.
        """
        with self._lock:
            self._known(request_id)
            if reason == "stop":  # a predictor with the specification's three arguments works too
                self.predictor.update(str(request_id), length, seconds)
            else:
                self.predictor.update(str(request_id), length, seconds, finish_reason=reason)
            del self._requests[str(request_id)]

    def request(self, request_id: str | None) -> PredictionRequest | None:
        """Return the request of a running sequence as it is now, or None if it is not running."""
        return self._requests.get(str(request_id)) if request_id is not None else None

    def predictions(self, requests: Sequence[PredictionRequest]) -> list[PredictionResult | None]:
        """Return the prediction of each request, None where the predictor failed."""
        with self._lock:
            return ask(self.predictor, requests)

    def forecast(self, requests: Sequence[PredictionRequest]) -> SurvivalForecast:
        """Return the survival of each request's sequence over the tokens to come.

        Its confidence is negative where the predictor failed or has learned nothing yet.
        """
        if not requests:
            return SurvivalForecast.exact(np.zeros(0))
        with self._lock:
            if isinstance(self.predictor, Predictor) and self.predictor.lessons:
                ids = [request.sequence_id for request in requests]
                ages = np.array([request.current_length for request in requests])
                try:  # arrays, without an object per sequence
                    batch = self.predictor.distributions(ids, ages)
                except UnknownSequenceError:  # one is not tracked yet: predicting tracks it
                    pass
                else:
                    return SurvivalForecast.of(batch, np.ones(len(batch)))
        return forecast_of(self.predictions(requests), requests)

    def __contains__(self, request_id: Any) -> bool:
        return str(request_id) in self._requests

    def __len__(self) -> int:
        return len(self._requests)

    def ids(self) -> list[str]:
        """Return the ids of the running sequences, the earliest arrival first."""
        return list(self._requests)

    def _known(self, request_id: str) -> PredictionRequest:
        request = self.request(request_id)
        if request is None:
            raise UnknownSequenceError(
                f"sequence {shown(request_id)} is not running: call arrived() for it first"
            )
        return request
