"""Find history files, and open one lazily as raw columns with a row index."""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, HistoryHeaderError
from sagellm_lifetime.history.names import counts_generated, suggestion
from sagellm_lifetime.history.parquet import counts_agree, damaged_parquet, no_panic_reports
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, LISTS, Layout
from sagellm_lifetime.history.streams import PACKED, open_unpacked, packing

SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""Suffixes of histories that are written; these and ``.json`` are read."""
READABLE = {**SUFFIXES, ".json": "json"}
SEARCH = 1 << 22  # bytes of a JSONL file looked through at once
SUPPORTED = ".csv, .jsonl, .ndjson or .parquet"
READ = ".csv, .jsonl, .ndjson, .json (each also as .gz, .bz2, .xz or .zst) or .parquet"
_FOREIGN = {
    b"PK\x03\x04": "an archive or a workbook: unpack it, or save the sheet as CSV",
    b"PAR1": "a Parquet file: name it .parquet",
    b"\xff\xfe": "UTF-16 text: save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text: save the file as UTF-8",
}
"""First bytes of files that are no text, and what to do about them."""
_MARKS = (";", "\t", "|")
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
ROW = "__row"  # where a row is: its index in the file from 0, or (by line) its line from 1
BROKEN = "__broken"  # why a line is no row at all, else null


class EmptyHistoryError(HistoryError):
    """A file without rows: an error by itself, skipped beside files that have rows."""


@dataclass(frozen=True)
class RawFile:
    """An opened file: ``frame`` has the columns ``present`` as stored, and ``ROW``.

    ``frame`` is None for a compressed CSV file, which is read in batches.
    """

    path: Path
    kind: str
    frame: pl.LazyFrame | None
    present: tuple[str, ...]
    others: tuple[str, ...] = ()  # columns of the file that the layout has no place for


class MissingColumnError(HistoryHeaderError):
    """A column that every row needs is not there: it may be another program's log.

    Attributes:
        what: the file and the column, the first half of the message.
        present: the columns that are there instead.
    """

    def __init__(self, what: str, hint: str, present: Iterable[str]) -> None:
        super().__init__(f"{what}: {hint}")
        self.what, self.present = what, tuple(present)


def kind_of(path: Path) -> str | None:
    """Return what a file is by its name (csv, jsonl, json or parquet), None for anything else."""
    suffix = path.suffix.lower()
    if suffix not in PACKED:
        return READABLE.get(suffix)
    kind = READABLE.get(Path(path.stem).suffix.lower())
    return None if kind == "parquet" else kind


def find_files(source: str | os.PathLike[str]) -> list[Path]:
    """Return the history files of a path, a glob or a folder (recursive, without hidden names).

    Raises:
        HistoryError: there is none, or a named file is not of a supported kind.
    """
    path = Path(source)
    if not os.fspath(source):  # an unset variable of a script; not the current folder
        raise HistoryError("no history is named: give a file, a glob or a folder")
    if path.is_dir():
        files = _below(path)
        if not files:
            raise HistoryError(f"{path}: no history files in this folder (looked for {READ})")
        return files
    if path.exists():
        if kind_of(path) is None:
            suffix = repr(path.suffix) if path.suffix else "without a suffix"
            packed = path.suffix.lower() in (*PACKED, ".zip")
            advice = "unpack it first" if packed else f"use {READ}"
            raise HistoryError(f"{path}: file type {suffix} is not supported: {advice}")
        if not path.is_file():
            raise HistoryError(f"{path}: a pipe or a device, which cannot be read twice: copy it")
        return [path]
    if not glob.has_magic(str(path)):
        raise HistoryError(f"{path}: no such file or folder")
    files = []
    for match in sorted(Path(name) for name in glob.glob(str(path), recursive=True)):
        if match.is_dir():
            files += _below(match)
        elif kind_of(match) is not None and match.is_file():
            files.append(match)
    if not files:
        raise HistoryError(f"{path}: no history file matches (looked for {READ})")
    return list(dict.fromkeys(files))  # "**" matches a file and its folder, so it comes twice


def _below(folder: Path) -> list[Path]:
    def is_visible(path: Path) -> bool:
        return not any(part.startswith(".") for part in path.relative_to(folder).parts)

    files = (p for p in folder.rglob("*") if kind_of(p) is not None and p.is_file())
    return sorted(filter(is_visible, files))


def open_file(path: Path, layout: Layout, columns: Iterable[str]) -> RawFile:
    """Open ``path`` for the history ``columns`` without reading rows.

    Raises:
        HistoryError: the file cannot be read, or its header cannot be used.
    """
    kind = kind_of(path) or ""
    frame: pl.LazyFrame | None
    try:
        check_start(path, kind)
        if kind == "csv":
            frame, present = _open_csv(path, layout)
        elif kind == "jsonl":
            frame, present = _open_jsonl(path, layout, columns)
        else:
            frame, present = _open_parquet(path)
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or 'cannot be read'}") from error
    for column in layout.required:
        name = layout.names[column]
        if name not in present:
            raise _without(path, kind, name, present, layout)
    known = set(layout.names.values())
    keys = present if kind != "jsonl" else _keys(_first_line(path))
    others = tuple(name for name in keys if name and name not in known)
    return RawFile(path, kind, frame, tuple(present), others)


def check_start(path: Path, kind: str) -> None:
    """Raise :class:`HistoryError` for a file that is empty or does not begin like its kind."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise HistoryError(f"{str(path)!r}: the name is not UTF-8 text: rename the file") from error
    if kind == "parquet":
        with path.open("rb") as plain:  # the system's own words for what cannot be read
            start = plain.read(4096)
    else:
        with open_unpacked(path) as stream:
            start = stream.read(4096)
    if not start:
        raise EmptyHistoryError(f"{path}: the file is empty")
    if kind == "parquet":
        return
    for magic, advice in _FOREIGN.items():
        if start.startswith(magic):
            raise HistoryError(f"{path}: {advice}")
    if kind == "jsonl" and _ARRAY.match(start):
        name = path.name.replace(".jsonl", ".json").replace(".ndjson", ".json")
        raise HistoryError(f"{path}: a JSON array, not one object a line: name it {name}")
    if b"\0" in (start.splitlines() or [b""])[0]:
        raise HistoryError(f"{path}: a binary file, not {kind.upper()} text")


