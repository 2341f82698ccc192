"""Turn a log of another program into batches of history columns, to be validated like any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.files import BROKEN, ROW
from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.formats import Format, all_formats, format_named, recognise
from sagellm_lifetime.history.formats.base import unread
from sagellm_lifetime.history.jsonl import fill
from sagellm_lifetime.history.records import Broken, Record, Sample
from sagellm_lifetime.history.schema import HISTORY_SCHEMA

_BATCH: Final = 20_000  # rows
Records = Iterator[tuple[str, Record | Broken]]
"""Places in words and records, as :func:`~sagellm_lifetime.history.records.records` yields."""


def find_format(path: Path, beginning: Sample, name: str | None = None) -> type[Format] | None:
    """Return the format of a log: the one called ``name``, else the one its beginning shows.

    Raises:
        HistoryError: the log is of a known format but holds no requests.
    """
    form = recognise(beginning) if name is None else format_named(name)
    if form is not None and (why := form.unusable(beginning)) is not None:
        raise HistoryError(f"{path}: {form.title}, but {why}")
    return form


def batches(
    form: type[Format],
    beginning: Sample,
    records: Records,
    columns: Sequence[str],
    findings: Findings,
) -> tuple[Format, Iterator[pl.DataFrame]]:
    """Return the reader of a log, and frames of ``columns`` with their places in ``ROW``.

    Args:
        form: the format of the log.
        beginning: its first records.
        records: all its records.
        columns: history columns to return.
        findings: what reading found, added to.
    """
    reader = form(findings)
    if form.name in all_formats():
        findings.formats[form.title] = None
    if form.used:  # else the reader itself records what it does not read
        findings.ignored.update(dict.fromkeys(unread(beginning.records, form)))
    types = {c: t if t.is_nested() else pl.String() for c in columns for t in [HISTORY_SCHEMA[c]]}
    return reader, _frames(records, reader, types)


def _frames(
    records: Records, reader: Format, types: dict[str, pl.DataType]
) -> Iterator[pl.DataFrame]:
    schema = {**types, ROW: pl.String(), BROKEN: pl.String()}
    rows = _rows(records, reader, types)
    while batch := list(islice(rows, _BATCH)):
        yield pl.DataFrame(batch, schema=schema)


def _rows(
    records: Records, reader: Format, types: dict[str, pl.DataType]
) -> Iterator[dict[str, Any]]:
    for place, record in records:
        if isinstance(record, Broken):
            yield {ROW: place, BROKEN: record.why}
            continue
        try:
            requests = list(reader.rows(record))
        except ValueError as error:
            yield {ROW: place, BROKEN: str(error)}
            continue
        for number, values in enumerate(requests, start=1):
            row: dict[str, Any] = {
                ROW: place if len(requests) == 1 else f"{place}, request {number}",
                BROKEN: values.why if isinstance(values, Broken) else None,
            }
            if not isinstance(values, Broken):
                fill(row, values, types, reader.findings.add_note)
            yield row
