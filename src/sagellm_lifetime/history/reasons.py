"""The finish reasons of other programs, as the four of the history format.

OpenAI, Anthropic, Gemini, Bedrock, Cohere, Mistral, vLLM, SGLang and TGI each have words of their
own. What ended because the model was done is ``stop`` (a tool call, a stop sequence); what met a
cap is ``length``; what somebody cut from outside is ``abort`` (a client, a filter, a time-out), and
its length is only a lower bound. A word that is not listed is unknown and never guessed.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from sagellm_lifetime.core.protocol import FINISH_REASONS

_WORDS: Final = {
    "stop": (
        "eos eos_token eos_token_id end_turn end_of_turn stop_sequence stop_token stop_str "
        "tool_calls tool_call tool_use function_call complete completed finish_reason_stop"
    ),
    "length": (
        "max_tokens max_output_tokens max_new_tokens max_length max_completion_tokens "
        "model_length model_context_window_exceeded finish_reason_max_tokens finish_reason_length"
    ),
    "abort": (
        "aborted cancel canceled cancelled user_cancel cancellation disconnect timeout "
        "content_filter content_filtered guardrail_intervened refusal safety recitation blocklist "
        "prohibited_content spii image_safety language error_toxic repetition pause_turn"
    ),
    "error": (
        "failed failure malformed_function_call unexpected_tool_call error_limit internal_error"
    ),
}
KNOWN: Final[dict[str, str]] = {reason: reason for reason in FINISH_REASONS} | {
    word: reason for reason, words in _WORDS.items() for word in words.split()
}
"""Word in lower case -> finish reason of the history format."""
UNSAID: Final = frozenset(
    {"", "null", "none", "nan", "n/a", "<na>", "unspecified", "finish_reason_unspecified"}
)
"""Words in lower case for "nobody said"."""


def canonical(text: pl.Expr) -> pl.Expr:
    """Return the finish reason that ``text`` means: null where unsaid, ``text`` where unknown."""
    word = text.str.to_lowercase()
    known = word.replace_strict(KNOWN, default=text, return_dtype=pl.String)
    return pl.when(~word.is_in(list(UNSAID))).then(known)


def renamed(text: pl.Expr) -> pl.Expr:
    """Return the word in lower case where it is another program's for one of ours, else null."""
    word = text.str.to_lowercase()
    return pl.when(word.is_in([w for w, reason in KNOWN.items() if w != reason])).then(word)
