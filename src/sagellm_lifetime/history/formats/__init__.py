"""Logs of other programs, one file a format, recognised by their content.

A new format is a file with a subclass of ``Format`` and a line in ``FORMATS``, or a class of
another package in the entry-point group :data:`GROUP`.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from sagellm_lifetime.core.errors import UnknownNameError, reason_of
from sagellm_lifetime.history.formats.aiperf import AIPerf
from sagellm_lifetime.history.formats.bailian import Bailian
from sagellm_lifetime.history.formats.base import Format
from sagellm_lifetime.history.formats.genai_perf import GenAIPerf
from sagellm_lifetime.history.formats.kv_cache_tester import KVCacheTester, KVCacheTesterResult
from sagellm_lifetime.history.formats.langfuse import Langfuse
from sagellm_lifetime.history.formats.litellm import LiteLLM
from sagellm_lifetime.history.formats.multi_turn import MultiTurn
from sagellm_lifetime.history.formats.openai_batch import OpenAIBatch
from sagellm_lifetime.history.formats.otel import OTel
from sagellm_lifetime.history.formats.sglang_bench import SglangBench
from sagellm_lifetime.history.formats.usage import Usage
from sagellm_lifetime.history.formats.vllm_bench import VllmBench
from sagellm_lifetime.history.records import Sample

GROUP: Final = "sagellm_lifetime.formats"
"""Entry-point group of other packages: name of the format, and its class."""
FORMATS: Final[dict[str, type[Format]]] = {
    form.name: form
    for form in (
        AIPerf,
        Bailian,
        GenAIPerf,
        KVCacheTester,
        KVCacheTesterResult,
        Langfuse,
        LiteLLM,
        MultiTurn,
        OpenAIBatch,
        OTel,
        SglangBench,
        VllmBench,
        Usage,
    )
}
"""Name -> format of this package, and of a program that added its own."""


@cache
def registered() -> dict[str, type[Format]]:
    """Return the formats of other packages by name; one that cannot be used is a warning."""
    formats: dict[str, type[Format]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        problem = f"{'this package' if entry.name in FORMATS else 'another one'} has its name"
        if entry.name not in FORMATS and entry.name not in formats:
            form, problem = _loaded(entry)
            if form is not None:
                formats[entry.name] = form
                continue
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        message = f"the log format {entry.name!r} of {owner} is not used: {problem}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return formats


def _loaded(entry: EntryPoint) -> tuple[type[Format] | None, str]:
    """Return the class of an entry point, or None and why it cannot be used."""
    try:
        loaded = entry.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - anything another package raises
        return None, f"it cannot be loaded ({reason_of(error)})"
    if not (isinstance(loaded, type) and issubclass(loaded, Format)):
        return None, f"{entry.value} is no Format class"
    if loaded.__abstractmethods__:
        return None, f"it lacks {', '.join(sorted(loaded.__abstractmethods__))}"
    if getattr(loaded, "name", None) != entry.name:
        return None, f"it has the name {getattr(loaded, 'name', None)!r}"
    return loaded, ""


def all_formats() -> dict[str, type[Format]]:
    """Return all formats by name, in the order in which they are tried.

    ``usage``, any log with usual names, is the last, because every other one is more specific.
    """
    others = {name: form for name, form in FORMATS.items() if form is not Usage}
    return {**others, **registered(), Usage.name: Usage}


def format_named(name: str) -> type[Format]:
    """Return the format of a name. Raises :class:`UnknownNameError` if there is none."""
    formats = all_formats()
    if name not in formats:
        raise UnknownNameError("log format", name, list(formats))
    return formats[name]


def recognise(sample: Sample) -> type[Format] | None:
    """Return the format of a log by its beginning, None if it has no known format."""
    return next((form for form in all_formats().values() if form.recognises(sample)), None)


__all__ = ["FORMATS", "GROUP", "Format", "all_formats", "format_named", "recognise"]
