"""A request of vLLM as an advisor sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.policies.sequence_view import SequenceView


class Questions(Protocol):
    """Requests as questions to a predictor."""

    def __call__(self, request: Any) -> PredictionRequest:
        """Return everything: the prompt and what was generated so far."""

    def came(self, request: Any) -> PredictionRequest:
        """Return a request as it came, however much it has generated since."""

    def grown(self, request: Any) -> PredictionRequest:
        """Return what is new: what was generated."""


class RequestView:
    """A :class:`~sagellm_lifetime.policies.sequence_view.SequenceView` of a request.

    Args:
        request: vLLM's.
        questions: how it is described.
        cached_tokens: of a request.
        is_new: whether it has come just now, so that a question is about its beginning.
    """

    __slots__ = ("_cached_tokens", "_is_new", "_questions", "_request", "id")

    def __init__(
        self,
        request: Any,
        questions: Questions,
        cached_tokens: Callable[[Any], int],
        *,
        is_new: bool = False,
    ) -> None:
        self.id: str = request.request_id
        self._request = request
        self._questions = questions
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
        """Return when it came, in seconds on the engine's clock."""
        return float(self._request.arrival_time)

    @property
    def priority(self) -> int:
        """Return its class; lower goes first."""
        return int(self._request.priority)

    @property
    def preemptions(self) -> int:
        """Return how often it was preempted."""
        return int(self._request.num_preemptions)

    @property
    def is_prefilling(self) -> bool:
        """Return True while a part of its prompt is still to be computed."""
        return bool(self._request.is_prefill_chunk)

    def cached_tokens(self) -> int:
        """Return the tokens that need no computing (again)."""
        return self._cached_tokens(self._request)

    def question(self) -> PredictionRequest:
        """Return it as a question to a predictor, as it was when it arrived."""
        return (
            self._questions.came(self._request) if self._is_new else self._questions(self._request)
        )

    def progress(self) -> PredictionRequest:
        """Return what it has generated since as a question to a predictor."""
        return self._questions.grown(self._request)


class QueueView(Sequence[SequenceView]):
    """vLLM's queue as views, made when they are looked at: it may be tens of thousands long.

    Args:
        queue: of requests, with a length and indices.
        view: makes a view of one.
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
