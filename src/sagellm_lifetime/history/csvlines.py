"""Read CSV record by record: slow, but with the line of every fault.

The fast reader stops at the first malformed record without naming it. Only then is the file
read here, in batches, so that memory stays bounded.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.files import BROKEN, ROW
from sagellm_lifetime.history.streams import open_unpacked

BATCH = 50_000


def csv_batches(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield frames of text ``columns``, with the line number in ``ROW``."""
    schema = {**dict.fromkeys(columns, pl.String()), ROW: pl.Int64(), BROKEN: pl.String()}
    batch: list[dict[str, Any]] = []
    for row in _rows(path, columns):
        batch.append(row)
        if len(batch) == BATCH:
            yield pl.DataFrame(batch, schema=schema)
            batch = []
    yield pl.DataFrame(batch, schema=schema)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    records = csv_records(path, strict=True)
    header = [name.strip() for name in next(records)[1]]
    for number, cells in records:
        if not any(cells):
            continue
        row: dict[str, Any] = {ROW: number, BROKEN: None}
        if len(cells) > len(header):
            row[BROKEN] = f"has {len(cells)} fields, the header has {len(header)}"
        else:
            cell_of = dict(zip(header, cells, strict=False))
            row.update({name: cell_of.get(name) or None for name in columns})
        yield row


def csv_records(path: Path, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the header and then every record with its first line; a blank line is an empty record.

    Raises:
        HistoryError: a quote is left open, if ``strict``, or the file is not UTF-8.
    """
    csv.field_size_limit(2**31 - 1)  # a process-wide limit of 128 kB would refuse a long prompt
    reader = csv.reader(_text_lines(path), strict=strict)
    has_started = False
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"{path}: line {line} is not CSV: an open or stray quote in it"
            raise HistoryError(message) from error
        if has_started or any(cells):
            has_started = True
            yield line, cells


def _text_lines(path: Path) -> Iterator[str]:
    with open_unpacked(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                message = f"{path}: line {number} is not UTF-8 text: save the file as UTF-8"
                raise HistoryError(message) from error


def line_numbers(path: Path, rows: Sequence[int]) -> list[int]:
    """Return the line of each of the row indices, from 1 as an editor counts.

    Quoted line breaks set rows and lines apart, so the file is read again, only to report faults.
    """
    records = csv_records(path, strict=False)
    next(records, None)
    wanted, lines = set(rows), dict[int, int]()
    for index, (line, _) in enumerate(records):
        if index in wanted:
            lines[index] = line
            if len(lines) == len(wanted):
                break
    return [lines.get(row, row + 2) for row in rows]
