"""Command ``convert``: a trace or a log of another program as a history file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import (
    BadRows,
    Json,
    MapOption,
    OnBadRows,
    QueryOption,
    SaveMapOption,
)
from sagellm_lifetime.cli.output import listed, progress, say, write_json
from sagellm_lifetime.cli.paths import check_apart, check_json
from sagellm_lifetime.cli.reading import Mapping, name_of, reading_json, understood
from sagellm_lifetime.core.wording import counted

NAMES: Final = (
    *("azure", "burstgpt", "mooncake", "servegen", "sharegpt", "aiperf", "bailian", "genai-perf"),
    *("kv-cache-tester", "kv-cache-tester-result", "langfuse", "litellm", "multi-turn"),
    *("openai-batch", "otel", "sglang-bench", "vllm-bench", "usage"),
)
"""``history.convert.FORMATS``, listed here so that ``--help`` is fast."""


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
        str | None,
        typer.Option(
            "--from",
            metavar="NAME",
            help=f"Format of the trace: {listed(NAMES, 'or')}, or one of another package.",
            show_default="by its content",
        ),
    ] = None,
    keep_content: Annotated[
        bool, typer.Option("--keep-content", help="Keep the texts of prompts and answers.")
    ] = False,
    mapping: MapOption = None,
    save_map: SaveMapOption = None,
    query: QueryOption = None,
    on_bad_rows: BadRows = OnBadRows.refuse,
    time_unit: Annotated[
        TimeUnit | None,
        typer.Option(
            "--time-unit", help="Unit of times that do not say theirs.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    json: Json = None,
) -> None:
    """Convert a trace or a log of another program to a history file."""
    from sagellm_lifetime.history import convert as formats

    check_json(json, source, target)
    check_apart(target, [source])
    if target.exists() and not force:
        raise CommandError(f"{target} exists: choose another name, or replace it with --force")
    columns = Mapping.of(mapping, save_map, source, json, target)
    with progress(f"converting {name_of(source)}"):
        history = formats.convert(
            form,
            source,
            target,
            keep_content=keep_content,
            on_bad_rows=on_bad_rows.value,
            time_unit=None if time_unit is None else time_unit.value,
            mapping=columns.columns,
            query=query,
        )
    summary = understood(history, name_of(source))
    columns.save(history)
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
        say(f"Wrote {counted(history.frame.height, 'row')} to {target}")
