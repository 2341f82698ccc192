"""Finish reasons: other programs' words for them, and rows that state none.

OpenAI, Anthropic, Gemini, Bedrock, Cohere, Mistral, vLLM, SGLang and TGI each have words of their
own. What ended because the model was done is ``stop`` (a tool call, a stop sequence); what met a
cap is ``length``; what was cut from outside is ``abort`` (by a client, a filter, a time-out), and
its length is only a lower bound. A word that is not listed is unknown and never guessed.

Many logs have ``max_tokens`` and no finish reason. A row that ends exactly at its cap was cut
there: taken for a finished answer it would teach that answers never get longer than the cap.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, get_args

import polars as pl

from sagellm_lifetime.core.errors import UnknownNameError
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
        "prohibited_content spii image_safety image_prohibited_content image_recitation language "
        "error_toxic repetition pause_turn too_many_tool_calls"
    ),
    "error": (
        "failed failure malformed_function_call malformed_response missing_thought_signature "
        "unexpected_tool_call no_image error_limit internal_error"
    ),
}
KNOWN: Final[dict[str, str]] = {reason: reason for reason in FINISH_REASONS} | {
    word: reason for reason, words in _WORDS.items() for word in words.split()
}
"""Word in lower case -> finish reason of the history format."""
UNSTATED: Final = frozenset(
    {"", "null", "none", "nan", "n/a", "<na>", "unspecified", "finish_reason_unspecified"}
)
"""Words in lower case that state no reason."""


def canonical(text: pl.Expr) -> pl.Expr:
    """Return the finish reason that ``text`` means: null if unstated, ``text`` if unknown."""
    word = text.str.to_lowercase()
    known = word.replace_strict(KNOWN, default=text, return_dtype=pl.String)
    return pl.when(~word.is_in(list(UNSTATED))).then(known)


def renamed(text: pl.Expr) -> pl.Expr:
    """Return another program's word for a finish reason, in lower case; null for our own."""
    word = text.str.to_lowercase()
    return pl.when(word.is_in([w for w, reason in KNOWN.items() if w != reason])).then(word)


CapReached = Literal["length", "stop"]
"""Finish reason of a row that states none and ends exactly at its own ``max_length``."""


def check_cap_reached(cap_reached: str) -> None:
    """Raise :class:`UnknownNameError` unless ``cap_reached`` is ``"length"`` or ``"stop"``."""
    if cap_reached not in get_args(CapReached):
        raise UnknownNameError("finish reason at a cap", cap_reached, list(get_args(CapReached)))


def unstated_at_cap(columns: Collection[str]) -> pl.Expr:
    """Return a bool expression: no finish reason is stated and the length is the row's own cap."""
    if not {"actual_length", "max_length"} <= set(columns):
        return pl.lit(value=False)
    length, cap = pl.col("actual_length"), pl.col("max_length")
    reached = (length > 0) & (length == cap).fill_null(value=False)
    return reached & pl.col("finish_reason").is_null() if "finish_reason" in columns else reached


def finish_reason(columns: Collection[str], cap_reached: CapReached = "length") -> pl.Expr:
    """Return the finish reason of each row as an expression named ``finish_reason``.

    A stated reason is kept. Where there is none it is ``cap_reached`` for a row that ends exactly
    at its own ``max_length``, else ``stop``.
    """
    ended = pl.when(unstated_at_cap(columns)).then(pl.lit(cap_reached)).otherwise(pl.lit("stop"))
    if "finish_reason" in columns:
        ended = pl.coalesce(pl.col("finish_reason").cast(pl.String), ended)
    return ended.alias("finish_reason")


def cap_reached_note(rows: int, total: int, cap_reached: str) -> str:
    """Return a line for the user: how many rows end at their cap, and how they are counted."""
    other = "stop" if cap_reached == "length" else "length"
    meaning = {"length": "cut there", "stop": "ended by themselves"}
    return (
        f"{rows:,} of {total:,} rows give no finish reason and end exactly at their max_length: "
        f"counted as {cap_reached!r}, {meaning[cap_reached]} (cap_reached={other!r}, or "
        f"--cap-reached {other}, counts them as {meaning[other]})"
    )
