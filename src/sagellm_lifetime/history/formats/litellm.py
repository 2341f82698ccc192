"""LiteLLM's spend logs (the table ``LiteLLM_SpendLogs``) and its logging payloads.

Rows with ``request_id``, ``call_type``, ``model``, ``prompt_tokens``, ``completion_tokens``,
``startTime``, ``endTime``, ``end_user``, ``user``, ``session_id``, ``status``; as CSV, JSON lines
or Parquet. Reasoning tokens are inside of ``completion_tokens``. Calls that generate no text and
answers out of LiteLLM's cache are left out and counted. The finish reason and the cap are present
if request and response were stored as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final

from sagellm_lifetime.history.formats.base import (
    SEVERAL,
    UNFINISHED,
    Format,
    Row,
    as_object,
    dig,
    ending,
    first,
    number,
    words,
)
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.times import moment

_NO_TEXT: Final = (
    "embedding",
    "image",
    "transcription",
    "speech",
    "moderation",
    "rerank",
    "search",
    "mcp",
    "file",
    "batch",
)
"""Parts of a ``call_type`` that generates no text."""


class LiteLLM(Format):
    """LiteLLM's spend logs."""

    name = "litellm"
    title = "a LiteLLM spend log"
    used = (
        "request_id",
        "id",
        "call_type",
        "model",
        "prompt_tokens",
        "completion_tokens",
        "startTime",
        "endTime",
        "end_user",
        "user",
        "session_id",
        "trace_id",
        "status",
        "cache_hit",
        "response",
        "proxy_server_request",
        "model_parameters",
    )
    hidden: ClassVar[tuple[str, ...]] = (
        "api_key",
        "spend",
        "response_cost",
        "total_tokens",
        "messages",
        "completionStartTime",
    )

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for LiteLLM's times beside OpenAI's counts, and a cost or a call type."""
        counted = sample.has("completion_tokens", "prompt_tokens", "startTime", "endTime")
        return counted and bool({"spend", "call_type", "response_cost"} & set(sample.keys))

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the call of a row, none where it generated nothing."""
        call = str(record.get("call_type") or "").lower()
        if any(part in call for part in _NO_TEXT):
            return self.leave_out("calls that generate no text (embeddings and the like)")
        if str(record.get("cache_hit")).lower() == "true":
            return self.leave_out("answers out of LiteLLM's cache, which no engine generated")
        failed = str(record.get("status") or "").lower() in ("failure", "failed", "error")
        length = record.get("completion_tokens")
        if failed and length is None:
            return self.leave_out("failed requests without a count of tokens")
        start, end = (
            moment(record.get("startTime"), "startTime"),
            moment(record.get("endTime"), "endTime"),
        )
        response = as_object(record.get("response"))
        choices = response.get("choices")
        choices = choices if isinstance(choices, list) else []
        parameters = {
            **as_object(record.get("model_parameters")),
            **as_object(record.get("proxy_server_request")),
        }
        choices_asked = parameters.get("n")
        if len(choices) > 1 or (isinstance(choices_asked, int) and choices_asked > 1):
            return self.leave_out(SEVERAL)
        if response.get("status") in UNFINISHED:
            return self.leave_out("unfinished requests, whose tokens are not all counted")
        reason = words(dig(choices[0], "finish_reason")) if choices else ending(response)
        return [
            {
                "request_id": words(first(record, "request_id", "id")),
                "model": words(record.get("model")),
                "client_id": words(first(record, "end_user", "user")),
                "session_id": words(first(record, "session_id", "trace_id")),
                "arrival_time": start,
                "prompt_length": record.get("prompt_tokens"),
                "max_length": first(
                    parameters, "max_tokens", "max_completion_tokens", "max_output_tokens"
                ),
                "actual_length": length,
                "actual_time": None if start is None or end is None or failed else end - start,
                "finish_reason": "error" if failed else reason,
                "temperature": number(parameters.get("temperature"), "temperature"),
            }
        ]