def _without(
    path: Path, kind: str, name: str, present: Iterable[str], layout: Layout
) -> HistoryError:
    """Return the error of a file that lacks a required column."""
    if kind == "csv":
        for mark in _MARKS:
            parts = [part for cell in present if mark in cell for part in _split(cell, mark)]
            if name in parts or (not layout.foreign and any(map(counts_generated, parts))):
                return _separated(path, mark)
    if kind == "jsonl":
        first = _first_line(path)
        if not first:
            return EmptyHistoryError(f"{path}: the file is empty")
        present = _keys(first)
    hint = suggestion(name, present, foreign=layout.foreign)
    return MissingColumnError(f"{path}: no column {name!r}", hint, present)


def _split(cell: str, mark: str) -> list[str]:
    return [part.strip(' "') for part in cell.split(mark)]


def csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV file, stripped; blank lines before them are skipped."""
    with open_unpacked(path) as stream:
        for line in stream:
            if b"\0" in line:
                break
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                message = f"{path}: not UTF-8 text: is it a CSV file? save it as UTF-8"
                raise HistoryError(message) from error
            if text.strip():
                return [name.strip() for name in _first_record(path, text)]
        else:
            raise EmptyHistoryError(f"{path}: the file is empty")
    raise HistoryError(f"{path}: a binary file, not CSV text")


def _first_record(path: Path, line: str) -> list[str]:
    csv.field_size_limit(2**31 - 1)  # without a header, this is a row, and may be a long one
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        problem = "the lines end in a carriage return alone" if "\r" in line[:-1] else str(error)
        raise HistoryError(f"{path}: {problem}: save it as CSV with usual line ends") from error


def check_twice(path: Path, header: list[str]) -> None:
    """Raise :class:`HistoryHeaderError` if two columns of a CSV file have one name."""
    duplicates = sorted({name for name in header if name and header.count(name) > 1})
    if duplicates:
        raise HistoryHeaderError(f"{path}: the column {duplicates[0]!r} appears twice")


def check_separator(path: Path, header: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise :class:`HistoryHeaderError` if a CSV file has one column, or a wanted one, for several.

    Args:
        path: the file.
        header: its columns, as commas separate them.
        wanted: names that columns should have.
    """
    header, names = list(header), set(wanted)
    for mark in _MARKS:
        cells = [cell for cell in header if mark in cell and cell not in names]
        parts = {part for cell in cells for part in _split(cell, mark)}
        if cells and (len(header) == 1 or names & parts):
            raise _separated(path, mark)


