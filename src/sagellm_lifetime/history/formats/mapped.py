"""A log of any form, read by a mapping of history columns to paths (``--map``).

Where ``actual_length`` is mapped, the record is read by the mapping and by columns that have a
history's own names. Where it is not, the log must be of a known format, and the mapped columns
replace those of that format. The unit of a time is that of the mapping, else of its name, else
inferred from its type and size, and always noted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any, ClassVar, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, HistoryHeaderError
from sagellm_lifetime.core.protocol import MAX_DURATION_S
from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.formats.base import Format, Row
from sagellm_lifetime.history.formats.base import number as as_number
from sagellm_lifetime.history.formats.native import Native
from sagellm_lifetime.history.mapping import (
    ABSENT,
    TIMES,
    ColumnMap,
    Origin,
    named_unit,
    nearest_path,
    reach,
    top,
)
from sagellm_lifetime.history.records import Broken, Record, Sample
from sagellm_lifetime.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.history.times import (
    EPOCH,
    NAMES,
    SCALES,
    epoch_unit,
    moment,
    plausible_unit,
    seconds_per_token,
    unit_by_pace,
)

_WITH_UNIT: Final = re.compile(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(ns|us|µs|ms|s)\s*")
_PACE: Final = ("actual_time", "actual_length")
_PLACE: Final = re.compile(r"\[-?\d+\]")


@dataclass
class MappedLog:
    """A mapping applied to the files of one log: columns with values, and the units of times.

    Attributes:
        columns: the mapping.
        present: mapped columns whose path some record has.
        filled: number of values of each mapped column, empty ones not counted.
        usable: number of them that were of a type that fits.
        faults: the first fault of each mapped column.
        units: unit of each time, once it is known; the same for all files.
        records: first records of the log, for advice.
        large_unit: unit of durations that are too large to be seconds, by the first records.
        has_ends: a duration was made of a start and an end.
    """

    columns: ColumnMap
    present: set[str] = field(default_factory=set)
    filled: Counter[str] = field(default_factory=Counter)
    usable: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    records: tuple[Record, ...] = ()
    large_unit: str | None = None
    has_ends: bool = False

    def reader(self, beginning: Sample, base: type[Format] | None) -> type[Format]:
        """Return the format of one file: the mapping on top of ``base``, None where all is mapped.

        Args:
            beginning: the first records of the file.
            base: the format that reads what is not mapped.
        """
        self.records = (*self.records, *beginning.records)[:20]
        self.columns = ColumnMap(self._completed(beginning, base))
        self.large_unit = self.large_unit or self._unit_of_large(beginning.records)
        mapped = tuple(_PLACE.sub("", origin.path) for origin in self.columns.origins.values())
        own = tuple(HISTORY_SCHEMA) if base is None else base.used
        shared = self

        class Reader(Mapped):
            used = (*mapped, *own) if own else ()
            hidden = base.hidden if base is not None else ()
            log = shared
            base_format = base

        return Reader

    def _completed(self, beginning: Sample, base: type[Format] | None) -> dict[str, Origin]:
        """Return the mapping as one file needs it.

        A path with a unit that is a name of the file itself is that name. A history's own arrival
        time is read like a mapped one where its unit matters for a duration.
        """
        origins = dict(self.columns.origins)
        for column, origin in origins.items():
            if origin.unit is not None and str(origin) in beginning.keys:
                origins[column] = Origin(str(origin))
        is_own = base is None or base is Native
        if "end_time" in origins and is_own and beginning.has("arrival_time"):
            origins.setdefault("arrival_time", Origin("arrival_time"))
        return origins

    def _unit_of_large(self, records: Iterable[Record]) -> str | None:
        """Return the unit of durations of which one is over the most seconds, None if none is."""
        paths = [self.columns.origins.get(c, Origin(c)).path for c in _PACE]
        pairs = [[_number(reach(record, path)) for path in paths] for record in records]
        known = [(seconds, tokens) for seconds, tokens in pairs if seconds and tokens]
        if not known or max(seconds for seconds, _ in known) <= MAX_DURATION_S:
            return None
        return unit_by_pace(median(seconds / tokens for seconds, tokens in known))

    def check(self, where: str) -> None:
        """Raise :class:`HistoryHeaderError` for a path of no row, or without one fitting value."""
        for column, origin in self.columns.origins.items():
            if column not in self.present:
                close = nearest_path(origin.path, self.records)
                hint = f": did you mean {close!r}?" if close else f" (for {column})"
                raise HistoryHeaderError(f"{where}: no row has {origin.path!r}{hint}")
            if self.filled[column] and not self.usable[column]:
                raise HistoryHeaderError(
                    f"{where}: {column} cannot be read from {origin.path!r}: {self.faults[column]}"
                )
        if self.filled["end_time"] and not self.has_ends:
            raise HistoryHeaderError(
                f"{where}: end_time makes a duration only with arrival_time, which no row has: "
                "map it, too, or leave end_time out"
            )

    def resolved(self) -> ColumnMap:
        """Return the mapping with the units that were inferred, for the next time."""
        return ColumnMap(
            {
                column: Origin(origin.path, origin.unit or self.units.get(column))
                for column, origin in self.columns.origins.items()
            }
        )


class Mapped(Format):
    """A log that is read by a mapping; :meth:`MappedLog.reader` makes a class for each file."""

    name = "mapped"
    title = "a mapped log"
    used: ClassVar[tuple[str, ...]] = ()
    hidden: ClassVar[tuple[str, ...]] = ()
    log: ClassVar[MappedLog]
    base_format: ClassVar[type[Format] | None]

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        origins = self.log.columns.origins
        self._base = None if self.base_format is None else self.base_format(findings)
        if self._base is not None:
            self._base.taken = frozenset(origins)
        name = self.title if self._base is None else f"{self._base.title}, with mapped columns"
        findings.formats[name] = None
        self._readers: dict[str, Callable[[Any, str], Any]] = {
            column: self._reader(column) for column in origins
        }
        self._open: set[str] = set()  # times from no known origin whose unit is not known yet
        self._has_ends = False

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return False: a mapping is given, never recognised."""
        del sample
        return False

    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return the request of a record, with the mapped columns."""
        mapped = self._mapped(record)
        if self._base is None:
            origins = self.log.columns.origins
            own = {c: v for c, v in record.items() if c in HISTORY_SCHEMA and c not in origins}
            return [self._finished(own | mapped)]
        requests = list(self._base.rows(record))
        if len(requests) > 1:
            raise ValueError("holds several requests, of which a mapping can read none")
        return [r if isinstance(r, Broken) else self._finished(r | mapped) for r in requests]

    def _mapped(self, record: Record) -> Row:
        row: Row = {}
        log = self.log
        for column, origin in log.columns.origins.items():
            value = reach(record, origin.path)
            if value is ABSENT:
                row[column] = None
                continue
            log.present.add(column)
            if value is None or value == "":
                row[column] = None
                continue
            log.filled[column] += 1
            try:
                row[column] = self._readers[column](value, column)
            except ValueError as error:
                log.faults.setdefault(column, f"{error}")
                raise ValueError(f"{origin.path} {error}") from None
            log.usable[column] += 1
        return row

    def _finished(self, row: Row) -> Row:
        """Return a row with what is made of several paths: the duration, and all tokens."""
        end, apart = row.pop("end_time", None), row.pop("reasoning_tokens", None)
        if end is not None and row.get("arrival_time") is not None:
            row["actual_time"] = end - row["arrival_time"]
            self._has_ends = self.log.has_ends = True
        length = as_number(row.get("actual_length"), "actual_length")
        path = str(self.log.columns.origins.get("reasoning_tokens", ""))
        if apart is not None and apart < 0:
            raise ValueError(f"{path} is negative")
        if apart and length is not None:
            row["actual_length"] = length + apart
            self.findings.add_note(f"{path}: counted apart, and was added to the generated tokens")
        return row

    def _reader(self, column: str) -> Callable[[Any, str], Any]:
        if column in TIMES:
            return self._duration if column == "actual_time" else self._moment
        kind = HISTORY_SCHEMA.get(column, pl.Int64())
        if kind.is_nested():
            return _items
        return _count if kind.is_numeric() else _text

    def _unit(self, column: str) -> str | None:
        """Return the unit of a time from the mapping or its name, and note it once."""
        origin = self.log.columns.origins[column]
        unit = origin.unit or named_unit(origin.path)
        if unit is not None and column not in self.log.units:
            self._note_unit(column, unit, "as said" if origin.unit else "by its name")
        return unit if unit is not None else self.log.units.get(column)

    def _note_unit(self, column: str, unit: str, why: str) -> None:
        self.log.units[column] = unit
        words = "ISO time" if unit == "iso" else NAMES[unit]
        path = self.log.columns.origins[column].path
        self.findings.add_note(f"{path}: read as {words} ({why})")

    def _moment(self, value: Any, column: str) -> float | None:
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        counted = None if isinstance(value, datetime) else _number(value)
        if counted is None:
            stated = self.log.columns.origins[column].unit
            if stated not in (None, "iso"):
                raise ValueError("is no number")
            try:
                seconds = moment(value, column)
            except ValueError:
                raise ValueError("is no time") from None
            if column not in self.log.units:
                kind = "a stored date" if isinstance(value, datetime) else "by its form"
                self._note_unit(column, "iso", kind)
            return seconds
        unit = self._unit(column)
        if unit == "iso":
            raise ValueError("is a number, no ISO time")
        if unit is None and abs(counted) >= EPOCH:
            unit = epoch_unit(counted)
            self._note_unit(column, unit, "by its size: since 1970")
        if unit is None:
            self._open.add(column)
            return counted
        return counted / SCALES[unit]

    def _duration(self, value: Any, column: str) -> float | None:
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, str) and (stated := _WITH_UNIT.fullmatch(value)) is not None:
            unit = stated[2].replace("µs", "us")
            if column not in self.log.units:
                self._note_unit(column, unit, "each says its unit")
            return float(stated[1]) / SCALES[unit]
        counted = _number(value)
        if counted is None:
            raise ValueError("is no duration (map end_time where it is the moment of the end)")
        unit = self._unit(column)
        if unit == "iso":
            raise ValueError("is a number, no ISO time")
        if unit is None and self.log.large_unit is not None:
            unit = self.log.large_unit
            self._note_unit(column, unit, "by its size")
        if unit is None:
            self._open.add(column)
            return counted
        return counted / SCALES[unit]

    def settle(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with its times in seconds, and note where each column is from.

        Raises:
            HistoryError: the unit of a time cannot be inferred.
        """
        if self._base is not None:
            frame = self._base.settle(frame)
        for column, origin in self.log.columns.origins.items():
            self.findings.ignored.pop(top(origin.path, self.findings.ignored), None)
            if column in HISTORY_SCHEMA and column != origin.path:
                self.findings.columns[column] = origin.path
        if self._has_ends:
            names = ("arrival_time", "end_time")
            origins = [self.log.columns.origins[n].path for n in names if n in self._paths()]
            self.findings.columns["actual_time"] = " to ".join(origins)
        return self._scaled(frame)

    def _paths(self) -> Iterable[str]:
        return self.log.columns.origins

    def _scaled(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with the times whose unit is inferred from the whole log."""
        unit = None
        if {"arrival_time", "end_time"} & self._open and "arrival_time" in frame.columns:
            unit = self._unit_of_arrivals(frame)
            for column in ("arrival_time", "end_time"):
                if column in self._open:
                    why = "by the durations" if self._has_ends else "by the rate of requests"
                    self._note_unit(column, unit, why)
            times = ["arrival_time", *(["actual_time"] if self._has_ends else [])]
            frame = frame.with_columns(pl.col(c) / SCALES[unit] for c in times if c in frame)
        if "actual_time" in self._open and "actual_time" in frame.columns:
            pace = seconds_per_token(frame)
            unit = "s" if pace is None else unit_by_pace(pace)
            if unit is None:
                raise self._no_unit("actual_time", f"({pace:.3g} a token)")
            per_token = "" if pace is None else f": {pace / SCALES[unit]:.3g} s a token"
            self._note_unit("actual_time", unit, f"by its size{per_token}")
            frame = frame.with_columns(pl.col("actual_time") / SCALES[unit])
        return frame

    def _unit_of_arrivals(self, frame: pl.DataFrame) -> str:
        pace = seconds_per_token(frame) if self._has_ends else None
        unit = None if not pace else unit_by_pace(pace)
        unit = unit or plausible_unit(frame["arrival_time"], None)
        if unit is None:
            raise self._no_unit("arrival_time", "by the rate of requests")
        return unit

    def _no_unit(self, column: str, why: str) -> HistoryError:
        path = self.log.columns.origins[column].path
        return HistoryError(
            f"the unit of {path!r} cannot be told {why}: say {column}={path}@s, or @ms, @us, @ns"
        )


def _number(value: Any) -> float | None:
    """Return a number that may be text or a decimal, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _count(value: Any, column: str) -> float | int:
    del column
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    counted = _number(value)
    if counted is None:
        raise ValueError(_not(value, "a number"))
    return counted


def _text(value: Any, column: str) -> str:
    if column == "finish_reason":
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        value = value.get("type") if isinstance(value, dict) else value  # SGLang's own form
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(_not(value, "text"))
    return str(value)


def _items(value: Any, column: str) -> list[Any]:
    del column
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("is no list") from None
    if not isinstance(value, list):
        raise ValueError(_not(value, "a list"))
    return value


def _not(value: Any, wanted: str) -> str:
    """Return what a value is instead; keys of an object help, the value itself is not repeated."""
    if isinstance(value, dict):
        return f"is an object, not {wanted}: name what is in it ({_keys(value)})"
    if isinstance(value, list):
        return f"is a list, not {wanted}: name a place in it, as [0]"
    if isinstance(value, bool):
        return f"is true or false, not {wanted}"
    return f"is not {wanted}"


def _keys(value: dict[str, Any]) -> str:
    names: Sequence[str] = [str(k) for k in value if re.fullmatch(r"[A-Za-z_][\w.-]{0,31}", str(k))]
    return ", ".join(f".{name}" for name in names[:6]) or "its keys"
