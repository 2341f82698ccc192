"""Rows of a record: conversion of a completion to the history format, and a report of changes.

The same check applies before a row is written and after a line is read, so that ``train`` accepts a
recorded history. An invalid cell is left out, and a lone surrogate in a text becomes U+FFFD; each
change is reported by column and kind. A row without a length, or with an unknown finish reason, is
refused, since nothing can be learned from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.protocol import FINISH_REASONS, MAX_DURATION_S
from sagellm_lifetime.history.schema import HISTORY_SCHEMA, MAX_COUNT, MAX_SECONDS

LENGTH: Final = "actual_length"
_REPLACEMENT: Final = "\ufffd"
_TOP_BIT: Final = 2**63
_NO_COLUMN: Final = "a column of another format"


class RowError(ValueError):
    """A completion that cannot be recorded; the message does not quote its content."""


class _CellError(ValueError):
    """A value that its column cannot hold."""


def fit(row: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return ``row`` in the history format, and the cells that were left out or replaced.

    Args:
        row: history column -> value; ``None`` if unknown.

    Returns:
        The row, without empty cells; and ``"COLUMN: PROBLEM"`` for each changed cell.

    Raises:
        RowError: if it has no length, or an unknown finish reason.
    """
    fitted: dict[str, Any] = {}
    changed: list[str] = []
    for column, value in row.items():
        if value is None:
            continue
        check = _CHECKS.get(column)
        if check is None:
            changed.append(_NO_COLUMN)
            continue
        try:
            fitted[column] = check(value)
        except _CellError as error:
            changed.append(f"{column}: {error}")
            continue
        if isinstance(value, str) and fitted[column] != value:
            changed.append(f"{column}: a lone surrogate")
    if LENGTH not in fitted:
        raise RowError(f"{LENGTH} is missing or no length")
    if fitted.get("finish_reason", "stop") not in FINISH_REASONS:
        raise RowError("the finish reason is unknown")
    if fitted.get("max_length", fitted[LENGTH]) < fitted[LENGTH]:
        del fitted["max_length"]
        changed.append("max_length: below the actual length")
    return fitted, changed


def to_line(row: dict[str, Any]) -> bytes:
    """Return a fitted row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> tuple[dict[str, Any], list[str]]:
    """Return the result of :func:`fit` for a line of JSON.

    Raises:
        RowError: if it is no JSON object, or not a valid row.
    """
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise RowError("is not JSON") from None
    if not isinstance(row, dict):
        raise RowError("is not a JSON object")
    return fit(row)


def _text(value: Any) -> str:
    if type(value) is not str:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise _CellError("not text")
        value = str(value)
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        kept = (
            _REPLACEMENT if "\ud800" <= character <= "\udfff" else character for character in value
        )
        return "".join(kept)
    return value


def _count(value: Any) -> int:
    if type(value) is not int:
        if not isinstance(value, int | float) or isinstance(value, bool) or not _is_whole(value):
            raise _CellError("not a whole number")
        value = int(value)
    if not 0 <= value <= MAX_COUNT:
        raise _CellError("negative or too large")
    return value


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _CellError("not a number")
    if isinstance(value, float) and not isfinite(value):
        raise _CellError("not finite")
    if not -MAX_SECONDS <= value <= MAX_SECONDS:
        raise _CellError("too large")
    return float(value)


def _duration(value: Any) -> float:
    number = _number(value)
    if not 0.0 <= number <= MAX_DURATION_S:
        raise _CellError("negative or too large")
    return number


def _whole_numbers(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not set(map(type, value)) <= {int}:
        raise _CellError("not a list of whole numbers")
    if not value:
        return []
    smallest, largest = min(value), max(value)
    if smallest < -_TOP_BIT or largest >= 2 * _TOP_BIT:
        raise _CellError("over 64 bits")
    if largest >= _TOP_BIT:  # clear the top bit of unsigned hashes, as in a request
        return [number if number < _TOP_BIT else number - _TOP_BIT for number in value]
    return value if isinstance(value, list) else list(value)


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, list | tuple) or not set(map(type, value)) <= {int, float}:
        raise _CellError("not a list of numbers")
    return [_number(number) for number in value]


def _check_of(column: str, dtype: pl.DataType) -> Callable[[Any], Any]:
    if dtype == pl.List(pl.Int64()):
        return _whole_numbers
    if dtype.is_nested():
        return _numbers
    if dtype.is_integer():
        return _count
    if dtype.is_numeric():
        # Arrival times may have any origin, so they may be negative.
        return _number if column == "arrival_time" else _duration
    return _text


_CHECKS: Final = {column: _check_of(column, dtype) for column, dtype in HISTORY_SCHEMA.items()}
