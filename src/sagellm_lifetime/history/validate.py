"""Validate one file or frame: return its good rows, count and name its bad ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, HistoryHeaderError
from sagellm_lifetime.history.checks import (
    FAULT,
    PLAIN,
    RAW_ARRIVAL,
    RENAMED,
    CellFormat,
    Fault,
    check_types,
    describe,
    faults,
    final,
    is_plain,
    typed,
    with_fault,
)
from sagellm_lifetime.history.csvlines import csv_batches, line_numbers
from sagellm_lifetime.history.files import (
    ROW,
    EmptyHistoryError,
    MissingColumnError,
    RawFile,
    check_separator,
    kind_of,
    open_file,
)
from sagellm_lifetime.history.findings import KEPT, UNKNOWN_REASON, Findings, left_out
from sagellm_lifetime.history.foreign import Records, batches, find_format
from sagellm_lifetime.history.formats import Format
from sagellm_lifetime.history.formats.mapped import MappedLog
from sagellm_lifetime.history.formats.native import Native
from sagellm_lifetime.history.jsonl import jsonl_batches
from sagellm_lifetime.history.names import nested_hint, public_trace, suggestion
from sagellm_lifetime.history.parquet import damaged_parquet, no_panic_reports
from sagellm_lifetime.history.records import Sample, sample_and_records
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, NATIVE, Layout
from sagellm_lifetime.history.times import NAMES, epoch_unit, iso_seconds

CHECKED = ("max_length", "finish_reason")
"""Columns that are always read, because the checks and the finish reasons need them."""
Failure = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def validate_file(
    path: Path,
    layout: Layout,
    columns: Iterable[str],
    findings: Findings,
    form: str | None = None,
    mapped: MappedLog | None = None,
) -> pl.DataFrame:
    """Return the good rows of one file; record in ``findings`` what is bad, left out or assumed.

    Args:
        path: the file.
        layout: where its columns are; a file without the columns of a history may be a log of
            another program, and is then read as one.
        columns: the history columns that are wanted.
        findings: what reading found, added to.
        form: the name of a foreign format; None to recognise it by its content.
        mapped: a mapping of columns to paths, for a log of any form.

    Raises:
        HistoryError: the file cannot be used; the message is one line.
    """
    before = findings.rows
    try:
        wanted = [*columns, *CHECKED]
        if mapped is None:
            good = _validate_source(path, layout, wanted, findings, form)
        else:
            beginning, records = sample_and_records(path)
            if kind_of(path) == "csv":
                origins = mapped.columns.origins.values()
                paths = [name for o in origins for name in (o.path, str(o))]
                check_separator(path, beginning.keys, paths)
            good = validate_mapped(str(path), mapped, beginning, records, wanted, findings, form)
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or 'cannot be read'}") from error
    if findings.rows == before:
        if findings.left_out:
            raise EmptyHistoryError(f"{path}: no request in it ({left_out(findings)})")
        raise EmptyHistoryError(f"{path}: the file has no rows")
    return good


def _validate_source(
    path: Path, layout: Layout, columns: list[str], findings: Findings, form: str | None
) -> pl.DataFrame:
    if form is None and kind_of(path) != "json":
        try:
            file = open_file(path, layout, columns)
        except MissingColumnError as error:
            if layout.foreign or public_trace(error.present) is not None:
                raise
            beginning, records = sample_and_records(path)
            foreign = find_format(path, beginning)
            if foreign is None:
                hint = nested_hint(beginning.records)
                raise HistoryHeaderError(f"{error.what}: {hint}") if hint else error from None
            return validate_records(str(path), foreign, beginning, records, columns, findings)
        findings.ignored.update(dict.fromkeys(file.others))
        validator = _Validator(layout, _used(layout, columns, file.present), findings, str(path))
        return _validate_columns(file, validator)
    beginning, records = sample_and_records(path)
    if not beginning.records and kind_of(path) != "csv":
        raise EmptyHistoryError(f"{path}: no records in it (expected JSON objects)")
    if form is None and "actual_length" in beginning.keys:
        return validate_records(str(path), None, beginning, records, columns, findings)
    foreign = find_format(path, beginning, form)
    if foreign is None:
        hint = nested_hint(beginning.records) or suggestion("actual_length", beginning.keys)
        raise MissingColumnError(f"{path}: no column 'actual_length'", hint, beginning.keys)
    return validate_records(str(path), foreign, beginning, records, columns, findings)


def validate_mapped(
    where: str,
    mapped: MappedLog,
    beginning: Sample,
    records: Records,
    columns: list[str],
    findings: Findings,
    form: str | None = None,
) -> pl.DataFrame:
    """Return the good rows of a log of any form, read by a mapping.

    Raises:
        HistoryHeaderError: ``actual_length`` is not mapped, and the log is of no known format.
        HistoryError: as of :func:`validate_file`.
    """
    if not beginning.records:
        raise EmptyHistoryError(f"{where}: no records in it")
    base: type[Format] | None = None
    if "actual_length" not in mapped.columns.origins:
        is_native = form is None and beginning.has("actual_length")
        base = Native if is_native else find_format(Path(where), beginning, form)
        if base is None:
            hint = nested_hint(beginning.records) or "map it, too: actual_length=PATH"
            raise HistoryHeaderError(f"{where}: no column 'actual_length': {hint}")
    reader = mapped.reader(beginning, base)
    return validate_records(where, reader, beginning, records, columns, findings)


def validate_records(
    path: str,
    form: type[Format] | None,
    beginning: Sample,
    records: Records,
    columns: list[str],
    findings: Findings,
) -> pl.DataFrame:
    """Validate a file record by record: a log of another program, or (None) a history as JSON."""
    used = _used(NATIVE, columns, HISTORY_SCHEMA)
    reader, frames = batches(form or Native, beginning, records, used, findings)
    good = _Validator(NATIVE, used, findings, path).batched(frames, word="")
    try:
        good = reader.settle(good)
    except HistoryError as error:
        raise HistoryError(f"{path}: {error}") from error
    return good.select(
        name
        for name in good.columns
        if name == "actual_length" or good[name].null_count() < len(good)
    )


def _validate_columns(file: RawFile, validator: _Validator) -> pl.DataFrame:
    """Validate a history file, whose columns are read as such: faster than record by record."""
    if file.kind == "jsonl":
        types = {validator.layout.names[c]: HISTORY_SCHEMA[c] for c in validator.used}
        text = {n: t if t.is_nested() else pl.String() for n, t in types.items()}
        return validator.batched(jsonl_batches(file.path, text, validator.findings.add_note))
    names = [name for name in file.present if name]
    if file.frame is None:
        return validator.batched(csv_batches(file.path, names))
    if file.kind == "parquet":
        try:
            with no_panic_reports():
                return validator.stored(file.frame)
        except Failure as error:
            raise damaged_parquet(file.path) from error
    try:
        return validator.lazily(file.frame, lambda rows: line_numbers(file.path, rows))
    except Failure:
        return validator.batched(csv_batches(file.path, names))


def validate_frame(
    frame: pl.LazyFrame,
    layout: Layout,
    columns: Iterable[str],
    findings: Findings,
    where: str = "history",
) -> pl.DataFrame:
    """Return the good rows of a frame called ``where``, as :func:`validate_file` does.

    Raises:
        HistoryError: a required column is missing, or the frame cannot be collected.
    """
    try:
        schema = frame.collect_schema()
        for name in (layout.names[column] for column in layout.required):
            if name not in schema:
                hint = suggestion(name, schema.names())
                raise HistoryHeaderError(f"{where}: no column {name!r}: {hint}")
        used = _used(layout, columns, schema.names())
        raw = frame.select(layout.names[c] for c in used).with_row_index(ROW)
        good = _Validator(layout, used, findings, where).stored(raw)
    except Failure as error:
        error_name = type(error).__name__
        raise HistoryError(f"{where}: the frame cannot be collected ({error_name})") from error
    if not findings.rows:
        raise EmptyHistoryError(f"{where}: the frame has no rows")
    return good


def _used(layout: Layout, columns: Iterable[str], present: Iterable[str]) -> list[str]:
    """Return the history columns to read, in schema order."""
    wanted = {*columns, *layout.required, *CHECKED}
    names = set(present)
    return [c for c in HISTORY_SCHEMA if c in wanted and layout.names.get(c) in names]


@dataclass
class _Validator:
    """The checks of one source, and how its cells are read.

    Attributes:
        layout: where the columns are.
        used: the history columns to read.
        findings: what reading found, added to.
        where: the source, as messages name it.
        reading: how cells are read that may be written in several ways.
        faults: the checks for this way of reading.
    """

    layout: Layout
    used: list[str]
    findings: Findings
    where: str
    reading: CellFormat = PLAIN
    faults: list[Fault] = field(init=False)

    def __post_init__(self) -> None:
        self.faults = faults(self.layout, self.used, self.reading)

    def stored(self, raw: pl.LazyFrame) -> pl.DataFrame:
        """Return the good rows of a typed source (Parquet, a frame); messages count rows from 1."""
        schema = raw.collect_schema()
        check_types(schema, self.layout, self.used, self.where)
        for column in ("arrival_time", "actual_time"):
            name = self.layout.names.get(column)
            if column in self.used and name is not None and schema[name].is_temporal():
                self.findings.add_note(f"{name}: {schema[name]} read as seconds")
        return self.lazily(raw, None)

    def lazily(
        self, raw: pl.LazyFrame, lines: Callable[[list[int]], list[int]] | None
    ) -> pl.DataFrame:
        """Return the good rows of a lazy frame, in streaming passes that never hold a copy.

        Args:
            raw: the columns as stored, with ``ROW``.
            lines: turns row indices into line numbers; None to count rows.
        """
        marked, counts = self._marked(raw)
        total = sum(counts.values())
        bad = {code: n for code, n in counts.items() if code}
        if bad:
            if lines is None:
                self._refuse_text_columns(raw, bad, total)
            first = marked.filter(pl.col(FAULT) > 0).head(KEPT).collect(engine="streaming")
            rows = first.sort(ROW)[ROW].to_list()
            places = [f"line {n}" for n in lines(rows)] if lines else [f"row {r + 1}" for r in rows]
            self._note(first.sort(ROW), places)
            self._keep_reasons(marked.filter(self._reason_test()))
            marked = marked.filter(pl.col(FAULT) == 0)
        good = marked.select(final(self.used)).collect(engine="streaming")
        for code, count in bad.items():
            self.findings.kinds[self.faults[code - 1].kind] += count
        self.findings.rows += total
        return good

    def batched(self, batches: Iterable[pl.DataFrame], word: str = "line ") -> pl.DataFrame:
        """Return the good rows of batches whose ``ROW`` holds line numbers or places in words."""
        good = [pl.DataFrame(schema={c: HISTORY_SCHEMA[c] for c in self.used})]
        for batch in batches:
            marked = self._marked(batch.lazy(), at_once=True)[0].collect()
            bad = marked.filter(pl.col(FAULT) > 0)
            if bad.height:
                first = bad.head(KEPT)
                self._note(first, [f"{word}{place}" for place in first[ROW]])
                self._keep_reasons(bad.lazy().filter(self._reason_test()))
                self.findings.kinds.update(self.faults[code - 1].kind for code in bad[FAULT])
            self.findings.rows += marked.height
            good.append(marked.filter(pl.col(FAULT) == 0).select(final(self.used)))
        return pl.concat(good, rechunk=False)

    def _marked(
        self, raw: pl.LazyFrame, *, at_once: bool = False
    ) -> tuple[pl.LazyFrame, dict[int, int]]:
        """Return the rows marked with their first faults, and the number of rows of each fault.

        Where plain reading finds faults that another way of reading would not, that way is taken
        and noted.
        """
        while True:
            marked = with_fault(typed(raw, self.layout, self.used, self.reading), self.faults)
            if at_once:
                marked = marked.collect().lazy()
            counts, renamed = self._counts(marked)
            better = self._better_reading(counts, marked)
            if better == self.reading:
                self.findings.renamed.update(renamed)
                return marked, counts
            name = self.layout.names.get("arrival_time")
            if better.unit != self.reading.unit:
                self.findings.add_note(f"{name}: read as {NAMES[better.unit]} since 1970")
            if better.iso != self.reading.iso:
                self.findings.add_note(
                    f"{name}: ISO times read as seconds since 1970 (UTC where they say no offset)"
                )
            self.reading, self.faults = better, faults(self.layout, self.used, better)

    def _counts(self, marked: pl.LazyFrame) -> tuple[dict[int, int], Counter[str]]:
        """Return the number of rows of each fault, and of good rows with a renamed reason."""
        has_renamed = self.reading.words and "finish_reason" in self.used
        keys = [FAULT, RENAMED] if has_renamed else [FAULT]
        grouped = marked.group_by(keys).len().collect(engine="streaming")
        counts: Counter[int] = Counter()
        renamed: Counter[str] = Counter()
        for code, *word, count in grouped.iter_rows():
            counts[code] += count
            if word and word[0] is not None and code == 0:
                renamed[word[0]] += count
        return dict(counts), renamed

    def _better_reading(self, counts: dict[int, int], marked: pl.LazyFrame) -> CellFormat:
        """Return how cells should be read, judging by the faults of the present way."""
        reading, faulty = self.reading, {}
        for code, fault in enumerate(self.faults, start=1):
            if code in counts:
                faulty[fault.column, fault.kind] = code
        if ("finish_reason", UNKNOWN_REASON) in faulty and not reading.words:
            reading = replace(reading, words=True)
        if "arrival_time" in self.layout.values:
            return reading
        no_number = faulty.get(("arrival_time", "not a number"))
        if no_number is not None and not reading.iso:
            cells = marked.filter(pl.col(FAULT) == no_number).select(RAW_ARRIVAL)
            if cells.select(iso_seconds(pl.first()).is_not_null().any()).collect().item():
                reading = replace(reading, iso=True)
        # Only where most rows are too large: a single one is a mistake in that row.
        large = counts.get(faulty.get(("arrival_time", "too large"), 0), 0)
        may_rescale = reading.unit == "s" and ("arrival_time", "too large") in faulty
        if may_rescale and 2 * large > sum(counts.values()):
            size = marked.select(pl.col("arrival_time").abs().median()).collect().item()
            reading = replace(reading, unit=epoch_unit(size))
        return reading

    def _reason_test(self) -> pl.Expr:
        codes = [i for i, fault in enumerate(self.faults, start=1) if fault.kind == UNKNOWN_REASON]
        return pl.col(FAULT).is_in(codes)

    def _keep_reasons(self, bad: pl.LazyFrame) -> None:
        if "finish_reason" not in self.used:
            return
        counted = bad.group_by("finish_reason").len().collect()
        for reason, count in counted.iter_rows():
            if is_plain(reason):
                self.findings.reasons[reason] += count

    def _note(self, rows: pl.DataFrame, places: list[str]) -> None:
        for row, place in zip(rows.to_dicts(), places, strict=True):
            self.findings.add_problem(self.where, f"{place}: {describe(row, self.faults)}")

    def _refuse_text_columns(self, raw: pl.LazyFrame, bad: dict[int, int], total: int) -> None:
        """Raise :class:`HistoryHeaderError` for a number column without one number in it.

        It is the wrong column, which is clearer than ``total`` bad rows.
        """
        for code, count in bad.items():
            fault = self.faults[code - 1]
            if fault.kind == "not a number" and count == total:
                name = self.layout.names[fault.column]
                stored = raw.collect_schema()[name]
                message = f"{self.where}: the column {name!r} is {stored}, not numbers"
                raise HistoryHeaderError(message)
