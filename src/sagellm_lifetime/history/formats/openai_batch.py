"""Output files of the OpenAI Batch API: one line a request, with the whole answer in it.

``custom_id``, ``response.status_code`` and ``response.body``: a chat completion or a completion
(``usage.completion_tokens``) or a response (``usage.output_tokens``). Reasoning tokens are inside
of these counts. ``created`` is when the answer was begun, and taken as its arrival: how long the
request had waited in the batch is not recorded, nor how long the answer took.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Final

from sagellm_lifetime.history.formats.base import (
    SEVERAL,
    UNFINISHED,
    Format,
    Row,
    dig,
    ending,
    first,
    words,
)
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.times import moment

_OK: Final = 200
_BODY: Final = "response.body"
_FAILED: Final = ("failed", "cancelled")
_NO_COUNT: Final = "failed, expired or unfinished requests without a count of tokens"


class OpenAIBatch(Format):
    """The OpenAI Batch API's output and error files."""

    name = "openai-batch"
    title = "an OpenAI Batch output file"
    used = (
        "custom_id",
        "response.status_code",
        f"{_BODY}.created",
        f"{_BODY}.created_at",
        f"{_BODY}.model",
        f"{_BODY}.choices",
        f"{_BODY}.usage",
        f"{_BODY}.status",
        f"{_BODY}.error",
        f"{_BODY}.incomplete_details",
        f"{_BODY}.max_output_tokens",
        f"{_BODY}.temperature",
        "error",
    )
    hidden: ClassVar[tuple[str, ...]] = (
        "id",
        "response.request_id",
        f"{_BODY}.id",
        f"{_BODY}.object",
        f"{_BODY}.output",
    )

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for lines with a ``custom_id`` and a ``response``."""
        return sample.has("custom_id", "response")

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the request of a line; none for a failed one, which has no count."""
        body, status = dig(record, _BODY), dig(record, "response.status_code")
        if not isinstance(body, dict) or record.get("error") or status not in (None, _OK):
            return self.leave_out(_NO_COUNT)
        if isinstance(body.get("data"), list) and "embedding" in str(body.get("data"))[:200]:
            return self.leave_out("embeddings, which generate nothing")
        length = first(body, "usage.completion_tokens", "usage.output_tokens")
        status, usage = body.get("status"), body.get("usage", {})
        if status in UNFINISHED or (
            length is None and (usage is None or body.get("error") or status in _FAILED)
        ):
            return self.leave_out(_NO_COUNT)
        if length is None:
            raise ValueError("has no usage.completion_tokens and no usage.output_tokens")
        choices = body.get("choices")
        choices = choices if isinstance(choices, list) else []
        if len(choices) > 1:
            return self.leave_out(SEVERAL)
        choice = choices[0] if choices else None
        return [
            {
                "request_id": words(record.get("custom_id")),
                "model": words(body.get("model")),
                "arrival_time": moment(first(body, "created", "created_at"), "created"),
                "prompt_length": first(body, "usage.prompt_tokens", "usage.input_tokens"),
                "max_length": body.get("max_output_tokens"),
                "actual_length": length,
                "finish_reason": words(dig(choice, "finish_reason")) or ending(body),
                "temperature": body.get("temperature"),
                "output_text": _text(choice),
            }
        ]


def _text(choice: Any) -> str | None:
    text = first(choice, "message.content", "text")
    return text if isinstance(text, str) else None
