"""Read a log as records: one dict per line of JSONL, JSON item, or row of CSV or Parquet.

For logs of other programs, whose records are nested or grouped. The history format itself is read
in columns, which is faster (:mod:`.validate`); only a plain ``.json`` file is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.csvlines import csv_records
from sagellm_lifetime.history.files import check_start, check_twice, kind_of
from sagellm_lifetime.history.jsonl import MAX_LINE
from sagellm_lifetime.history.parquet import counts_agree, damaged_parquet, no_panic_reports
from sagellm_lifetime.history.streams import open_unpacked

Record = dict[str, Any]
SAMPLE_SIZE: Final = 20  # records by which a log is recognised
_ROWS = 10_000  # of Parquet, turned into records at once


@dataclass(frozen=True)
class Broken:
    """A record that cannot be read, and why."""

    why: str


@dataclass(frozen=True)
class Sample:
    """The beginning of a log, by which it is recognised.

    Attributes:
        keys: the top-level keys of its first records (or the header), each once, in their order.
        records: the first records.
    """

    keys: tuple[str, ...]
    records: tuple[Record, ...]

    def has(self, *names: str) -> bool:
        """Return True if all of the top-level keys ``names`` are there."""
        return set(names) <= set(self.keys)


def sample(path: Path) -> Sample:
    """Return the beginning of a log; empty if nothing in it is a record."""
    return sample_and_records(path)[0]


def sample_and_records(path: Path) -> tuple[Sample, Iterator[tuple[str, Record | Broken]]]:
    """Return the beginning of a log and all its records, in one reading.

    Raises:
        HistoryError: the file cannot be read; also from the iterator, further on.
    """
    rows = records(path)
    beginning = list(islice(rows, SAMPLE_SIZE))
    keys: dict[str, None] = {}
    if kind_of(path) == "csv":
        keys.update(dict.fromkeys(_header(path)))
    first = [value for _, value in beginning if not isinstance(value, Broken)]
    for record in first:
        keys.update(dict.fromkeys(record))
    return Sample(tuple(keys), tuple(first)), chain(beginning, rows)


def sample_of(frame: pl.DataFrame) -> tuple[Sample, Iterator[tuple[str, Record]]]:
    """Return the beginning of a frame and all its rows as records, as :func:`records` does."""
    first = tuple(frame.head(SAMPLE_SIZE).iter_rows(named=True))
    rows = frame.iter_rows(named=True, buffer_size=_ROWS)
    numbered = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    return Sample(tuple(frame.columns), first), numbered


def records(path: Path) -> Iterator[tuple[str, Record | Broken]]:
    """Yield every record of a file with its place in words (``"line 7"``).

    Raises:
        HistoryError: the file cannot be read; the message is one line.
    """
    file_type = kind_of(path) or ""
    check_start(path, file_type)
    if file_type == "parquet":
        yield from _parquet(path)
    elif file_type == "csv":
        yield from _csv(path)
    else:
        with open_unpacked(path) as stream:
            yield from _json_lines(stream, path) if file_type == "jsonl" else _json(stream, path)


def _header(path: Path) -> list[str]:
    return [name.strip() for name in next(csv_records(path, strict=False), (0, []))[1]]


def _csv(path: Path) -> Iterator[tuple[str, Record | Broken]]:
    lines = csv_records(path, strict=True)
    header = [name.strip() for name in next(lines, (0, []))[1]]
    check_twice(path, header)
    for number, cells in lines:
        if not any(cells):
            continue
        if len(cells) > len(header):
            yield f"line {number}", Broken(f"has {len(cells)} fields, the header has {len(header)}")
        else:
            filled = zip(header, cells, strict=False)
            yield f"line {number}", {name: cell or None for name, cell in filled}


def _parquet(path: Path) -> Iterator[tuple[str, Record | Broken]]:
    if not counts_agree(path):
        raise damaged_parquet(path)
    try:
        with no_panic_reports():
            frame = pl.scan_parquet(path, glob=False, hive_partitioning=False).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise damaged_parquet(path) from error
    for number, row in enumerate(frame.iter_rows(named=True, buffer_size=_ROWS), start=1):
        yield f"row {number}", row


def _json_lines(stream: IO[bytes], path: Path) -> Iterator[tuple[str, Record | Broken]]:
    number = 0
    while line := stream.readline(MAX_LINE):
        number += 1
        if len(line) >= MAX_LINE:
            raise HistoryError(f"{path}: line {number} is longer than {MAX_LINE >> 20} MB")
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if text.strip():
            yield f"line {number}", _record(_parsed(text, path, f"line {number}"))


def _parsed(text: bytes, path: Path, place: str) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path}: {place} is not UTF-8 text: save the file as UTF-8") from error
    except (ValueError, RecursionError):
        return Broken("is not JSON")


@contextmanager
def json_errors(path: Path, wanted: str) -> Iterator[None]:
    """Raise errors of the JSON decoder in the block as :class:`HistoryError`, in one line.

    Args:
        path: file that is decoded.
        wanted: description of the expected content, for the message.
    """
    try:
        yield
    except json.JSONDecodeError as error:
        raise HistoryError(f"{path}: line {error.lineno} is not JSON: {error.msg}") from error
    except ValueError as error:
        raise HistoryError(f"{path}: a number has too many digits") from error
    except RecursionError as error:
        raise HistoryError(f"{path}: not {wanted}: nested too deep") from error


def _record(value: Any) -> Record | Broken:
    if isinstance(value, dict | Broken):
        return value
    return Broken("is not a JSON object")


def _json(stream: IO[bytes], path: Path) -> Iterator[tuple[str, Record | Broken]]:
    """Yield the records of a JSON text: an array, an object, one with ``data``, or several."""
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HistoryError(f"{path}: not UTF-8 text: save the file as UTF-8") from error
    decoder, at, number = json.JSONDecoder(), 0, 0
    while at < len(text):
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return
        with json_errors(path, "a log"):
            value, at = decoder.raw_decode(text, at)
        if isinstance(value, dict) and isinstance(value.get("data"), list):
            value = value["data"]  # a page of an API
        for item in value if isinstance(value, list) else [value]:
            number += 1
            yield f"record {number}", _record(item)
