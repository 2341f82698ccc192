"""A log of another program as batches of history columns, to be checked like any history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.files import BROKEN, ROW
from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.formats import FORMATS, Format, recognise
from sagellm_lifetime.history.formats.base import unread
from sagellm_lifetime.history.jsonl import fill
from sagellm_lifetime.history.records import Broken, Sample, records
from sagellm_lifetime.history.schema import HISTORY_SCHEMA

_BATCH: Final = 20_000  # rows


def find_format(path: Path, beginning: Sample, name: str | None = None) -> type[Format] | None:
    """Return the format of a log: the one called ``name``, else the one its beginning shows.

    Raises:
        HistoryError: it is of a format, and has no requests that could be read.
    """
    form = recognise(beginning) if name is None else FORMATS[name]
    if form is not None and (why := form.unusable(beginning)) is not None:
        raise HistoryError(f"{path}: {form.title}, but {why}")
    return form


def batches(
    path: Path, form: type[Format], beginning: Sample, columns: Sequence[str], findings: Findings
) -> tuple[Format, Iterator[pl.DataFrame]]:
    """Return the reader of a file, and frames of ``columns`` with their places in ``ROW``."""
    reader = form(findings)
    if form.name in FORMATS:
        findings.formats[form.title] = None
    if form.used:  # else the reader says itself what it does not read
        findings.ignored.update(dict.fromkeys(unread(beginning.records, form)))
    types = {c: t if t.is_nested() else pl.String() for c in columns for t in [HISTORY_SCHEMA[c]]}
    return reader, _frames(path, reader, types)


def _frames(path: Path, reader: Format, types: dict[str, pl.DataType]) -> Iterator[pl.DataFrame]:
    schema = {**types, ROW: pl.String(), BROKEN: pl.String()}
    rows = _rows(path, reader, types)
    while batch := list(islice(rows, _BATCH)):
        yield pl.DataFrame(batch, schema=schema)


def _rows(path: Path, reader: Format, types: dict[str, pl.DataType]) -> Iterator[dict[str, Any]]:
    for place, record in records(path):
        if isinstance(record, Broken):
            yield {ROW: place, BROKEN: record.why}
            continue
        try:
            found = list(reader.rows(record))
        except ValueError as error:
            yield {ROW: place, BROKEN: str(error)}
            continue
        for number, values in enumerate(found, start=1):
            row: dict[str, Any] = {
                ROW: place if len(found) == 1 else f"{place}, request {number}",
                BROKEN: values.why if isinstance(values, Broken) else None,
            }
            if not isinstance(values, Broken):
                fill(row, values, types, reader.findings.add_note)
            yield row
