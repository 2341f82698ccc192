"""``convert``: a public trace as a history file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sagellm_lifetime.cli.options import BadRows, Json, OnBadRows
from sagellm_lifetime.cli.output import progress, say, write_json
from sagellm_lifetime.cli.places import check_apart, check_json


class Format(StrEnum):
    """The trace formats that are read."""

    azure = "azure"
    burstgpt = "burstgpt"
    mooncake = "mooncake"
    servegen = "servegen"
    sharegpt = "sharegpt"


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
        Format, typer.Option("--from", help="Format of the trace.", show_default=False)
    ],
    keep_content: Annotated[
        bool, typer.Option("--keep-content", help="Keep the texts of prompts and answers.")
    ] = False,
    on_bad_rows: BadRows = OnBadRows.refuse,
    json: Json = None,
) -> None:
    """Convert a public trace to a history file."""
    from sagellm_lifetime.core import convert as formats

    check_json(json, source, target)
    check_apart(target, [source])
    with progress(f"converting {source}"):
        rows = formats.convert(
            form.value,
            source,
            target,
            keep_content=keep_content,
            on_bad_rows=on_bad_rows.value,
        )
    if json is not None:
        write_json({"rows": rows, "file": str(target)}, json)
    if json != "-":
        say(f"Wrote {rows:,} rows to {target}")
