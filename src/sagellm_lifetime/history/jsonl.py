"""Read JSONL in chunks, with bounded memory and the line of every row.

A chunk is parsed by polars. Where that fails (it stops at the first malformed line or NaN and does
not name it), the chunk is parsed line by line in Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.files import BROKEN, ROW
from sagellm_lifetime.history.streams import open_unpacked

CHUNK = 1 << 25  # bytes
MAX_LINE = 1 << 28  # bytes; a longer line is no row, as a small compressed file may hold
INT64 = 2**63
AddNote = Callable[[str], None]
"""Take one line for the user; the same line may come again."""
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_JSON: Final = (bool, int, float, list, dict)
"""Types of JSON that are no text; a table has others as well, such as dates and decimals."""
_ESCAPED: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def jsonl_batches(
    path: Path, columns: Mapping[str, pl.DataType], add_note: AddNote
) -> Iterator[pl.DataFrame]:
    """Yield frames of the raw ``columns``, with the line number in ``ROW``.

    Raises:
        HistoryError: a line is too long or not UTF-8.
    """
    first = 1
    with open_unpacked(path) as stream:
        while chunk := stream.read(CHUNK) + stream.readline(MAX_LINE):
            if len(chunk) >= MAX_LINE and not chunk.endswith(b"\n"):
                lines = first + chunk.count(b"\n")
                raise HistoryError(f"{path}: line {lines} is longer than {MAX_LINE >> 20} MB")
            data = chunk.removeprefix(b"\xef\xbb\xbf") if first == 1 else chunk
            yield _parsed(data, first, path, columns, add_note)
            first += chunk.count(b"\n")


def _parsed(
    data: bytes, first: int, path: Path, columns: Mapping[str, pl.DataType], add_note: AddNote
) -> pl.DataFrame:
    # Numbers as text, so that a cell that is no number is found and named.
    try:
        frame = pl.read_ndjson(data, schema=dict(columns))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        frame = None
    # Polars silently makes a NUL of a lone surrogate.
    if frame is None or (_ESCAPED.search(data) and _has_nul(frame)):
        rows = list(_rows(data, first, path, columns, add_note))
        schema = {**columns, ROW: pl.Int64(), BROKEN: pl.String()}
        return pl.DataFrame(rows, schema=schema)
    if frame.height == data.count(b"\n") + (not data.endswith(b"\n")):
        lines = pl.int_range(first, first + frame.height, dtype=pl.Int64, eager=True)
    else:  # blank lines, which polars skips
        numbered = enumerate(data.split(b"\n"), start=first)
        lines = pl.Series([n for n, line in numbered if line.strip()], dtype=pl.Int64)
    return frame.with_columns(lines.alias(ROW))


def _has_nul(frame: pl.DataFrame) -> bool:
    texts = frame.select(pl.col(pl.String).str.contains("\0", literal=True).any())
    return any(texts.row(0)) if texts.width else False


def _rows(
    data: bytes, first: int, path: Path, columns: Mapping[str, pl.DataType], add_note: AddNote
) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=first):
        if not line.strip():
            continue
        row: dict[str, Any] = {ROW: number, BROKEN: None}
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            message = f"{path}: line {number} is not UTF-8 text: save the file as UTF-8"
            raise HistoryError(message) from error
        except (ValueError, RecursionError):
            row[BROKEN] = "is not JSON"
        else:
            if isinstance(value, dict):
                fill(row, value, columns, add_note)
            else:
                row[BROKEN] = "is not a JSON object"
        yield row


def without_surrogates(text: str, name: str, add_note: AddNote) -> str:
    """Return ``text`` with U+FFFD for lone surrogates, legal in JSON but no text; note it."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    add_note(f"{name}: half a character (a lone surrogate) was replaced by U+FFFD")
    return _SURROGATE.sub("\ufffd", text)


def fill(
    row: dict[str, Any],
    value: dict[str, Any],
    columns: Mapping[str, pl.DataType],
    add_note: AddNote,
) -> None:
    """Put the cells of ``value`` into ``row`` in the types of ``columns``.

    A cell that does not fit is described in the cell ``BROKEN``, a change is noted.
    """
    for name, dtype in columns.items():
        cell = value.get(name)
        if cell is None:
            continue
        if not dtype.is_nested():
            text = json.dumps(cell) if isinstance(cell, _JSON) else str(cell)
            row[name] = without_surrogates(text, name, add_note)
        elif dtype == pl.List(pl.Float64()):
            if isinstance(cell, list) and all(map(_is_number, cell)):
                row[name] = [float(item) for item in cell]
            else:
                row[BROKEN] = f"has a {name} that is not a list of numbers"
        elif isinstance(cell, list) and all(map(_is_whole, cell)):
            # The top bit of unsigned hashes is dropped, as it is in a request.
            row[name] = [item if item < INT64 else item - INT64 for item in cell]
        else:
            row[BROKEN] = f"has a {name} that is not a list of whole numbers"


def _is_whole(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and -INT64 <= item < 2 * INT64


def _is_number(item: Any) -> bool:
    return isinstance(item, float) or _is_whole(item)
