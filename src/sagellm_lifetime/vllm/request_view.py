"""Views of vLLM's requests for an advisor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.policies.sequence_view import SequenceView


class RequestConverter(Protocol):
    """The conversion of vLLM's requests to prediction requests."""

    def __call__(self, request: Any) -> PredictionRequest:
        """Return the prediction request with the prompt and all generated tokens."""

    def at_arrival(self, request: Any) -> PredictionRequest:
        """Return the prediction request as it was on arrival, without generated tokens."""

    def since_arrival(self, request: Any) -> PredictionRequest:
        """Return the prediction request with the generated tokens."""


class RequestView:
    """A :class:`~sagellm_lifetime.policies.sequence_view.SequenceView` of a request.

    Args:
        request: vLLM's.
        converter: converts the request to prediction requests.
        cached_tokens: returns the cached tokens of a request.
        is_new: True if it has just arrived, and :meth:`arrival_request` describes its arrival.
    """

    __slots__ = ("_cached_tokens", "_converter", "_is_new", "_request", "id")

    def __init__(
        self,
        request: Any,
        converter: RequestConverter,
        cached_tokens: Callable[[Any], int],
        *,
        is_new: bool = False,
    ) -> None:
        self.id: str = request.request_id
        self._request = request
        self._converter = converter
        self._cached_tokens = cached_tokens
        self._is_new = is_new

    @property
    def tokens(self) -> int:
        """Return the tokens of prompt and answer so far."""
        return int(self._request.num_tokens)

    @property
    def generated(self) -> int:
        """Return the tokens of the answer so far."""
        return int(self._request.num_output_tokens)

    @property
    def arrival(self) -> float:
        """Return its arrival time, in seconds on the engine's clock."""
        return float(self._request.arrival_time)

    @property
    def priority(self) -> int:
        """Return its priority class; lower goes first."""
        return int(self._request.priority)

    @property
    def preemptions(self) -> int:
        """Return the number of its preemptions."""
        return int(self._request.num_preemptions)

    @property
    def is_prefilling(self) -> bool:
        """Return True while part of its prompt is not computed yet."""
        return bool(self._request.is_prefill_chunk)

    def cached_tokens(self) -> int:
        """Return the number of tokens whose KV need not be computed (again)."""
        return self._cached_tokens(self._request)

    def arrival_request(self) -> PredictionRequest:
        """Return the prediction request of the sequence as it was when it arrived."""
        return (
            self._converter.at_arrival(self._request)
            if self._is_new
            else self._converter(self._request)
        )

    def updated_request(self) -> PredictionRequest:
        """Return the prediction request with the tokens generated since its arrival."""
        return self._converter.since_arrival(self._request)


class QueueView(Sequence[SequenceView]):
    """vLLM's queue as views, made on access, since it may be tens of thousands long.
    Args:
        queue: of requests, with a length and indices.
        view: makes the view of a request.
    """

    def __init__(self, queue: Any, view: Callable[[Any], SequenceView]) -> None:
        self._queue = queue
        self._view = view

    def __len__(self) -> int:
        return len(self._queue)

    @overload
    def __getitem__(self, index: int) -> SequenceView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SequenceView]: ...
    def __getitem__(self, index: int | slice) -> SequenceView | Sequence[SequenceView]:
        if isinstance(index, slice):
            return list(self)[index]
        return self._view(self._queue[index])

    def __iter__(self) -> Iterator[SequenceView]:
        queue: Iterable[Any] = self._queue
        return map(self._view, queue)
