"""Finish reasons of sequences, with stop strings told apart from aborts.

The front end finds stop strings and then aborts the request, so that the scheduler cannot tell it
from a client's disconnection. If the request had stop strings, the end of its output decides, by
the front end's own rule: a stop string counts from ``min_tokens`` on.
"""

from __future__ import annotations

from typing import Any, Final

from sagellm_lifetime.vllm.circuit_breaker import LOG

_REASONS: Final = {
    "FINISHED_STOPPED": "stop",
    "FINISHED_LENGTH_CAPPED": "length",
    # The engine cut off a loop, and the answer would have continued.
    "FINISHED_REPETITION": "length",
    "FINISHED_ABORTED": "abort",
}
_LATE: Final = 32
"""Tokens that may follow a stop string before the front end's abort arrives."""
_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""Text of the first bytes of a character; the front end waits for the rest."""


class FinishReasons:
    """The finish reasons of requests.

    Attributes:
        tokenizer: of the served model, once it is loaded; until then, and without one, an end by
            a stop string counts as aborted, which is less informative but not wrong.
    """

    def __init__(self) -> None:
        self.tokenizer: Any = None
        self._logged = False

    def load(self, model_config: Any) -> None:
        """Load the tokenizer, which takes up to seconds."""
        if model_config.skip_tokenizer_init:
            return  # vLLM refuses stop strings then
        from vllm.tokenizers import cached_tokenizer_from_config

        self.tokenizer = cached_tokenizer_from_config(model_config)

    def reason(self, request: Any) -> str:
        """Return ``stop``, ``length``, ``abort`` or ``error``."""
        # Not .name, which is a slow Python property in the middle of a step.
        finish_reason = _REASONS.get(request.status._name_, "error")
        if finish_reason == "abort" and self.tokenizer is not None and self._stopped(request):
            return "stop"
        return finish_reason

    def _stopped(self, request: Any) -> bool:
        """Return True if the front end has found a stop string.

        It searches the text after the first ``min_tokens`` tokens; a stop string that begins before
        and ends after them counts.
        """
        params = request.sampling_params
        stops = [params.stop] if isinstance(params.stop, str) else params.stop
        tokens = request._output_token_ids
        if not stops or len(tokens) <= params.min_tokens:
            return False
        # A character takes four tokens at most (bytes).
        tail_at = max(len(tokens) - 4 * max(map(len, stops)) - _LATE, 0)
        try:
            text = self._text(tokens[tail_at:], params)
            before = self._text(tokens[tail_at : params.min_tokens], params)
        except Exception as error:  # noqa: BLE001  # a foreign library's, and not essential
            if not self._logged:  # only the type, as the message may quote an answer
                LOG.warning("a stop string counts as an abort (%s)", type(error).__name__)
            self._logged = True
            return False
        ignored = len(before.rstrip(_INCOMPLETE))
        return any(text.find(stop, max(ignored - len(stop) + 1, 0)) >= 0 for stop in stops)

    def _text(self, tokens: list[int], params: Any) -> str:
        if not tokens:
            return ""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)
        return text
