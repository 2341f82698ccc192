"""Why a sequence ended, told apart where vLLM's scheduler does not.

Stop strings are found by the front end, which then aborts the request: to the scheduler it looks
like a client that hung up. Where the request had stop strings, the end of what it generated says
which it was, by the front end's own rule: a stop string counts from ``min_tokens`` on.
"""

from __future__ import annotations

from typing import Any, Final

from sagellm_lifetime.vllm.circuit_breaker import LOG

_REASONS: Final = {
    "FINISHED_STOPPED": "stop",
    "FINISHED_LENGTH_CAPPED": "length",
    # The engine cut a loop off: the answer would have gone on.
    "FINISHED_REPETITION": "length",
    "FINISHED_ABORTED": "abort",
}
_LATE: Final = 32
"""Tokens that may have been generated after a stop string, before the front end had seen it."""
_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the first bytes of a character to; the front end waits for the rest."""


class FinishReasons:
    """Tells why a request ended.

    Attributes:
        tokenizer: of the served model, once it is loaded; until then, and without one, what ends
            by a stop string counts as aborted, which teaches less but nothing wrong.
    """

    def __init__(self) -> None:
        self.tokenizer: Any = None
        self._complained = False

    def load(self, model_config: Any) -> None:
        """Load the tokenizer; takes up to seconds."""
        if model_config.skip_tokenizer_init:
            return  # then vLLM refuses stop strings
        from vllm.tokenizers import cached_tokenizer_from_config

        self.tokenizer = cached_tokenizer_from_config(model_config)

    def reason(self, request: Any) -> str:
        """``stop``, ``length``, ``abort`` or ``error``."""
        # Not .name: that is Python code, and this is called in the middle of a step.
        said = _REASONS.get(request.status._name_, "error")
        if said == "abort" and self.tokenizer is not None and self._stopped(request):
            return "stop"
        return said

    def _stopped(self, request: Any) -> bool:
        """Return True if the front end has found a stop string.

        It looks at text that came after the first ``min_tokens`` tokens; a stop string that begins
        before and ends after them counts.
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
        except Exception as error:  # noqa: BLE001  # a foreign library's, and nothing depends on it
            if not self._complained:  # by its type: its text may quote an answer
                LOG.warning("a stop string counts as an abort (%s)", type(error).__name__)
            self._complained = True
            return False
        ignored = len(before.rstrip(_INCOMPLETE))
        return any(text.find(stop, max(ignored - len(stop) + 1, 0)) >= 0 for stop in stops)

    def _text(self, tokens: list[int], params: Any) -> str:
        if not tokens:
            return ""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)
        return text
