"""The checks of a row as lazy expressions: typed values, and a code for the first fault."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import polars as pl

from sagellm_lifetime.core.errors import HistoryHeaderError
from sagellm_lifetime.core.protocol import FINISH_REASONS, MAX_DURATION_S
from sagellm_lifetime.history.files import BROKEN, ROW
from sagellm_lifetime.history.findings import UNKNOWN_REASON
from sagellm_lifetime.history.reasons import canonical, renamed
from sagellm_lifetime.history.schema import (
    HISTORY_SCHEMA,
    MAX_COUNT,
    MAX_SECONDS,
    NUMBERS,
    REALS,
    Layout,
)
from sagellm_lifetime.history.times import BANDS, NAMES, SCALES, iso_seconds, stored_seconds

FAULT = "__fault"
RENAMED = "__renamed_reason"  # another program's word for the finish reason, else null
RAW_ARRIVAL = "__raw_arrival_time"  # the text, where arrival times may turn out to be ISO
_MOMENTS: dict[str, tuple[type[pl.DataType], ...]] = {
    "arrival_time": (pl.Datetime, pl.Date, pl.Duration),
    "actual_time": (pl.Duration,),
}
"""Stored types of time that a column of seconds may have."""
# Any other text may be a piece of a prompt in the wrong column.
_SHOWN_REASON = r"[A-Za-z][A-Za-z0-9_.-]{0,19}"


@dataclass(frozen=True)
class CellFormat:
    """Format of cells that may be written in several ways; plain reading is tried first.

    Attributes:
        unit: what the numbers of ``arrival_time`` count, a key of ``SCALES``.
        iso: True if its text may be an ISO time.
        words: True if finish reasons may be other programs' words.
    """

    unit: str = "s"
    iso: bool = False
    words: bool = False


PLAIN = CellFormat()
EVERY_WAY = CellFormat(iso=True, words=True)


@dataclass(frozen=True)
class Fault:
    """Kind of fault of a row; faults of one ``kind`` are counted together."""

    kind: str
    column: str
    text: str  # of the message; {value} and {cap} are filled in
    test: pl.Expr


def check_types(schema: pl.Schema, layout: Layout, columns: Iterable[str], where: str) -> None:
    """Raise :class:`HistoryHeaderError` for stored types that do not fit: a date as a length."""
    for column in columns:
        name, stored, wanted = layout.names[column], schema[layout.names[column]], "text"
        if isinstance(stored, pl.Null):
            continue
        is_text = isinstance(stored, pl.String | pl.Categorical | pl.Enum)
        if column in NUMBERS:
            fits, wanted = is_text or stored.is_numeric() or column in layout.values, "a number"
            fits |= isinstance(stored, _MOMENTS.get(column, ()))
        elif HISTORY_SCHEMA[column].is_nested():
            inner = stored.inner if isinstance(stored, pl.List | pl.Array) else pl.Binary()
            fits = inner.is_integer() or isinstance(inner, pl.Null)
            fits, wanted = fits or (column in REALS and inner.is_numeric()), _list_of(column)
        else:
            fits = is_text or stored.is_integer() or isinstance(stored, pl.Boolean)
        if not fits:
            raise HistoryHeaderError(f"{where}: the column {name!r} is {stored}, not {wanted}")


def _list_of(column: str) -> str:
    return "a list of numbers" if column in REALS else "a list of whole numbers"


def typed(
    frame: pl.LazyFrame, layout: Layout, columns: Iterable[str], reading: CellFormat = PLAIN
) -> pl.LazyFrame:
    """Return ``ROW``, the typed history columns, ``__filled_*`` and ``BROKEN`` of raw columns.

    Numbers are Float64; a cell that is no number becomes null, and ``__filled_*`` is True if it
    held anything.
    """
    schema = frame.collect_schema()
    expressions = [pl.col(ROW)]
    for column in columns:
        raw, stored = pl.col(layout.names[column]), schema[layout.names[column]]
        if column in NUMBERS:
            filled = raw.is_not_null()
            if stored.is_temporal():
                value = stored_seconds(raw, stored)
            else:
                if not stored.is_numeric():
                    raw = raw.cast(pl.String).str.strip_chars()
                    filled &= raw != ""
                value = raw.cast(pl.Float64, strict=False)
                if column == "arrival_time":
                    value = _arrival(raw, value, stored, reading)
                    if not stored.is_numeric():
                        expressions.append(raw.alias(RAW_ARRIVAL))
            value = layout.values.get(column, value)
            expressions += [value.alias(column), filled.alias(f"__filled_{column}")]
        elif column == "finish_reason":
            text = raw.cast(pl.String).str.strip_chars()
            reason = canonical(text) if reading.words else pl.when(text != "").then(text)
            # A missing reason stays null; reasons.finish_reason fills it in after the checks.
            expressions.append(reason.alias(column))
            if reading.words:
                expressions.append(renamed(text).alias(RENAMED))
        else:
            if stored == pl.List(pl.UInt64):  # hashes without their top bit, as in a request
                raw = raw.list.eval(pl.element() & pl.lit(2**63 - 1, pl.UInt64))
            expressions.append(raw.cast(HISTORY_SCHEMA[column], strict=False).alias(column))
    expressions.append(
        pl.col(BROKEN) if BROKEN in schema else pl.lit(None, pl.String).alias(BROKEN)
    )
    return frame.select(expressions)


def _arrival(raw: pl.Expr, number: pl.Expr, stored: pl.DataType, reading: CellFormat) -> pl.Expr:
    seconds = number / SCALES[reading.unit]
    if reading.iso and not stored.is_numeric():
        return pl.coalesce(seconds, iso_seconds(raw))
    return seconds


def faults(layout: Layout, columns: Iterable[str], reading: CellFormat = PLAIN) -> list[Fault]:
    """Return the checks of a typed frame; a row is described by the first one that it fails."""
    columns = list(columns)
    checks = [Fault("malformed", "", "{value}", pl.col(BROKEN).is_not_null())]
    for column in (c for c in columns if c in NUMBERS):
        label, value = layout.names[column], pl.col(column)
        filled = pl.col(f"__filled_{column}")
        is_whole = HISTORY_SCHEMA[column].is_integer()
        limit = MAX_COUNT if is_whole else MAX_SECONDS
        if column == "actual_time":
            limit = MAX_DURATION_S
        noun = "a time" if column in layout.values and not is_whole else "a number"
        if column == "arrival_time" and column not in layout.values:
            noun = "a number of seconds or an ISO time"
        tests = [
            ("missing", "is missing", ~filled if column in layout.required else None),
            ("not a number", f"is not {noun}", filled & value.is_null()),
            ("NaN", "is NaN", value.is_nan()),
            ("infinite", "is infinite", value.is_infinite()),
            # Times count from any origin: an arrival before it is fine.
            ("negative", "{value} is negative", value < 0 if column != "arrival_time" else None),
            ("too large", f"{{value}} is over {limit}", value.abs() > limit),
            ("not whole", "{value} is not a whole number", value % 1 != 0 if is_whole else None),
        ]
        checks += [Fault(k, column, f"{label} {t}", e) for k, t, e in tests if e is not None]
        if column == "arrival_time" and reading.unit != "s":
            low = BANDS[reading.unit][0] / SCALES[reading.unit]
            text = f"{label} is not in {NAMES[reading.unit]} like most of the others"
            checks.append(Fault("another unit", column, text, value.abs() < low))
    for column in (c for c in columns if HISTORY_SCHEMA[c].is_nested()):
        items = pl.col(column).list
        text = f"{layout.names[column]} is not {_list_of(column)}"
        test = items.len() != items.drop_nulls().list.len()
        checks.append(Fault(f"not {_list_of(column)}", column, text, test))
    if {"actual_length", "max_length"} <= set(columns):
        text = f"{layout.names['actual_length']} {{value}} is over max_length {{cap}}"
        test = pl.col("actual_length") > pl.col("max_length")
        checks.append(Fault("over max_length", "actual_length", text, test))
    if "finish_reason" in columns:
        test = ~pl.col("finish_reason").is_in(FINISH_REASONS)
        text = f"{layout.names['finish_reason']} {{value}}is unknown"
        checks.append(Fault(UNKNOWN_REASON, "finish_reason", text, test))
    return checks


def with_fault(frame: pl.LazyFrame, checks: list[Fault]) -> pl.LazyFrame:
    """Return the frame with ``FAULT``: the number (from 1) of a row's first fault, 0 for none."""
    numbered = list(enumerate((fault.test for fault in checks), start=1))
    code = reduce(
        lambda rest, item: pl.when(item[1]).then(pl.lit(item[0], pl.UInt8)).otherwise(rest),
        reversed(numbered),
        pl.lit(0, pl.UInt8),
    )
    return frame.with_columns(code.alias(FAULT))


def describe(row: dict[str, Any], checks: list[Fault]) -> str:
    """Return the fault of a bad row in words, with numbers and plain reasons but no other text."""
    fault: Fault = checks[row[FAULT] - 1]
    if fault.kind == "malformed":
        return str(row[BROKEN])
    value = row[fault.column]
    if isinstance(value, list):
        return fault.text
    if fault.kind == UNKNOWN_REASON:
        return fault.text.replace("{value}", f"{value!r} " if is_plain(value) else "")
    cap = row.get("max_length")
    return fault.text.replace("{value}", _number(value)).replace("{cap}", _number(cap))


def is_plain(reason: str) -> bool:
    """Return True if an unknown finish reason is one short word, which a message may repeat."""
    return re.fullmatch(_SHOWN_REASON, reason) is not None


def _number(value: float | None) -> str:
    if value is not None and abs(value) < 1e15 and value.is_integer():
        return str(int(value))
    return f"{value:g}" if value is not None else "unknown"


def final(columns: Iterable[str]) -> list[pl.Expr]:
    """Return the history columns of a typed frame in their final types."""
    return [pl.col(column).cast(HISTORY_SCHEMA[column], strict=False) for column in columns]
