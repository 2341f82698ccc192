"""Splitting one opened file (or frame) into its good rows and a tally of its bad ones."""

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
    damaged_parquet,
    kind_of,
    open_file,
)
from sagellm_lifetime.history.findings import KEPT, UNKNOWN_REASON, Tally, left_out
from sagellm_lifetime.history.foreign import batches, find_format
from sagellm_lifetime.history.formats import Format
from sagellm_lifetime.history.formats.native import Native
from sagellm_lifetime.history.jsonl import jsonl_batches
from sagellm_lifetime.history.names import nested_hint, public_trace, suggestion
from sagellm_lifetime.history.quiet import no_panic_reports
from sagellm_lifetime.history.records import Sample, sample
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, NATIVE, Layout
from sagellm_lifetime.history.times import NAMES, epoch_unit, iso_seconds

CHECKED = ("max_length", "finish_reason")
"""Columns that are read whatever is asked for: the checks and the finish reasons need them."""
Failure = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def sift_path(
    path: Path, layout: Layout, columns: Iterable[str], tally: Tally, form: str | None = None
) -> pl.DataFrame:
    """Return the good rows of one file; what is wrong, left out or assumed goes to the tally.

    Args:
        path: the file.
        layout: where its columns are; a file that has not those of a history may be a log of
            another program, and is then read as that.
        columns: the history columns that are wanted.
        tally: keeps what there is to say.
        form: the name of a foreign format; None to recognise it by its content.
    """
    before = tally.rows
    try:
        good = _sift_any(path, layout, [*columns, *CHECKED], tally, form)
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or 'cannot be read'}") from error
    if tally.rows == before:
        if tally.left_out:
            raise EmptyHistoryError(f"{path}: no request in it ({left_out(tally)})")
        raise EmptyHistoryError(f"{path}: the file has no rows")
    return good


def _sift_any(
    path: Path, layout: Layout, columns: list[str], tally: Tally, form: str | None
) -> pl.DataFrame:
    if form is None and kind_of(path) != "json":
        try:
            file = open_file(path, layout, columns)
        except MissingColumnError as error:
            if layout.foreign or public_trace(error.present) is not None:
                raise
            beginning = sample(path)
            found = find_format(path, beginning)
            if found is None:
                hint = nested_hint(beginning.records)
                raise HistoryHeaderError(f"{error.what}: {hint}") if hint else error from None
            return _sift_foreign(path, found, beginning, columns, tally)
        tally.ignored.update(dict.fromkeys(file.others))
        sieve = _Sieve(layout, _used(layout, columns, file.present), tally, str(path))
        return _sift_file(file, sieve)
    beginning = sample(path)
    if not beginning.records and kind_of(path) != "csv":
        raise EmptyHistoryError(f"{path}: no records in it (expected JSON objects)")
    if form is None and "actual_length" in beginning.keys:
        return _sift_foreign(path, None, beginning, columns, tally)
    found = find_format(path, beginning, form)
    if found is None:
        hint = nested_hint(beginning.records) or suggestion("actual_length", beginning.keys)
        raise MissingColumnError(f"{path}: no column 'actual_length'", hint, beginning.keys)
    return _sift_foreign(path, found, beginning, columns, tally)


def _sift_foreign(
    path: Path, form: type[Format] | None, beginning: Sample, columns: list[str], tally: Tally
) -> pl.DataFrame:
    """Read a file record by record: a log of another program, or (None) a history as JSON."""
    used = _used(NATIVE, columns, HISTORY_SCHEMA)
    reader, frames = batches(path, form or Native, beginning, used, tally)
    good = _Sieve(NATIVE, used, tally, str(path)).batches(frames, word="")
    try:
        good = reader.settle(good)
    except HistoryError as error:
        raise HistoryError(f"{path}: {error}") from error
    return good.select(
        name
        for name in good.columns
        if name == "actual_length" or good[name].null_count() < len(good)
    )


