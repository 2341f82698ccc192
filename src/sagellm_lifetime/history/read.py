"""Read a history from a path, glob, folder or frame: validated rows, or one clear line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, UnknownNameError
from sagellm_lifetime.history.checks import EVERY_WAY, check_types, typed
from sagellm_lifetime.history.databases import check_source, is_database, read_query, shown_source
from sagellm_lifetime.history.files import (
    EmptyHistoryError,
    MissingColumnError,
    find_files,
    kind_of,
    open_file,
)
from sagellm_lifetime.history.findings import Findings, left_out, listed
from sagellm_lifetime.history.foreign import find_format
from sagellm_lifetime.history.formats.mapped import MappedLog
from sagellm_lifetime.history.mapping import ColumnMap
from sagellm_lifetime.history.names import with_nearest
from sagellm_lifetime.history.reasons import (
    KNOWN,
    CapReached,
    check_cap_reached,
    finish_reason,
    unstated_at_cap,
)
from sagellm_lifetime.history.records import sample_of
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, NATIVE, NUMBERS, Layout
from sagellm_lifetime.history.streams import packing
from sagellm_lifetime.history.tables import as_frame
from sagellm_lifetime.history.times import unit_warning
from sagellm_lifetime.history.validate import (
    CHECKED,
    Failure,
    validate_file,
    validate_frame,
    validate_mapped,
    validate_records,
)


class Table(Protocol):
    """A table of any library with the Arrow interface, such as pandas and pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return the rows as an Arrow stream."""


OnBadRows = Literal["refuse", "skip"]
ADVICE = "fix them or pass --on-bad-rows skip (in Python on_bad_rows='skip')"


@dataclass(frozen=True)
class History:
    """Validated rows, and what was left out to get them.

    :func:`read_history` and ``fit`` take it for validated and read it no second time.

    Attributes:
        frame: the rows, columns in the order and types of ``HISTORY_SCHEMA``. Columns that no file
            has are absent, except ``finish_reason`` (filled in, see :mod:`.endings`) and those
            asked for by name (null).
        skipped: number of bad rows left out; 0 unless ``on_bad_rows="skip"``.
        problems: the first bad rows, as ``"file line 7: actual_length is NaN"``.
        kinds: number of bad rows of each kind.
        cap_reached: number of rows that give no finish reason and end exactly at their own
            ``max_length``, counted as either reason.
        notes: lines for the user: what was understood, assumed or not read.
        left_out: requests of a foreign log that a history cannot hold, by the reason.
        ignored: columns that were not read.
        formats: the foreign formats that were recognised, in words.
        columns: history column with a value -> the column or path it was read from.
        assumed: the notes that no other attribute repeats: what was assumed, and warnings.
        mapping: the mapping it was read by, with the units that were inferred; None without one.
    """

    frame: pl.DataFrame
    skipped: int = 0
    problems: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    cap_reached: int = 0
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict, compare=False)
    assumed: list[str] = field(default_factory=list, compare=False)
    mapping: ColumnMap | None = field(default=None, compare=False)


Source = str | os.PathLike[str] | pl.DataFrame | pl.LazyFrame | Table | History


def read_history(
    source: Source,
    *,
    on_bad_rows: OnBadRows = "refuse",
    columns: Sequence[str] | None = None,
    cap_reached: CapReached = "length",
    mapping: Mapping[str, str] | ColumnMap | str | os.PathLike[str] | None = None,
    query: str | None = None,
) -> History:
    """Read and validate a history.

    Args:
        source: a file, a glob, a folder (read recursively; CSV, JSONL, JSON and Parquet may be
            mixed, and compressed), the address of a database, a polars frame, or a table of another
            library with the Arrow interface (pandas, pyarrow). A log of another program is
            recognised by its content (``history.formats``) and read as one. A :class:`History` is
            returned as it is.
        on_bad_rows: ``"refuse"`` raises on the first file set with a bad row, ``"skip"`` leaves
            such rows out and reports them.
        columns: read (and validate) only these, and return exactly these, null where no file has
            them. This keeps ids and texts of a large log out of memory.
        cap_reached: finish reason of a row that gives none and ends exactly at its own
            ``max_length``: ``"length"`` (cut there) or ``"stop"`` (ended by itself).
        mapping: where history columns stand in a log of any form: a dict such as
            ``{"actual_length": "usage.completion_tokens", "actual_time": "latency@ms"}``, or a
            TOML file (:class:`~sagellm_lifetime.history.mapping.ColumnMap`).
        query: a SELECT, where the source is the address of a database
            (``postgresql://user@host/name``, ``sqlite:///file.db``).

    Raises:
        HistoryError: one line; ``HistoryHeaderError`` for columns, ``HistoryRowError`` for rows.

    >>> import polars
    >>> rows = polars.DataFrame({"actual_length": [120, 80], "finish_reason": ["stop", "eos"]})
    >>> history = read_history(rows)
    >>> history.frame["finish_reason"].to_list()
    ['stop', 'stop']
    >>> history.notes
    ['finish reasons: eos → stop (1)']
    """
    if isinstance(source, History):
        if source.frame.is_empty():
            raise EmptyHistoryError("history: it has no rows")
        return source
    check_cap_reached(cap_reached)
    history = read_stated(
        source, on_bad_rows=on_bad_rows, columns=columns, mapping=mapping, query=query
    )
    at_cap = history.frame.select(unstated_at_cap(history.frame.columns).sum()).item()
    frame = _shaped(history.frame, columns, cap_reached)
    return replace(history, frame=frame, cap_reached=at_cap)


def read_stated(
    source: str | os.PathLike[str] | pl.DataFrame | pl.LazyFrame | Table,
    *,
    on_bad_rows: OnBadRows = "refuse",
    columns: Sequence[str] | None = None,
    mapping: Mapping[str, str] | ColumnMap | str | os.PathLike[str] | None = None,
    query: str | None = None,
) -> History:
    """Read and validate a history as :func:`read_history` does, with the reasons that it states.

    ``finish_reason`` is null where a row states none, and absent where no row does. ``columns`` are
    read besides those that every check needs.

    Raises:
        HistoryError: as of :func:`read_history`.
    """
    if on_bad_rows not in ("refuse", "skip"):
        raise UnknownNameError("way with bad rows", on_bad_rows, ["refuse", "skip"])
    for name in columns or ():
        if name not in HISTORY_SCHEMA:
            raise UnknownNameError("history column", name, list(HISTORY_SCHEMA))
    wanted = list(HISTORY_SCHEMA) if columns is None else list(columns)
    mapped = None if mapping is None else MappedLog(ColumnMap.of(mapping))
    check_source(source, query)
    if is_database(source):
        rows = read_query(str(source), query)
        where = shown_source(str(source))
        history = _read_frame(rows, wanted, on_bad_rows, mapped, where)
    elif not isinstance(source, str | os.PathLike):
        if not isinstance(source, pl.DataFrame | pl.LazyFrame):
            source = as_frame(source)
        history = _read_frame(source, wanted, on_bad_rows, mapped)
    else:
        native = dict.fromkeys(("csv", "jsonl", "parquet"), NATIVE)
        history = read_as(source, native, wanted, on_bad_rows=on_bad_rows, mapped=mapped)
    return history


def _read_frame(
    source: pl.DataFrame | pl.LazyFrame,
    wanted: list[str],
    on_bad_rows: OnBadRows,
    mapped: MappedLog | None,
    where: str = "history",
) -> History:
    """Read a frame: a history, or the records of another program's log."""
    findings = Findings()
    try:
        is_history = "actual_length" in source.collect_schema()
        frame = None if is_history and mapped is None else source.lazy().collect()
    except Failure as error:
        name = type(error).__name__
        raise HistoryError(f"{where}: the frame cannot be collected ({name})") from error
    if frame is None:
        good = validate_frame(source.lazy(), NATIVE, wanted, findings, where)
    else:
        beginning, records = sample_of(frame)
        columns = [*wanted, *CHECKED]
        if mapped is not None:
            good = validate_mapped(where, mapped, beginning, records, columns, findings)
            mapped.check(where)
        elif (form := find_format(Path(where), beginning)) is not None:
            good = validate_records(where, form, beginning, records, columns, findings)
        else:
            good = validate_frame(source.lazy(), NATIVE, wanted, findings, where)
    history = _history_of([good], findings, where, on_bad_rows)
    return history if mapped is None else replace(history, mapping=mapped.resolved())


def read_as(
    source: str | os.PathLike[str],
    layouts: Mapping[str, Layout],
    wanted: Iterable[str],
    *,
    on_bad_rows: OnBadRows,
    form: str | None = None,
    mapped: MappedLog | None = None,
) -> History:
    """Read and validate files whose columns are laid out as in ``layouts``.

    Args:
        source: a file, a glob or a folder.
        layouts: kind of file -> where the columns are.
        wanted: history columns.
        on_bad_rows: ``"refuse"`` or ``"skip"``.
        form: the name of a foreign format (``history.formats``); None to recognise it.
        mapped: a mapping of columns to paths, for a log of any form.

    Raises:
        HistoryError: a file cannot be used, or has bad rows that are not to be skipped.
    """
    paths, findings = _paths(source), Findings()
    wanted = list(wanted)
    frames: list[pl.DataFrame] = []
    empty: EmptyHistoryError | None = None
    for path in paths:
        try:
            layout = NATIVE if form or mapped else layout_for(path, layouts)
            frames.append(validate_file(path, layout, wanted, findings, form, mapped))
        except EmptyHistoryError as error:
            empty = error  # one of many may be empty, such as a recorder's newest
        except MissingColumnError:
            # A folder of logs may also hold settings and reports.
            if len(paths) == 1 or kind_of(path) != "json":
                raise
            findings.add_note(f"passed over {path.name}: no log that is known")
    if not frames:
        raise empty or HistoryError(f"{source}: no history and no log that is known in it")
    where = str(paths[0] if len(paths) == 1 else source)
    if mapped is not None:
        mapped.check(where)
    history = _history_of(frames, findings, where, on_bad_rows)
    return history if mapped is None else replace(history, mapping=mapped.resolved())


def _paths(source: str | os.PathLike[str]) -> list[Path]:
    try:
        return find_files(source)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise HistoryError(f"{source}: {error.strerror or 'cannot be read'}") from error


def layout_for(path: Path, layouts: Mapping[str, Layout]) -> Layout:
    """Return the layout of a file's kind. Raise :class:`HistoryError` if the format has none."""
    kind = kind_of(path) or ""
    if kind == "json" and "jsonl" in layouts and not layouts["jsonl"].foreign:
        kind = "jsonl"
    if kind not in layouts:
        known = " or ".join(f".{kind}" for kind in layouts)
        raise HistoryError(f"{path}: this format comes as {known}, not {path.suffix}")
    return layouts[kind]


def _history_of(
    frames: list[pl.DataFrame], findings: Findings, source: str, on_bad_rows: OnBadRows
) -> History:
    if findings.bad and on_bad_rows != "skip":
        raise findings.error(source, advice=ADVICE)
    # No rechunk: it would hold every column twice.
    frame = frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal", rechunk=False)
    if not frame.height:
        raise findings.error(source, advice="no good row is left")
    problems = [f"{name} {place}" for name, place in findings.problems]
    return History(
        frame,
        findings.bad,
        problems,
        dict(findings.kinds.most_common()),
        notes=_notes(frame, findings),
        assumed=_assumed(frame, findings),
        columns={
            c: findings.columns.get(c, c)
            for c in HISTORY_SCHEMA
            if c in frame.columns and frame[c].null_count() < frame.height
        },
        left_out=dict(findings.left_out.most_common()),
        ignored=list(findings.ignored),
        formats=list(findings.formats),
    )


def _notes(frame: pl.DataFrame, findings: Findings) -> list[str]:
    """Return the notes for the user besides bad rows, one line each."""
    notes = [f"read as {' and '.join(findings.formats)}"] if findings.formats else []
    if findings.columns:
        renamed = [f"{theirs} → {ours}" for ours, theirs in findings.columns.items()]
        notes.append(f"columns taken for history columns: {', '.join(renamed)}")
    assumed = _assumed(frame, findings)
    warning = unit_warning(frame)
    notes += [note for note in assumed if note != warning]
    if findings.left_out:
        notes.append(f"left out: {left_out(findings)}")
    if findings.ignored:
        known = [name for name in HISTORY_SCHEMA if name in frame.columns]
        names = [with_nearest(name, known) for name in findings.ignored]
        notes.append(f"columns not read: {listed(names)}")
    return [*notes, *([warning] if warning else [])]


def _assumed(frame: pl.DataFrame, findings: Findings) -> list[str]:
    """Return what was assumed, and a warning for an unlikely unit, one line each."""
    notes = list(findings.notes)
    if findings.renamed:
        words = [f"{word} → {KNOWN[word]} ({n:,})" for word, n in findings.renamed.most_common()]
        notes.append(f"finish reasons: {listed(words)}")
    warning = unit_warning(frame)
    return [*notes, *([warning] if warning else [])]


def _shaped(
    frame: pl.DataFrame, columns: Sequence[str] | None, cap_reached: CapReached
) -> pl.DataFrame:
    frame = frame.with_columns(finish_reason(frame.columns, cap_reached))
    if columns is None:
        return frame.select(c for c in HISTORY_SCHEMA if c in frame.columns)
    missing = [pl.lit(None, HISTORY_SCHEMA[c]).alias(c) for c in columns if c not in frame.columns]
    return frame.with_columns(missing).select(columns)


def scan_history(
    source: str | os.PathLike[str], *, cap_reached: CapReached = "length"
) -> pl.LazyFrame:
    """Return the rows of a path, glob or folder as a lazy frame, not validated.

    Columns have the types of ``HISTORY_SCHEMA``. For files known to be good, or larger than memory:
    headers are checked, rows are not (a cell
    that does not fit its column becomes null, and a malformed line fails at ``collect``). Unknown
    columns are dropped, columns that no file has are absent, except ``finish_reason``, which is
    filled in as :func:`read_history` does. Compressed files and logs of other programs are not
    scanned: :func:`read_history` reads them.

    Raises:
        HistoryError: a file cannot be scanned, or its header cannot be used.

    >>> import tempfile, polars
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     polars.DataFrame({"actual_length": [120, 80]}).write_csv(f"{folder}/log.csv")
    ...     scan_history(folder).select(polars.col("actual_length").sum()).collect().item()
    200
    """
    check_cap_reached(cap_reached)
    frames = []
    for path in _paths(source):
        if kind_of(path) == "json" or packing(path) is not None:
            raise HistoryError(f"{path}: only plain CSV, JSONL and Parquet are scanned: read it")
        try:
            file = open_file(path, NATIVE, HISTORY_SCHEMA)
        except EmptyHistoryError:
            continue
        if file.frame is None:
            raise HistoryError(f"{path}: compressed, which cannot be scanned: read it")
        used = [column for column in HISTORY_SCHEMA if column in file.present]
        check_types(file.frame.collect_schema(), NATIVE, used, str(path))
        expressions = [_fitting(c).cast(HISTORY_SCHEMA[c], strict=False) for c in used]
        frames.append(typed(file.frame, NATIVE, used, EVERY_WAY).select(expressions))
    if not frames:
        raise EmptyHistoryError(f"{source}: the file is empty")
    joined = pl.concat(frames, how="diagonal")
    present = joined.collect_schema().names()
    joined = joined.with_columns(finish_reason(present, cap_reached))
    present = [*present, "finish_reason"]
    return joined.select(c for c in HISTORY_SCHEMA if c in present)


def _fitting(column: str) -> pl.Expr:
    """Return a column, null where it must be whole and is not: 12.5 is not 12."""
    value = pl.col(column)
    is_whole = column in NUMBERS and HISTORY_SCHEMA[column].is_integer()
    return pl.when(value % 1 == 0).then(value) if is_whole else value
