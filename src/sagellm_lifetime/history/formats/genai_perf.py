"""``profile_export.json`` of GenAI-Perf (perf_analyzer): experiments with their requests.

A request has a ``timestamp`` and ``response_timestamps`` (nanoseconds), ``request_inputs.payload``
and ``response_outputs``, whose texts are the server's answer as it came. It holds no token counts
of its own: they are read from the ``usage`` in the answer where the server sent one, and are not
guessed where it did not. ``profile_export_genai_perf.json`` and ``profile_export_aiperf.json`` hold
statistics of a run and no requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from sagellm_lifetime.history.formats.base import (
    SEVERAL,
    Format,
    Row,
    as_object,
    dig,
    first,
    number,
    words,
)
from sagellm_lifetime.history.records import Broken, Record, Sample
from sagellm_lifetime.history.times import SCALES

_STATISTICS: Final = ("output_sequence_length", "request_throughput", "request_latency")
_NO_COUNTS: Final = (
    "it holds no token counts: run it again with usage in the answers (--extra-inputs "
    "'stream_options:{\"include_usage\":true}'), or with AIPerf, whose profile_export.jsonl "
    "has them"
)
_COUNTS: Final = ("usage.completion_tokens", "usage.output_tokens")


class GenAIPerf(Format):
    """GenAI-Perf's export of a run."""

    name = "genai-perf"
    title = "a GenAI-Perf profile_export.json"
    used = ("experiments", *_STATISTICS)
    hidden = ("version", "service_kind", "endpoint", "input_config")

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for experiments with requests, and for the statistics of a run."""
        if sample.has(*_STATISTICS):
            return all(isinstance(record.get("request_latency"), dict) for record in sample.records)
        return sample.has("experiments") and any(
            "response_timestamps" in request
            for record in sample.records
            for request in _requests(record)
        )

    @classmethod
    def unusable(cls, sample: Sample) -> str | None:
        """Return why: statistics of a run, or answers without their counts."""
        if not sample.has("experiments"):
            return "it holds statistics of a run: its requests are in profile_export.json(l)"
        answers = (_answer(request) for record in sample.records for request in _requests(record))
        if any(first(answer, *_COUNTS) is not None for answer in answers):
            return None
        return _NO_COUNTS

    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return the requests of all experiments."""
        for request in _requests(record):
            try:
                yield from self._row(request)
            except ValueError as error:
                yield Broken(str(error))

    def _row(self, request: Record) -> Iterable[Row]:
        answer = _answer(request)
        length = first(answer, *_COUNTS)
        if length is None:
            return self.leave_out("requests without a count of tokens")
        if answer["choices"] > 1:
            return self.leave_out(SEVERAL)
        payload = as_object(dig(request, "request_inputs.payload"))
        start = number(request.get("timestamp"), "timestamp")
        ends = request.get("response_timestamps")
        end = number(ends[-1], "response_timestamps") if isinstance(ends, list) and ends else None
        return [
            {
                "model": words(answer.get("model")) or words(payload.get("model")),
                "session_id": words(request.get("session_id")),
                "arrival_time": None if start is None else start / SCALES["ns"],
                "prompt_length": first(answer, "usage.prompt_tokens", "usage.input_tokens"),
                "max_length": first(payload, "max_completion_tokens", "max_tokens"),
                "actual_length": length,
                "actual_time": None if None in (start, end) else (end - start) / SCALES["ns"],  # type: ignore[operator]
                "finish_reason": answer.get("reason"),
                "temperature": number(payload.get("temperature"), "temperature"),
            }
        ]


def _requests(record: Record) -> Iterator[Record]:
    experiments = record.get("experiments")
    for experiment in experiments if isinstance(experiments, list) else []:
        requests = experiment.get("requests") if isinstance(experiment, dict) else None
        for request in requests if isinstance(requests, list) else []:
            if isinstance(request, dict):
                yield request


def _answer(request: Record) -> dict[str, Any]:
    """Return usage, model, finish reason and number of choices of an answer; no text of it."""
    answer: dict[str, Any] = {"choices": 0}
    outputs = request.get("response_outputs")
    for output in outputs if isinstance(outputs, list) else []:
        text = output.get("response") if isinstance(output, dict) else None
        for chunk in _chunks(text) if isinstance(text, str) else ():
            if isinstance(chunk.get("usage"), dict):
                answer["usage"] = chunk["usage"]
            answer["model"] = chunk.get("model") or answer.get("model")
            choices = chunk.get("choices")
            for choice in choices if isinstance(choices, list) else []:
                place = dig(choice, "index")
                answer["choices"] = max(
                    answer["choices"], place + 1 if isinstance(place, int) else 1
                )
                answer["reason"] = words(dig(choice, "finish_reason")) or answer.get("reason")
    return answer


def _chunks(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of an answer: one JSON text, or events of a stream, merged or not."""
    for line in text.splitlines():
        try:
            chunk = json.loads(line.removeprefix("data:"))
        except (ValueError, RecursionError):  # [DONE], comments, or a part of a text
            continue
        if isinstance(chunk, dict):
            yield chunk