def _sift_file(file: RawFile, sieve: _Sieve) -> pl.DataFrame:
    if file.kind == "jsonl":
        types = {sieve.layout.names[c]: HISTORY_SCHEMA[c] for c in sieve.used}
        text = {n: t if t.is_nested() else pl.String() for n, t in types.items()}
        return sieve.batches(jsonl_batches(file.path, text, sieve.tally.say))
    names = [name for name in file.present if name]
    if file.frame is None:
        return sieve.batches(csv_batches(file.path, names))
    if file.kind == "parquet":
        try:
            with no_panic_reports():
                return sieve.stored(file.frame)
        except Failure as error:
            raise damaged_parquet(file.path) from error
    try:
        return sieve.lazily(file.frame, lambda rows: line_numbers(file.path, rows))
    except Failure:
        return sieve.batches(csv_batches(file.path, names))


def sift_frame(
    frame: pl.LazyFrame, layout: Layout, columns: Iterable[str], tally: Tally
) -> pl.DataFrame:
    """The same for a frame in memory, or a lazy one."""
    where = "history"
    try:
        schema = frame.collect_schema()
        for name in (layout.names[column] for column in layout.required):
            if name not in schema:
                hint = suggestion(name, schema.names())
                raise HistoryHeaderError(f"{where}: no column {name!r}: {hint}")
        used = _used(layout, columns, schema.names())
        raw = frame.select(layout.names[c] for c in used).with_row_index(ROW)
        good = _Sieve(layout, used, tally, where).stored(raw)
    except Failure as error:
        kind = type(error).__name__
        raise HistoryError(f"{where}: the frame cannot be collected ({kind})") from error
    if not tally.rows:
        raise EmptyHistoryError(f"{where}: the frame has no rows")
    return good


def _used(layout: Layout, columns: Iterable[str], present: Iterable[str]) -> list[str]:
    """The columns to read, in schema order."""
    wanted = {*columns, *layout.required, *CHECKED}
    there = set(present)
    return [c for c in HISTORY_SCHEMA if c in wanted and layout.names.get(c) in there]


