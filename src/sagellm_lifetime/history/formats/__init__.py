"""Logs of other programs, one file a format, recognised by their content.

A new format is a file with a subclass of ``Format`` and a line in ``FORMATS``.
"""

from __future__ import annotations

from typing import Final

from sagellm_lifetime.history.formats.aiperf import AIPerf
from sagellm_lifetime.history.formats.bailian import Bailian
from sagellm_lifetime.history.formats.base import Format
from sagellm_lifetime.history.formats.langfuse import Langfuse
from sagellm_lifetime.history.formats.litellm import LiteLLM
from sagellm_lifetime.history.formats.multi_turn import MultiTurn
from sagellm_lifetime.history.formats.openai_batch import OpenAIBatch
from sagellm_lifetime.history.formats.otel import OTel
from sagellm_lifetime.history.formats.sglang_bench import SglangBench
from sagellm_lifetime.history.formats.usage import Usage
from sagellm_lifetime.history.formats.vllm_bench import VllmBench
from sagellm_lifetime.history.records import Sample

FORMATS: Final[dict[str, type[Format]]] = {
    form.name: form
    for form in (
        AIPerf,
        Bailian,
        Langfuse,
        LiteLLM,
        MultiTurn,
        OpenAIBatch,
        OTel,
        SglangBench,
        VllmBench,
        Usage,  # the last, because any other knows more of its log
    )
}
"""Name -> format, in the order in which they are tried."""


def recognise(sample: Sample) -> type[Format] | None:
    """Return the format of a log by its beginning, None where it is of none."""
    return next((form for form in FORMATS.values() if form.recognises(sample)), None)


__all__ = ["FORMATS", "Format", "recognise"]
