"""Command ``convert``: a trace or a log of another program as a history file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sagellm_lifetime.cli.options import BadRows, Json, OnBadRows
from sagellm_lifetime.cli.output import progress, say, write_json
from sagellm_lifetime.cli.paths import check_apart, check_json
from sagellm_lifetime.cli.reading import reading_json, understood


class Format(StrEnum):
    """Names of the trace and log formats, those of ``history.convert.FORMATS``."""

    azure = "azure"
    burstgpt = "burstgpt"
    mooncake = "mooncake"
    servegen = "servegen"
    sharegpt = "sharegpt"
    aiperf = "aiperf"
    bailian = "bailian"
    langfuse = "langfuse"
    litellm = "litellm"
    multi_turn = "multi-turn"
    openai_batch = "openai-batch"
    otel = "otel"
    sglang_bench = "sglang-bench"
    vllm_bench = "vllm-bench"
    usage = "usage"


class TimeUnit(StrEnum):
    """Units of the times of a trace."""

    s = "s"
    ms = "ms"
    us = "us"
    ns = "ns"


def convert(
    *,
    source: Annotated[str, typer.Argument(metavar="IN", help="The trace.", show_default=False)],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The history: .csv, .jsonl or .parquet.", show_default=False
        ),
    ],
    form: Annotated[
        Format | None,
        typer.Option("--from", help="Format of the trace.", show_default="by its content"),
    ] = None,
    keep_content: Annotated[
        bool, typer.Option("--keep-content", help="Keep the texts of prompts and answers.")
    ] = False,
    on_bad_rows: BadRows = OnBadRows.refuse,
    time_unit: Annotated[
        TimeUnit | None,
        typer.Option(
            "--time-unit", help="Unit of times that do not say theirs.", show_default=False
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Convert a trace or a log of another program to a history file."""
    from sagellm_lifetime.history import convert as formats

    check_json(json, source, target)
    check_apart(target, [source])
    with progress(f"converting {source}"):
        history = formats.convert(
            None if form is None else form.value,
            source,
            target,
            keep_content=keep_content,
            on_bad_rows=on_bad_rows.value,
            time_unit=None if time_unit is None else time_unit.value,
        )
    summary = understood(history, source)
    if json is not None:
        write_json(
            {
                "rows": history.frame.height,
                "file": str(target),
                **reading_json(history),
                "log": summary.as_dict(),
            },
            json,
        )
    if json != "-":
        say(f"Wrote {history.frame.height:,} rows to {target}")
