"""Splitting one opened file (or frame) into its good rows and a tally of its bad ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, HistoryHeaderError
from sagellm_lifetime.core.history.checks import (
    FAULT,
    Fault,
    check_types,
    describe,
    faults,
    final,
    typed,
    with_fault,
)
from sagellm_lifetime.core.history.csvlines import csv_batches, line_numbers
from sagellm_lifetime.core.history.files import (
    ROW,
    EmptyHistoryError,
    RawFile,
    damaged_parquet,
    open_file,
)
from sagellm_lifetime.core.history.jsonl import jsonl_batches
from sagellm_lifetime.core.history.schema import HISTORY_SCHEMA, Layout, suggestion
from sagellm_lifetime.core.history.tally import KEPT, Tally

CHECKED = ("max_length", "finish_reason")
"""Columns that are read whatever is asked for: the checks and the finish reasons need them."""
Failure = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def sift_path(path: Path, layout: Layout, columns: Iterable[str], tally: Tally) -> pl.DataFrame:
    """The good rows of one file; what is wrong goes to the tally."""
    before = tally.rows
    file = open_file(path, layout, {*columns, *CHECKED})
    sieve = _Sieve(layout, _used(layout, columns, file.present), tally, str(path))
    try:
        good = _sift_file(file, sieve)
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror or 'cannot be read'}") from error
    if tally.rows == before:
        raise EmptyHistoryError(f"{path}: the file has no rows")
    return good


def _sift_file(file: RawFile, sieve: _Sieve) -> pl.DataFrame:
    if file.kind == "jsonl":
        types = {sieve.layout.names[c]: HISTORY_SCHEMA[c] for c in sieve.used}
        text = {n: t if t.is_nested() else pl.String() for n, t in types.items()}
        return sieve.batches(jsonl_batches(file.path, text))
    if file.kind == "parquet":
        try:
            return sieve.stored(file.frame)
        except Failure as error:
            raise damaged_parquet(file.path) from error
    try:
        return sieve.lazily(file.frame, lambda rows: line_numbers(file.path, rows))
    except Failure:
        return sieve.batches(csv_batches(file.path, [name for name in file.present if name]))


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
    found: list[Fault] = field(init=False)

    def __post_init__(self) -> None:
        self.found = faults(self.layout, self.used)

    def stored(self, raw: pl.LazyFrame) -> pl.DataFrame:
        """A source with types of its own (Parquet, a frame): rows count from 1."""
        check_types(raw.collect_schema(), self.layout, self.used, self.where)
        return self.lazily(raw, None)

    def lazily(
        self, raw: pl.LazyFrame, lines: Callable[[list[int]], list[int]] | None
    ) -> pl.DataFrame:
        """Count, describe, collect: up to three streaming passes, so that no copy is ever held."""
        marked = with_fault(typed(raw, self.layout, self.used), self.found)
        counts = dict(marked.group_by(FAULT).len().collect(engine="streaming").iter_rows())
        total = sum(counts.values())
        bad = {code: n for code, n in counts.items() if code}
        if bad:
            if lines is None:
                self._refuse_text_columns(raw, bad, total)
            first = marked.filter(pl.col(FAULT) > 0).head(KEPT).collect(engine="streaming")
            rows = first.sort(ROW)[ROW].to_list()
            places = [f"line {n}" for n in lines(rows)] if lines else [f"row {r + 1}" for r in rows]
            self._note(first.sort(ROW), places)
            marked = marked.filter(pl.col(FAULT) == 0)
        good = marked.select(final(self.used)).collect(engine="streaming")
        for code, count in bad.items():
            self.tally.kinds[self.found[code - 1].kind] += count
        self.tally.rows += total
        return good

    def batches(self, batches: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """The same over batches that carry their line numbers already."""
        kept = [pl.DataFrame(schema={c: HISTORY_SCHEMA[c] for c in self.used})]
        for batch in batches:
            lazy = typed(batch.lazy(), self.layout, self.used)
            marked = with_fault(lazy, self.found).collect()
            bad = marked.filter(pl.col(FAULT) > 0)
            first = bad.head(KEPT)
            self._note(first, [f"line {line}" for line in first[ROW]])
            self.tally.kinds.update(self.found[code - 1].kind for code in bad[FAULT])
            self.tally.rows += marked.height
            kept.append(marked.filter(pl.col(FAULT) == 0).select(final(self.used)))
        return pl.concat(kept, rechunk=False)

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
