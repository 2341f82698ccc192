"""What makes a row bad, as lazy expressions: typed values, and one code for the first fault."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import polars as pl

from sagellm_lifetime.core.errors import HistoryHeaderError
from sagellm_lifetime.core.history.files import BROKEN, ROW
from sagellm_lifetime.core.history.schema import (
    HISTORY_SCHEMA,
    MAX_COUNT,
    MAX_SECONDS,
    NUMBERS,
    Layout,
)
from sagellm_lifetime.core.protocol import FINISH_REASONS, MAX_DURATION_S
from sagellm_lifetime.core.signals import SIGNALS

FAULT = "__fault"
_SHOWN_REASON = r"^[A-Za-z_-]{1,20}$"  # anything else may be a piece of a prompt gone astray


@dataclass(frozen=True)
class Fault:
    """One way a row can be bad; ``kind`` is what is counted."""

    kind: str
    column: str
    text: str  # of the message; {value} and {cap} are filled in
    test: pl.Expr


def check_types(schema: pl.Schema, layout: Layout, columns: Iterable[str], where: str) -> None:
    """Refuse stored types that cannot mean the column: a date as a length, a number as a list."""
    for column in columns:
        name, stored, want = layout.names[column], schema[layout.names[column]], "text"
        if isinstance(stored, pl.Null):
            continue
        text = isinstance(stored, pl.String | pl.Categorical | pl.Enum)
        if column in NUMBERS:
            ok, want = text or stored.is_numeric() or column in layout.values, "a number"
        elif HISTORY_SCHEMA[column].is_nested():
            inner = stored.inner if isinstance(stored, pl.List | pl.Array) else pl.Binary()
            ok = inner.is_integer() or isinstance(inner, pl.Null)
            ok, want = ok or (column in SIGNALS and inner.is_numeric()), _list_of(column)
        else:
            ok = text or stored.is_integer() or isinstance(stored, pl.Boolean)
        if not ok:
            raise HistoryHeaderError(f"{where}: the column {name!r} is {stored}, not {want}")


def _list_of(column: str) -> str:
    return "a list of numbers" if column in SIGNALS else "a list of whole numbers"


def typed(frame: pl.LazyFrame, layout: Layout, columns: Iterable[str]) -> pl.LazyFrame:
    """Raw columns -> ``ROW``, the history columns (numbers as Float64), ``__filled_*``, ``BROKEN``.

    A cell that is no number becomes null; whether it was filled is kept beside it.
    """
    schema = frame.collect_schema()
    out = [pl.col(ROW)]
    for column in columns:
        raw, stored = pl.col(layout.names[column]), schema[layout.names[column]]
        if column in NUMBERS:
            filled = raw.is_not_null()
            if not stored.is_numeric():
                raw = raw.cast(pl.String).str.strip_chars()
                filled &= raw != ""
            value = layout.values.get(column, raw.cast(pl.Float64, strict=False))
            out += [value.alias(column), filled.alias(f"__filled_{column}")]
        elif column == "finish_reason":
            text = raw.cast(pl.String).str.strip_chars()
            out.append(pl.when(text != "").then(text).otherwise(pl.lit("stop")).alias(column))
        else:
            if stored == pl.List(pl.UInt64):  # hashes: the top bit goes, as it does in a request
                raw = raw.list.eval(pl.element() & pl.lit(2**63 - 1, pl.UInt64))
            out.append(raw.cast(HISTORY_SCHEMA[column], strict=False).alias(column))
    out.append(pl.col(BROKEN) if BROKEN in schema else pl.lit(None, pl.String).alias(BROKEN))
    return frame.select(out)


def faults(layout: Layout, columns: Iterable[str]) -> list[Fault]:
    """Every check on a typed frame, in the order in which a row's first fault is named."""
    columns = list(columns)
    found = [Fault("malformed", "", "{value}", pl.col(BROKEN).is_not_null())]
    for column in (c for c in columns if c in NUMBERS):
        label, value = layout.names[column], pl.col(column)
        filled = pl.col(f"__filled_{column}")
        whole = HISTORY_SCHEMA[column].is_integer()
        limit = MAX_COUNT if whole else MAX_SECONDS
        if column == "actual_time":
            limit = MAX_DURATION_S
        noun = "a time" if column in layout.values and not whole else "a number"
        checks = [
            ("missing", "is missing", ~filled if column in layout.required else None),
            ("not a number", f"is not {noun}", filled & value.is_null()),
            ("NaN", "is NaN", value.is_nan()),
            ("infinite", "is infinite", value.is_infinite()),
            # Times count from any origin: an arrival before it is fine.
            ("negative", "{value} is negative", value < 0 if column != "arrival_time" else None),
            ("too large", f"{{value}} is over {limit}", value.abs() > limit),
            ("not whole", "{value} is not a whole number", value % 1 != 0 if whole else None),
        ]
        found += [Fault(k, column, f"{label} {t}", e) for k, t, e in checks if e is not None]
    for column in (c for c in columns if HISTORY_SCHEMA[c].is_nested()):
        held = pl.col(column).list
        text = f"{layout.names[column]} is not {_list_of(column)}"
        test = held.len() != held.drop_nulls().list.len()
        found.append(Fault(f"not {_list_of(column)}", column, text, test))
    if {"actual_length", "max_length"} <= set(columns):
        text = f"{layout.names['actual_length']} {{value}} is over max_length {{cap}}"
        test = pl.col("actual_length") > pl.col("max_length")
        found.append(Fault("over max_length", "actual_length", text, test))
    if "finish_reason" in columns:
        test = ~pl.col("finish_reason").is_in(FINISH_REASONS)
        text = f"{layout.names['finish_reason']} {{value}}is unknown"
        found.append(Fault("unknown finish reason", "finish_reason", text, test))
    return found


def with_fault(frame: pl.LazyFrame, found: list[Fault]) -> pl.LazyFrame:
    """Adds ``FAULT``: the number (from 1) of the row's first fault, 0 for a good row."""
    numbered = list(enumerate((fault.test for fault in found), start=1))
    code = reduce(
        lambda rest, item: pl.when(item[1]).then(pl.lit(item[0], pl.UInt8)).otherwise(rest),
        reversed(numbered),
        pl.lit(0, pl.UInt8),
    )
    return frame.with_columns(code.alias(FAULT))


def describe(row: dict[str, Any], found: list[Fault]) -> str:
    """The fault of one bad row in words; shows numbers and plain reasons, never other text."""
    fault: Fault = found[row[FAULT] - 1]
    if fault.kind == "malformed":
        return str(row[BROKEN])
    value = row[fault.column]
    if isinstance(value, list):
        return fault.text
    if fault.kind == "unknown finish reason":
        shown = pl.select(pl.lit(value).str.contains(_SHOWN_REASON)).item()
        return fault.text.replace("{value}", f"{value!r} " if shown else "")
    cap = row.get("max_length")
    return fault.text.replace("{value}", _number(value)).replace("{cap}", _number(cap))


def _number(value: float | None) -> str:
    if value is not None and abs(value) < 1e15 and value.is_integer():
        return str(int(value))
    return f"{value:g}" if value is not None else "unknown"


def final(columns: Iterable[str]) -> list[pl.Expr]:
    """The history columns in their own types, from a typed frame."""
    return [pl.col(column).cast(HISTORY_SCHEMA[column], strict=False) for column in columns]
