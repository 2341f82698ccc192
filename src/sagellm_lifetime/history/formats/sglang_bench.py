"""Lines of SGLang's ``bench_serving --output-file F --output-details``.

One JSON object a run with ``input_lens``, ``output_lens``, ``ttfts``, ``itls``, ``errors`` and
``generated_texts``. Start times are not recorded, so there is no arrival time. The benchmark
sends ``ignore_eos`` unless it is run with ``--disable-ignore-eos``: lengths are then those that the
data set asked for, and not the model's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from sagellm_lifetime.history.formats.base import Format, Row, words
from sagellm_lifetime.history.formats.vllm_bench import lists_to_rows
from sagellm_lifetime.history.records import Broken, Record, Sample


class SglangBench(Format):
    """SGLang's ``bench_serving``: one object with a list a quantity."""

    name = "sglang-bench"
    title = "a result of SGLang's bench_serving"
    used = ("input_lens", "output_lens", "ttfts", "itls", "latencies", "errors", "model")
    hidden: ClassVar[tuple[str, ...]] = ("generated_texts", "start_times")

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for a run with SGLang's totals or lists, without what only vLLM writes."""
        if sample.has("model_id"):
            return False
        return sample.has("total_output_tokens_retokenized", "completed") or (
            sample.has("output_lens", "input_lens", "ttfts") and not sample.has("start_times")
        )

    @classmethod
    def unusable(cls, sample: Sample) -> str | None:
        """Return why: only totals were saved."""
        if sample.has("output_lens"):
            return None
        return "it holds totals only: run the benchmark again with --output-details"

    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return one row a request of the run."""
        self.findings.add_note(
            "SGLang's benchmark asks for fixed lengths unless it is run with --disable-ignore-eos: "
            "then they say nothing of the model"
        )
        return lists_to_rows(record, words(record.get("model")))