def _separated(path: Path, mark: str) -> HistoryHeaderError:
    message = f"{path}: the columns are separated by {mark!r}: separate them by commas"
    return HistoryHeaderError(message)


def _open_csv(path: Path, layout: Layout) -> tuple[pl.LazyFrame | None, list[str]]:
    present = csv_header(path)
    check_twice(path, present)
    for name in LISTS:
        if layout.names.get(name) in present:
            raise HistoryHeaderError(
                f"{path}: the column {layout.names[name]!r} holds lists, which CSV cannot: "
                "use JSONL or Parquet"
            )
    if packing(path) is not None:
        return None, present
    # Everything as text, so that a cell that is no number is found and named.
    frame = pl.scan_csv(path, infer_schema=False, row_index_name=ROW, glob=False)
    stored = frame.collect_schema().names()[1:]
    if len(stored) == len(present):
        frame = frame.rename(dict(zip(stored, present, strict=True)), strict=False)
    # A blank line (often the last) is no row.
    blank = pl.all_horizontal(pl.all().exclude(ROW).is_null())
    return frame.filter(~blank), present


def _open_jsonl(
    path: Path, layout: Layout, columns: Iterable[str]
) -> tuple[pl.LazyFrame, list[str]]:
    types = {layout.names[c]: t for c, t in HISTORY_SCHEMA.items() if c in layout.names}
    wanted = {layout.names[c] for c in (*columns, *layout.required) if c in layout.names}
    present = _keys_anywhere(path, wanted)
    schema = {n: t if t.is_nested() else pl.String() for n, t in types.items() if n in present}
    # This reader takes no `glob=False`: brackets in a name would be read as a pattern.
    frame = pl.scan_ndjson(glob.escape(str(path)), schema=schema, row_index_name=ROW)
    return frame, list(schema)


def _keys_anywhere(path: Path, wanted: Iterable[str]) -> set[str]:
    """Return which of the wanted keys occur in a JSONL file: a key may first come in row 10^6."""
    missing = {json.dumps(name).encode(): name for name in wanted}
    overlap = max(map(len, missing), default=0)
    keys: set[str] = set()
    tail = b""
    with open_unpacked(path) as stream:
        while missing and (chunk := stream.read(SEARCH)):
            text = tail + chunk
            keys |= {missing.pop(key) for key in list(missing) if key in text}
            tail = text[-overlap:]
    return keys


def _first_line(path: Path) -> bytes:
    """Return the first line that is not blank, without a byte order mark."""
    with open_unpacked(path) as stream:
        lines = (line.removeprefix(b"\xef\xbb\xbf").strip() for line in stream)
        return next(filter(None, lines), b"")


def _keys(line: bytes) -> list[str]:
    """Return the keys of a line of JSONL; none if it is no object."""
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(first) if isinstance(first, dict) else []


def _open_parquet(path: Path) -> tuple[pl.LazyFrame, list[str]]:
    if not counts_agree(path):
        raise damaged_parquet(path)
    try:
        with no_panic_reports():
            frame = pl.scan_parquet(path, row_index_name=ROW, glob=False, hive_partitioning=False)
            return frame, frame.collect_schema().names()[1:]
    except pl.exceptions.DuplicateError as error:
        raise HistoryHeaderError(f"{path}: a column appears twice") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise damaged_parquet(path) from error
