"""The result file of ``vllm bench serve --save-result --save-detailed``.

One JSON object a run (several after ``--append-result``) with one list a quantity: ``input_lens``,
``output_lens``, ``start_times``, ``ttfts``, ``itls``, ``errors``, ``generated_texts``, in newer
versions ``latencies``. Start times count from any origin. A failed request has an entry in
``errors`` and a length of 0: it is kept as an error. Caps and finish reasons are not recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from sagellm_lifetime.history.formats.base import Format, Row, dig, number, words
from sagellm_lifetime.history.records import Broken, Record, Sample

_LISTS = ("start_times", "ttfts", "itls", "latencies", "errors", "generated_texts")


class VllmBench(Format):
    """``vllm bench serve``: one object with a list a quantity."""

    name = "vllm-bench"
    title = "a result of vllm bench serve"
    used = ("input_lens", "output_lens", "model_id", *_LISTS)
    hidden: ClassVar[tuple[str, ...]] = ("generated_texts",)

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for a run with vLLM's totals, detailed or not."""
        return sample.has("model_id", "completed", "total_output_tokens") or sample.has(
            "output_lens", "input_lens", "start_times"
        )

    @classmethod
    def unusable(cls, sample: Sample) -> str | None:
        """Return why: only totals were saved."""
        if sample.has("output_lens"):
            return None
        return "it holds totals only: run the benchmark again with --save-detailed"

    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return one row a request of the run."""
        return lists_to_rows(record, words(record.get("model_id")))


def lists_to_rows(record: Record, model: str | None) -> Iterator[Row | Broken]:
    """Yield the requests of a run of ``model`` that is stored as one list a quantity.

    Raises:
        ValueError: the lists are missing, or not of one length.
    """
    lengths, prompts = _list(record, "output_lens"), _list(record, "input_lens")
    if lengths is None:
        raise ValueError("has no list output_lens: it holds totals only")
    columns = {name: _list(record, name) for name in _LISTS}
    for name, values in (("input_lens", prompts), *columns.items()):
        if values is not None and len(values) != len(lengths):
            raise ValueError(f"has {len(values)} {name} for {len(lengths)} output_lens")
    for i, length in enumerate(lengths):
        cell = {name: values[i] for name, values in columns.items() if values is not None}
        failed = bool(cell.get("errors"))
        try:
            seconds = None if failed else _seconds(cell)
        except ValueError as error:
            yield Broken(str(error))
            continue
        start = cell.get("start_times")
        yield {
            "model": model,
            "arrival_time": None if failed and start == 0 else start,
            "prompt_length": prompts[i] if prompts is not None else None,
            "actual_length": length,
            "actual_time": seconds,
            "finish_reason": "error" if failed else None,
            "output_text": cell.get("generated_texts"),
        }


def _list(record: Record, name: str) -> list[Any] | None:
    values = dig(record, name)
    if values is not None and not isinstance(values, list):
        raise ValueError(f"{name} is not a list")
    return values


def _seconds(cell: Record) -> float | None:
    """Return seconds from start to finish: stated, or the first token and the gaps after it."""
    stated = number(cell.get("latencies"), "latencies")
    if stated is not None:
        return stated
    until_first = number(cell.get("ttfts"), "ttfts")
    gaps = cell.get("itls")
    if until_first is None or not isinstance(gaps, list):
        return None
    return until_first + sum(number(gap, "itls") or 0.0 for gap in gaps)
