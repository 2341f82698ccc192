"""Langfuse's exports of observations: JSON, JSON lines or CSV, from the page, the API or storage.

The page and the API write ``traceId``, ``startTime``, ``usageDetails``, ``modelParameters``; the
blob storage writes ``trace_id``, ``start_time``, ``usage_details``, ``model_parameters``, and so
does ClickHouse, where version 3 keeps the table ``observations``; that table in a PostgreSQL of
version 2 has ``prompt_tokens`` and ``completion_tokens``, 0 where nothing was counted, and their
``unit``. Of the usage, what begins with ``output`` counts generated tokens; Langfuse keeps the
parts apart (their sum is ``total``), so reasoning tokens are added to ``output``. Where ``total``
shows that they are inside already, they are not. How an answer ended is not recorded, only that it
failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

from sagellm_lifetime.history.formats.base import (
    Format,
    Row,
    as_object,
    first,
    number,
    words,
)
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.times import moment

_FLAT = ("promptTokens", "completionTokens", "prompt_tokens", "completion_tokens")
_TOKENS = "TOKENS"
"""The only one of Langfuse's units that is read; the others are characters, seconds, images."""
_CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
_OUTPUT = ("output", "completion_tokens", "completionTokens", "output_tokens", "completion")
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxTokens")
_INPUT = ("input", "prompt_tokens", "promptTokens", "input_tokens", "prompt")


class Langfuse(Format):
    """Langfuse's exports of generations."""

    name = "langfuse"
    title = "a Langfuse export"
    used = (
        "id",
        "type",
        "startTime",
        "start_time",
        "endTime",
        "end_time",
        "model",
        "providedModelName",
        "provided_model_name",
        "modelParameters",
        "model_parameters",
        "usageDetails",
        "usage_details",
        "usage",
        "promptTokens",
        "completionTokens",
        "prompt_tokens",
        "completion_tokens",
        "unit",
        "is_deleted",
        "latency",
        "level",
        "sessionId",
        "session_id",
        "userId",
        "user_id",
    )
    hidden: ClassVar[tuple[str, ...]] = ("traceId", "trace_id", "input", "output", "metadata")

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for observations: a trace's id, a start, and Langfuse's usage."""
        keys = set(sample.keys)
        return (
            bool({"traceId", "trace_id"} & keys)
            and bool({"startTime", "start_time"} & keys)
            and (
                bool({"usageDetails", "usage_details", "completionTokens"} & keys)
                or {"type", "level", "completion_tokens"} <= keys
            )
        )

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the generation of a record, none for a span or an event."""
        observation = str(record.get("type") or "GENERATION").upper()
        if observation != "GENERATION":
            return self.leave_out("observations that are no generations")
        if str(record.get("is_deleted") or 0) not in ("0", "False", "false"):
            return self.leave_out("deleted observations")
        if str(record.get("unit") or _TOKENS).upper() != _TOKENS:
            return self.leave_out("generations that are not counted in tokens")
        failed = str(record.get("level") or "").upper() == "ERROR"
        prompt, length = self._counts(record)
        if length is None:
            why = "failed requests" if failed else "generations"
            return self.leave_out(f"{why} without a count of tokens")
        start = moment(first(record, "startTime", "start_time"), "startTime")
        end = moment(first(record, "endTime", "end_time"), "endTime")
        seconds = number(record.get("latency"), "latency")
        if start is not None and end is not None:
            seconds = end - start
        parameters = as_object(first(record, "modelParameters", "model_parameters"))
        cap = first(parameters, *_CAPS)
        return [
            {
                "request_id": words(record.get("id")),
                "model": words(first(record, "providedModelName", "provided_model_name", "model")),
                "client_id": words(first(record, "userId", "user_id")),
                "session_id": words(first(record, "sessionId", "session_id")),
                "arrival_time": start,
                "prompt_length": prompt,
                "max_length": self._cap(cap),
                "actual_length": length,
                "actual_time": seconds,
                "finish_reason": "error" if failed else None,
                "temperature": _temperature(parameters),
            }
        ]

    def _cap(self, cap: object) -> float | None:
        """Return a cap, which is free text in the log; note one that is no whole number."""
        try:
            value = number(cap, "max_tokens")
        except ValueError:
            value = math.nan
        if value is not None and not value.is_integer():
            self.findings.add_note("modelParameters: caps that are no whole number were not read")
            return None
        return value

    def _counts(self, record: Record) -> tuple[float | None, float | None]:
        """Return the prompt tokens and the generated tokens, None where they are unknown."""
        usage = as_object(first(record, "usageDetails", "usage_details"))
        usage = usage or as_object(record.get("usage"))
        usage = usage or _flat(record)
        counts = {
            key: value
            for key, cell in usage.items()
            if key in (*_OUTPUT, *_INPUT, *_CACHED, "total")
            or key.startswith(("output_", "input_"))
            if (value := number(cell, key)) is not None
        }
        prompt, output = _first(counts, _INPUT), _first(counts, _OUTPUT)
        more_in = {k: v for k, v in counts.items() if k.startswith("input_") or k in _CACHED}
        more_out = {k: v for k, v in counts.items() if k.startswith("output_")}
        for details in (more_in, more_out):
            details.pop("input_tokens", None)
            details.pop("output_tokens", None)
        if counts.get("total") == (prompt or 0.0) + (output or 0.0):
            return prompt, output
        added_in, added_out = sum(more_in.values()), sum(more_out.values())
        if output is not None and added_out:
            self.findings.add_note(
                f"{', '.join(more_out)} counted apart, and was added to the output tokens"
            )
        if prompt is not None and added_in:
            self.findings.add_note(
                f"{', '.join(more_in)} counted apart, and was added to the prompt"
            )
        return (
            None if prompt is None else prompt + added_in,
            None if output is None and not more_out else (output or 0.0) + added_out,
        )


def _flat(record: Record) -> dict[str, object]:
    """Return the counts of a record without usage; empty where all are 0, a database's default."""
    counts = {key: record.get(key) for key in _FLAT}
    return counts if any(value not in (None, "", 0, "0") for value in counts.values()) else {}


def _first(counts: Mapping[str, float], names: Iterable[str]) -> float | None:
    return next((counts[name] for name in names if name in counts), None)


def _temperature(parameters: Record) -> float | None:
    try:
        return number(parameters.get("temperature"), "temperature")
    except ValueError:  # free text in the log, and not needed
        return None
