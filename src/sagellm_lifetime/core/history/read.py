"""Reading a history: a path, glob, folder or frame -> checked rows, or one clear line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, UnknownNameError
from sagellm_lifetime.core.history.checks import check_types, typed
from sagellm_lifetime.core.history.files import EmptyHistoryError, find_files, open_file
from sagellm_lifetime.core.history.schema import HISTORY_SCHEMA, NATIVE, NUMBERS, Layout
from sagellm_lifetime.core.history.sift import sift_frame, sift_path
from sagellm_lifetime.core.history.tables import as_frame
from sagellm_lifetime.core.history.tally import Tally


class Table(Protocol):
    """A table of any library that speaks Arrow, such as pandas and pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Hand the rows over."""


Source = str | os.PathLike[str] | pl.DataFrame | pl.LazyFrame | Table
OnBadRows = Literal["refuse", "skip"]
ADVICE = "fix them or pass --on-bad-rows skip"


@dataclass(frozen=True)
class History:
    """Checked rows, and what was left out to get them.

    Attributes:
        frame: the rows, columns in the order and types of ``HISTORY_SCHEMA``. Columns that no file
            has are absent, except ``finish_reason`` (``"stop"``) and those asked for by name
            (null).
        skipped: number of bad rows left out; 0 unless ``on_bad_rows="skip"``.
        problems: the first bad rows, as ``"file line 7: actual_length is NaN"``.
        kinds: number of bad rows of each kind.
    """

    frame: pl.DataFrame
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)


def read_history(
    source: Source,
    *,
    on_bad_rows: OnBadRows = "refuse",
    columns: Sequence[str] | None = None,
) -> History:
    """Read and check a history.

    Args:
        source: a file, a glob, a folder (read recursively; CSV, JSONL and Parquet may be mixed), or
            a polars frame, or a table of another library that speaks Arrow (pandas, pyarrow).
        on_bad_rows: ``"refuse"`` raises on the first file set with a bad row, ``"skip"`` leaves
            such rows out and reports them.
        columns: read (and check) only these, and return exactly these, null where no file has them.
            On ten million rows this is what keeps ids and texts out of memory.

    Raises:
        HistoryError: one line; ``HistoryHeaderError`` for columns, ``HistoryRowError`` for rows.
    """
    if on_bad_rows not in ("refuse", "skip"):
        raise UnknownNameError("way with bad rows", on_bad_rows, ["refuse", "skip"])
    for name in columns or ():
        if name not in HISTORY_SCHEMA:
            raise UnknownNameError("history column", name, list(HISTORY_SCHEMA))
    wanted = list(HISTORY_SCHEMA) if columns is None else list(columns)
    if not isinstance(source, str | os.PathLike):
        tally = Tally()
        if not isinstance(source, pl.DataFrame | pl.LazyFrame):
            source = as_frame(source)
        frame = sift_frame(source.lazy(), NATIVE, wanted, tally)
        found = _settle([frame], tally, "history", on_bad_rows)
    else:
        native = dict.fromkeys(("csv", "jsonl", "parquet"), NATIVE)
        found = read_as(source, native, wanted, on_bad_rows=on_bad_rows)
    return History(_shaped(found.frame, columns), found.skipped, found.problems, found.kinds)


def read_as(
    source: str | os.PathLike[str],
    layouts: Mapping[str, Layout],
    wanted: Iterable[str],
    *,
    on_bad_rows: OnBadRows,
) -> History:
    """Read files whose columns are laid out by kind of file as ``layouts`` says."""
    paths = _paths(source)
    wanted, tally = list(wanted), Tally()
    frames: list[pl.DataFrame] = []
    empty: EmptyHistoryError | None = None
    for path in paths:
        try:
            frames.append(sift_path(path, layout_for(path, layouts), wanted, tally))
        except EmptyHistoryError as error:
            empty = error  # one of many may be empty: a recorder has just opened it
    if not frames and empty is not None:
        raise empty
    return _settle(frames, tally, str(paths[0] if len(paths) == 1 else source), on_bad_rows)


def _paths(source: str | os.PathLike[str]) -> list[Path]:
    try:
        return find_files(source)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise HistoryError(f"{source}: {error.strerror or 'cannot be read'}") from error


def layout_for(path: Path, layouts: Mapping[str, Layout]) -> Layout:
    kind = {".ndjson": "jsonl"}.get(path.suffix.lower(), path.suffix.lower()[1:])
    if kind not in layouts:
        known = " or ".join(f".{kind}" for kind in layouts)
        raise HistoryError(f"{path}: this format comes as {known}, not {path.suffix}")
    return layouts[kind]


def _settle(
    frames: list[pl.DataFrame], tally: Tally, source: str, on_bad_rows: OnBadRows
) -> History:
    if tally.bad and on_bad_rows != "skip":
        raise tally.error(source, what=ADVICE)
    # No rechunk: it would hold every column twice.
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal", rechunk=False)
    if not frame.height:
        raise tally.error(source, what="no good row is left")
    problems = [f"{name} {place}" for name, place in tally.problems]
    return History(frame, tally.bad, problems, dict(tally.kinds.most_common()))


def _shaped(frame: pl.DataFrame, columns: Sequence[str] | None) -> pl.DataFrame:
    reason = pl.lit("stop") if "finish_reason" not in frame.columns else pl.col("finish_reason")
    frame = frame.with_columns(reason.fill_null("stop").alias("finish_reason"))
    if columns is None:
        return frame.select(c for c in HISTORY_SCHEMA if c in frame.columns)
    missing = [pl.lit(None, HISTORY_SCHEMA[c]).alias(c) for c in columns if c not in frame.columns]
    return frame.with_columns(missing).select(columns)


def scan_history(source: str | os.PathLike[str]) -> pl.LazyFrame:
    """The rows of a path, glob or folder as a lazy frame in the types of ``HISTORY_SCHEMA``.

    For files known to be good, or larger than memory: headers are checked, rows are not (a cell
    that does not fit its column becomes null, and a malformed line fails at ``collect``). Unknown
    columns are dropped, columns that no file has are absent, except ``finish_reason``.
    """
    frames = []
    for path in _paths(source):
        try:
            file = open_file(path, NATIVE, HISTORY_SCHEMA)
        except EmptyHistoryError:
            continue
        used = [column for column in HISTORY_SCHEMA if column in file.present]
        check_types(file.frame.collect_schema(), NATIVE, used, str(path))
        out = [_fitting(c).cast(HISTORY_SCHEMA[c], strict=False) for c in used]
        if "finish_reason" not in used:
            out.append(pl.lit("stop").alias("finish_reason"))
        frames.append(typed(file.frame, NATIVE, used).select(out))
    if not frames:
        raise EmptyHistoryError(f"{source}: the file is empty")
    joined = pl.concat(frames, how="diagonal")
    present = joined.collect_schema().names()
    return joined.select(c for c in HISTORY_SCHEMA if c in present)


def _fitting(column: str) -> pl.Expr:
    """A whole-number column without its fractions: 12.5 is no 12."""
    value = pl.col(column)
    whole = column in NUMBERS and HISTORY_SCHEMA[column].is_integer()
    return pl.when(value % 1 == 0).then(value) if whole else value
