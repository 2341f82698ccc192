"""``profile_export.jsonl`` of NVIDIA AIPerf: one record a request, ``metadata`` and ``metrics``.

A metric is ``{"value": …, "unit": …}``. ``output_sequence_length`` counts all generated tokens;
where it is missing, it is ``output_token_count`` (the visible ones) and ``reasoning_token_count``,
which AIPerf counts apart. A failed request has an ``error`` and, as a rule, no count of what was
generated until then: it is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sagellm_lifetime.history.formats.base import Format, Row, dig, first, number, words
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.times import SCALES, moment

_CANCELLED: Final = 499  # nginx's status for a client that went away; AIPerf uses it, too


class AIPerf(Format):
    """AIPerf's per-request export."""

    name = "aiperf"
    title = "an AIPerf profile_export.jsonl"
    used = (
        "metadata.x_request_id",
        "metadata.x_correlation_id",
        "metadata.conversation_id",
        "metadata.turn_index",
        "metadata.request_start_ns",
        "metadata.request_end_ns",
        "metadata.timestamp_ns",
        "metadata.was_cancelled",
        "metrics.input_sequence_length",
        "metrics.output_sequence_length",
        "metrics.output_token_count",
        "metrics.reasoning_token_count",
        "metrics.request_latency",
        "error",
    )

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for records of ``metadata`` and ``metrics`` with AIPerf's ids in them."""
        return sample.has("metadata", "metrics") and any(
            first(record, "metadata.x_request_id", "metadata.session_num") is not None
            for record in sample.records
        )

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the request of a record, none for a failed one without a count."""
        meta, error = dig(record, "metadata"), record.get("error")
        reason = _ending(record, error)
        length = self._length(record)
        if length is None:
            if reason is None:
                raise ValueError("has no output_sequence_length")
            return self.leave_out("failed or cancelled requests without a count of tokens")
        start = moment(first(meta, "request_start_ns", "timestamp_ns"), "request_start_ns")
        return [
            {
                "request_id": words(dig(meta, "x_request_id")),
                "session_id": words(first(meta, "x_correlation_id", "conversation_id")),
                "turn": dig(meta, "turn_index"),
                "arrival_time": start,
                "prompt_length": _metric(record, "input_sequence_length"),
                "actual_length": length,
                "actual_time": _seconds(record, start),
                "finish_reason": reason,
            }
        ]

    def _length(self, record: Record) -> float | None:
        total = number(_metric(record, "output_sequence_length"), "output_sequence_length")
        if total is not None:
            return total
        visible = number(_metric(record, "output_token_count"), "output_token_count")
        reasoning = number(_metric(record, "reasoning_token_count"), "reasoning_token_count")
        if visible is None and reasoning is None:
            return None
        if reasoning:
            self.findings.add_note("reasoning_token_count is counted apart, and was added")
        return (visible or 0.0) + (reasoning or 0.0)


def _metric(record: Record, name: str) -> Any:
    metric = dig(record, f"metrics.{name}")
    return metric.get("value") if isinstance(metric, dict) else metric


def _ending(record: Record, error: Any) -> str | None:
    cancelled = dig(record, "metadata.was_cancelled") is True or (
        isinstance(error, dict)
        and (error.get("code") == _CANCELLED or "cancel" in str(error.get("type")).lower())
    )
    if cancelled:
        return "abort"
    return "error" if error else None


def _seconds(record: Record, start: float | None) -> float | None:
    latency = number(_metric(record, "request_latency"), "request_latency")
    if latency is not None:
        unit = dig(record, "metrics.request_latency.unit")
        return latency / SCALES.get(unit if isinstance(unit, str) else "ms", SCALES["ms"])
    end = moment(dig(record, "metadata.request_end_ns"), "request_end_ns")
    return None if start is None or end is None else end - start