@dataclass
class _Sieve:
    layout: Layout
    used: list[str]
    tally: Tally
    where: str
    reading: CellFormat = PLAIN
    found: list[Fault] = field(init=False)

    def __post_init__(self) -> None:
        self.found = faults(self.layout, self.used, self.reading)

    def stored(self, raw: pl.LazyFrame) -> pl.DataFrame:
        """A source with types of its own (Parquet, a frame): rows count from 1."""
        schema = raw.collect_schema()
        check_types(schema, self.layout, self.used, self.where)
        for column in ("arrival_time", "actual_time"):
            name = self.layout.names.get(column)
            if column in self.used and name is not None and schema[name].is_temporal():
                self.tally.say(f"{name}: {schema[name]} read as seconds")
        return self.lazily(raw, None)

    def lazily(
        self, raw: pl.LazyFrame, lines: Callable[[list[int]], list[int]] | None
    ) -> pl.DataFrame:
        """Count, describe, collect: a few streaming passes, so that no copy is ever held."""
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
            self.tally.kinds[self.found[code - 1].kind] += count
        self.tally.rows += total
        return good

    def batches(self, batches: Iterable[pl.DataFrame], word: str = "line ") -> pl.DataFrame:
        """The same over batches that carry their line numbers (or places in words) already."""
        kept = [pl.DataFrame(schema={c: HISTORY_SCHEMA[c] for c in self.used})]
        for batch in batches:
            marked = self._marked(batch.lazy(), at_once=True)[0].collect()
            bad = marked.filter(pl.col(FAULT) > 0)
            if bad.height:
                first = bad.head(KEPT)
                self._note(first, [f"{word}{place}" for place in first[ROW]])
                self._keep_reasons(bad.lazy().filter(self._reason_test()))
                self.tally.kinds.update(self.found[code - 1].kind for code in bad[FAULT])
            self.tally.rows += marked.height
            kept.append(marked.filter(pl.col(FAULT) == 0).select(final(self.used)))
        return pl.concat(kept, rechunk=False)

    def _marked(
        self, raw: pl.LazyFrame, *, at_once: bool = False
    ) -> tuple[pl.LazyFrame, dict[int, int]]:
        """Mark the rows with their faults, and count those.

        Cells that are not plain are first met as faults: they are then read in the other ways that
        people write them, and what that means is said.
        """
        while True:
            marked = with_fault(typed(raw, self.layout, self.used, self.reading), self.found)
            if at_once:
                marked = marked.collect().lazy()
            counts, renamed = self._counts(marked)
            better = self._better_reading(counts, marked)
            if better == self.reading:
                self.tally.renamed.update(renamed)
                return marked, counts
            name = self.layout.names.get("arrival_time")
            if better.unit != self.reading.unit:
                self.tally.say(f"{name}: read as {NAMES[better.unit]} since 1970")
            if better.iso != self.reading.iso:
                self.tally.say(
                    f"{name}: ISO times read as seconds since 1970 (UTC where they say no offset)"
                )
            self.reading, self.found = better, faults(self.layout, self.used, better)

    def _counts(self, marked: pl.LazyFrame) -> tuple[dict[int, int], Counter[str]]:
        """Return the number of rows of each fault, and of good rows with a renamed reason."""
        words = self.reading.words and "finish_reason" in self.used
        keys = [FAULT, RENAMED] if words else [FAULT]
        grouped = marked.group_by(keys).len().collect(engine="streaming")
        counts: Counter[int] = Counter()
        renamed: Counter[str] = Counter()
        for code, *word, count in grouped.iter_rows():
            counts[code] += count
            if word and word[0] is not None and code == 0:
                renamed[word[0]] += count
        return dict(counts), renamed

    def _better_reading(self, counts: dict[int, int], marked: pl.LazyFrame) -> CellFormat:
        """Return how cells should be read, from the faults that the present way gives."""
        reading, faulty = self.reading, {}
        for code, fault in enumerate(self.found, start=1):
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
        # Most rows, and not one: a single moment that is too large is a mistake in that row.
        large = counts.get(faulty.get(("arrival_time", "too large"), 0), 0)
        tried = reading.unit != "s" or ("arrival_time", "too large") not in faulty
        if not tried and 2 * large > sum(counts.values()):
            size = marked.select(pl.col("arrival_time").abs().median()).collect().item()
            reading = replace(reading, unit=epoch_unit(size))
        return reading

    def _reason_test(self) -> pl.Expr:
        codes = [i for i, fault in enumerate(self.found, start=1) if fault.kind == UNKNOWN_REASON]
        return pl.col(FAULT).is_in(codes)

    def _keep_reasons(self, bad: pl.LazyFrame) -> None:
        if "finish_reason" not in self.used:
            return
        counted = bad.group_by("finish_reason").len().collect()
        for reason, count in counted.iter_rows():
            if is_plain(reason):
                self.tally.reasons[reason] += count

    def _note(self, rows: pl.DataFrame, places: list[str]) -> None:
        for row, place in zip(rows.to_dicts(), places, strict=True):
            self.tally.note(self.where, f"{place}: {describe(row, self.found)}")

    def _refuse_text_columns(self, raw: pl.LazyFrame, bad: dict[int, int], total: int) -> None:
        """A text column without one number in it is the wrong column, not ``total`` bad rows."""
        for code, count in bad.items():
            fault = self.found[code - 1]
            if fault.kind == "not a number" and count == total:
                name = self.layout.names[fault.column]
                stored = raw.collect_schema()[name]
                message = f"{self.where}: the column {name!r} is {stored}, not numbers"
                raise HistoryHeaderError(message)
