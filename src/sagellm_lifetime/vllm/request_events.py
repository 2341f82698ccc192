"""Conversion of vLLM's requests to events; completions are recorded on the way."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.vllm.beam_search import is_beam_step
from sagellm_lifetime.vllm.finish_reasons import FinishReasons
from sagellm_lifetime.vllm.token_feed import TokenFeed

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.model_signals import ModelSignals
    from sagellm_lifetime.vllm.recorder import Recorder
    from sagellm_lifetime.vllm.request_adapter import RequestAdapter

from sagellm_lifetime.policies.events import Finished


class RequestEvents:
    """The events of one engine core's requests.

    Args:
        finish_reasons: finds the reasons of ends.
        adapter: makes the record's rows; needed with a recorder.
        recorder: of completions; ``None`` for none.
        signals: the model's signals of every request; ``None`` if they are not watched.
        reads_tokens: True if the predictor uses generated tokens.
    """

    def __init__(
        self,
        finish_reasons: FinishReasons,
        *,
        adapter: RequestAdapter | None = None,
        recorder: Recorder | None = None,
        signals: ModelSignals | None = None,
        reads_tokens: bool = False,
    ) -> None:
        self.finish_reasons = finish_reasons
        self.adapter = adapter
        self.recorder = recorder
        self.signals = signals
        self.reads_tokens = reads_tokens
        self.between: set[str] = set()
        """Ids of sessions between a finished turn and the next input."""
        self._feed = TokenFeed()

    def arrived(self, request: Any) -> bool:
        """Record a queued request; return False for a step of beam search."""
        if is_beam_step(request):
            return False
        if self.signals is not None:
            self.signals.ask(request)
        self.between.discard(request.request_id)
        return True

    def admitted(self, request: Any) -> None:
        """Watch the growth of a running request."""
        if self.reads_tokens:
            self._feed.start(request)

    def restart(self, running: Iterable[Any]) -> None:
        """Watch the running requests from now on, and no others."""
        self._feed = TokenFeed()
        for request in running:
            self.admitted(request)

    def grown(self, requests: Mapping[str, Any]) -> list[Any]:
        """Begin a step; return the requests whose new tokens, or signals, are evidence.

        Raises:
            Exception: the reading of signals has failed.
        """
        grown = self._feed.advance(requests) if self.reads_tokens else []
        fresh = self.signals.take_fresh() if self.signals is not None else None
        if fresh:
            fresh.difference_update([request.request_id for request in grown])
            grown += [requests[name] for name in sorted(fresh) if name in requests]
        return grown

    @property
    def awaits_evidence(self) -> bool:
        """Return True if a running sequence may have new evidence."""
        return self.reads_tokens or self.signals is not None

    def finished(self, request: Any, at: float) -> Finished | None:
        """Record the end of a sequence and return it; None if it ended with its last turn."""
        name = request.request_id
        if name in self.between:
            self.between.discard(name)
            return None
        if self.reads_tokens:  # at once, as an id may be used again
            self._feed.stop(name)
        if is_beam_step(request):
            return Finished(name, request.num_output_tokens, 0.0, "stop", at, is_predicted=False)
        try:
            seconds = max(at - request.arrival_time, 0.0)
            content = self.recorder is not None and self.recorder.content
            signals = {}
            if self.signals is not None:
                signals = self.signals.pop(name, content=content)
            reason = self.finish_reasons.reason(request)
            # At once, so that a kill -9 loses the last second at most.
            if (to := self.recorder) is not None and self.adapter is not None:
                make = partial(self.adapter.row, request, seconds, reason, to.content, signals)
                (to.take_now if request.resumable else to.take)(make)
        except Exception:
            if self.recorder is not None:
                self.recorder.missed()
            raise
        return Finished(name, request.num_output_tokens, seconds, reason, at)

    def end_turn(self, request: Any, at: float) -> Finished | None:
        """Return the end of a session's turn, which more input may follow."""
        finished = self.finished(request, at)
        self.between.add(request.request_id)
        return finished

    def keep(self, present: Container[str]) -> None:
        """Drop the data of requests that are no longer present."""
        self.between = {name for name in self.between if name in present}
        if self.signals is not None:
            self.signals.keep(present)
