"""OpenTelemetry spans of the GenAI conventions: OTLP JSON, or one flat span a line.

OTLP is what a collector's file exporter writes: ``resourceSpans`` → ``scopeSpans`` → ``spans``,
with attributes as ``{"key": …, "value": {"intValue": …}}``. Flat spans have ``attributes`` as an
object and times under one of several names. Read are ``gen_ai.usage.output_tokens`` (and the older
``gen_ai.usage.completion_tokens``, which vLLM's own spans have), ``gen_ai.request.max_tokens``,
``gen_ai.response.finish_reasons``, ``gen_ai.conversation.id``. By the conventions reasoning tokens
are inside of the output tokens. Spans of agents and tools are left out: what they count is counted
by the model's spans below them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final

from sagellm_lifetime.history.formats.base import SEVERAL, Format, Row, as_object, first, words
from sagellm_lifetime.history.records import Broken, Record, Sample
from sagellm_lifetime.history.times import moment

_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_REASONS: Final = "gen_ai.response.finish_reasons"
_NO_MODEL: Final = (
    "invoke_agent",
    "create_agent",
    "invoke_workflow",
    "execute_tool",
    "retrieval",
    "embeddings",
)
_START: Final = (
    "start_time_unix_nano",
    "startTimeUnixNano",
    "start_time",
    "startTime",
    "timestamp",
)
_END: Final = ("end_time_unix_nano", "endTimeUnixNano", "end_time", "endTime")
_ATTRIBUTES: Final = (
    *_OUTPUT,
    *_INPUT,
    "gen_ai.operation.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.request.max_tokens",
    "gen_ai.request.temperature",
    "gen_ai.request.id",
    "gen_ai.response.id",
    _REASONS,
    "gen_ai.conversation.id",
    "session.id",
    "user.id",
    "enduser.id",
    "error.type",
)


class OTel(Format):
    """Spans of the OpenTelemetry GenAI conventions."""

    name = "otel"
    title = "OpenTelemetry GenAI spans"
    used = (
        *_START,
        *_END,
        *(f"attributes.{name}" for name in _ATTRIBUTES),
        "status",
        "resourceSpans",
    )
    hidden: ClassVar[tuple[str, ...]] = (
        "attributes.gen_ai.usage.reasoning.output_tokens",
        "attributes.gen_ai.input.messages",
        "attributes.gen_ai.output.messages",
        "name",
        "kind",
        "trace_id",
        "span_id",
        "traceId",
        "spanId",
        "context",
        "resource",
    )

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for OTLP, and for spans with a ``gen_ai.`` attribute."""
        if sample.has("resourceSpans"):
            return True
        return sample.has("attributes") and any(
            key.startswith("gen_ai.")
            for record in sample.records
            for key in _attributes(record.get("attributes"))
        )

    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return the requests of a span, or of all spans of an OTLP record."""
        for span in _spans(record):
            try:
                yield from self._span(span)
            except ValueError as error:  # of one span among thousands
                yield Broken(str(error))

    def _span(self, span: Record) -> Iterable[Row]:
        attributes = _attributes(span.get("attributes"))
        operation = str(attributes.get("gen_ai.operation.name") or "").lower()
        length = _any(attributes, _OUTPUT)
        if operation in _NO_MODEL:
            return self.leave_out("spans of agents, tools and embeddings")
        failed = _failed(span, attributes)
        if length is None:
            if failed and any(key.startswith("gen_ai.") for key in attributes):
                return self.leave_out("failed requests without a count of tokens")
            return self.leave_out("spans without a count of generated tokens")
        reasons = _reasons(attributes.get(_REASONS))
        if len(reasons) > 1:
            return self.leave_out(SEVERAL)
        start, end = moment(_any(span, _START), "start"), moment(_any(span, _END), "end")
        reason = words(reasons[0]) if reasons else None
        return [
            {
                "request_id": words(_any(attributes, ("gen_ai.request.id", "gen_ai.response.id"))),
                "model": words(_any(attributes, ("gen_ai.request.model", "gen_ai.response.model"))),
                "client_id": words(_any(attributes, ("enduser.id", "user.id"))),
                "session_id": words(_any(attributes, ("gen_ai.conversation.id", "session.id"))),
                "arrival_time": start,
                "prompt_length": _any(attributes, _INPUT),
                "max_length": attributes.get("gen_ai.request.max_tokens"),
                "actual_length": length,
                "actual_time": None if start is None or end is None else end - start,
                "finish_reason": "error" if failed and reason is None else reason,
                "temperature": attributes.get("gen_ai.request.temperature"),
            }
        ]


def _reasons(value: Any) -> list[Any]:
    """Return the finish reasons: a list, the JSON text of one (flat exports), or one word."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{_REASONS} is no list") from None
    return value if isinstance(value, list) else [value]


def _spans(record: Record) -> Iterator[Record]:
    if "resourceSpans" not in record:
        yield record
        return
    for resource in _items(record, "resourceSpans"):
        for scope in (
            *_items(resource, "scopeSpans"),
            *_items(resource, "instrumentationLibrarySpans"),
        ):
            yield from _items(scope, "spans")


def _items(record: Record, name: str) -> list[Record]:
    items = record.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{name} is not a list of objects")
    return items


def _attributes(value: Any) -> Record:
    """Return attributes as one flat object: they may be one, text of one, or OTLP's list."""
    if isinstance(value, list):
        return {
            str(item.get("key")): _value(item.get("value"))
            for item in value
            if isinstance(item, dict)
        }
    return as_object(value)


def _value(value: Any) -> Any:
    """Return what an OTLP value holds; whole numbers come as text there."""
    if not isinstance(value, dict):
        return value
    if "arrayValue" in value:
        inner = first(value, "arrayValue.values")
        return [_value(item) for item in inner] if isinstance(inner, list) else []
    return next((value[key] for key in _KINDS if key in value), None)


_KINDS: Final = ("intValue", "doubleValue", "stringValue", "boolValue")


def _any(values: Record, names: Iterable[str]) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "")), None)


def _failed(span: Record, attributes: Record) -> bool:
    status = span.get("status")
    code = _any(status, ("code", "status_code")) if isinstance(status, dict) else status
    return bool(attributes.get("error.type")) or str(code).upper() in (
        "2",
        "ERROR",
        "STATUS_CODE_ERROR",
    )
