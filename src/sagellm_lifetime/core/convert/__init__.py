"""Public trace formats converted to history files; one module per format."""

from __future__ import annotations

import os
from collections.abc import Callable

import polars as pl

from sagellm_lifetime.core.convert import azure, burstgpt, mooncake, servegen, sharegpt
from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.core.history.read import OnBadRows
from sagellm_lifetime.core.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.core.history.write import check_target, write_history

FORMATS: dict[str, Callable[..., pl.DataFrame]] = {
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "mooncake": mooncake.read,
    "servegen": servegen.read,
    "sharegpt": sharegpt.read,
}


def convert(
    fmt: str,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    keep_content: bool = False,
    on_bad_rows: OnBadRows = "refuse",
) -> int:
    """Convert a trace to a history file and return the number of rows written.

    Args:
        fmt: one of ``FORMATS``.
        source: the trace: a file, or (all but ``sharegpt``) a glob or a folder.
        target: ``.csv``, ``.jsonl`` or ``.parquet``; written whole or not at all.
        keep_content: keep the texts of prompts and answers, where the trace has them.
        on_bad_rows: ``"refuse"`` or ``"skip"``.

    Only what a trace says is written: no cap and no way of finishing is made up.
    """
    if fmt not in FORMATS:
        raise UnknownNameError("trace format", fmt, list(FORMATS))
    if on_bad_rows not in ("refuse", "skip"):
        raise UnknownNameError("way with bad rows", on_bad_rows, ["refuse", "skip"])
    check_target(target)
    frame = FORMATS[fmt](os.fspath(source), keep_content=keep_content, on_bad_rows=on_bad_rows)
    write_history(frame.select(c for c in HISTORY_SCHEMA if c in frame.columns), target)
    return frame.height
