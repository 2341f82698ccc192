"""Map history columns to paths in a log of any form: ``actual_length=usage.completion_tokens``.

A mapping is written on the command line, as a Python dict, or in a small TOML file. A path has dots
between keys and ``[0]`` for places in lists. A time may have a unit: ``actual_time=latency@ms``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import HistoryError, UnknownNameError, shown
from sagellm_lifetime.history.names import unit_of_name
from sagellm_lifetime.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.history.times import NAMES

TIMES: Final = ("arrival_time", "end_time", "actual_time")
"""Columns that may have a unit."""
EXTRA: Final = ("end_time", "reasoning_tokens")
"""Targets that become history columns: the end of the answer, and tokens counted apart."""
TARGETS: Final = (*HISTORY_SCHEMA, *EXTRA)
UNITS: Final = (*NAMES, "iso")
"""Units that a path may end with, after ``@``; ``iso`` is ISO 8601 text or a stored date."""
_PLACE: Final = re.compile(r"\[(-?\d+)\]")
_TABLE: Final = "map"
_HEAD: Final = "# Where the columns of a history stand in a log: --map FILE reads it.\n"
ABSENT: Final = object()
"""Value of :func:`reach` for a path that a record does not have."""


@dataclass(frozen=True)
class Origin:
    """A path into a record, and the unit of a time there, None if it is inferred."""

    path: str
    unit: str | None = None

    def __str__(self) -> str:
        return self.path if self.unit is None else f"{self.path}@{self.unit}"


@dataclass(frozen=True)
class ColumnMap:
    """History columns and the paths that they are read from.

    Attributes:
        origins: history column, or ``end_time`` or ``reasoning_tokens``, -> its origin.

    >>> columns = ColumnMap.parse(["actual_length=usage.completion_tokens,actual_time=took@ms"])
    >>> str(columns.origins["actual_time"]), columns.origins["actual_time"].unit
    ('took@ms', 'ms')
    >>> print(columns.to_toml().splitlines()[-1])
    actual_time = "took@ms"
    """

    origins: Mapping[str, Origin]

    def __post_init__(self) -> None:
        if {"end_time", "actual_time"} <= set(self.origins):
            raise HistoryError(
                "--map: end_time and actual_time both say how long an answer took: map one of them"
            )

    @classmethod
    def of(cls, mapping: ColumnMap | Mapping[str, str] | str | os.PathLike[str]) -> ColumnMap:
        """Return a mapping from a dict, a TOML file, or the text of the command line.

        Raises:
            HistoryError: it cannot be read, or a column or path in it is none.
            UnknownNameError: a unit is none.
        """
        if isinstance(mapping, ColumnMap):
            return mapping
        if isinstance(mapping, str | os.PathLike):
            return cls.parse([os.fspath(mapping)])
        if not isinstance(mapping, Mapping):
            raise HistoryError(
                f"a mapping is a dict of history columns and paths, not {shown(mapping)}"
            )
        return cls(dict(_entry(column, origin) for column, origin in mapping.items()))

    @classmethod
    def parse(cls, texts: Iterable[str]) -> ColumnMap:
        """Return the mapping of texts, each ``COLUMN=PATH,…`` or the name of a TOML file.

        A column in a text replaces that of a file before it.

        Raises:
            HistoryError, UnknownNameError: as of :meth:`of`, or a column is mapped twice.
        """
        origins: dict[str, Origin] = {}
        stated: set[str] = set()
        for text in texts:
            if "=" not in text and text.endswith(".toml"):
                kept = cls.load(text).origins
                _check_once(kept, stated, origins)
                origins.update(kept)
                continue
            for part in filter(None, (part.strip() for part in text.split(","))):
                column, equals, path = part.partition("=")
                if not equals:
                    raise HistoryError(
                        f"--map: {shown(part)} is no COLUMN=PATH and no .toml file, as in "
                        "actual_length=usage.completion_tokens"
                    )
                new = dict([_entry(column.strip(), path.strip())])
                _check_once(new, stated, origins)
                stated.update(new)
                origins.update(new)
        if not origins:
            raise HistoryError("--map: no column is mapped: say COLUMN=PATH, or a .toml file")
        return cls(origins)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ColumnMap:
        """Return the mapping of a TOML file, written by :meth:`to_toml` or by hand.

        Raises:
            HistoryError, UnknownNameError: as of :meth:`of`.
        """
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise HistoryError(f"{path}: {error.strerror or 'cannot be read'}") from error
        except UnicodeDecodeError as error:
            raise HistoryError(f"{path}: not UTF-8 text: save the file as UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            raise HistoryError(f"{path}: not TOML ({error})") from error
        table = document.get(_TABLE)
        if not isinstance(table, dict) or not table:
            raise HistoryError(f"{path}: no table [{_TABLE}] of history columns and paths")
        return cls.of(table)

    def to_toml(self) -> str:
        """Return the text of a TOML file that :meth:`load` reads."""
        lines = [f"{column} = {_quoted(str(o))}" for column, o in self.origins.items()]
        return "\n".join([_HEAD + f"[{_TABLE}]", *lines]) + "\n"


def _check_once(
    new: Mapping[str, Origin], stated: Iterable[str], origins: Mapping[str, Origin]
) -> None:
    """Raise :class:`HistoryError` if a column is mapped that was stated before."""
    twice = next((column for column in new if column in stated), None)
    if twice is not None:
        paths = f"{shown(str(origins[twice]))} and {shown(str(new[twice]))}"
        raise HistoryError(f"--map: {twice} is mapped twice, to {paths}: leave one out")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _entry(column: object, origin: object) -> tuple[str, Origin]:
    """Return a checked column and origin."""
    if not isinstance(column, str) or column not in TARGETS:
        close = difflib.get_close_matches(str(column), TARGETS, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(TARGETS)
        raise HistoryError(f"--map: no history column {shown(column)}: {hint}they are {known}")
    if not isinstance(origin, str) or not origin:
        raise HistoryError(f"--map: {column} needs a path, not {shown(origin)}")
    path, at, unit = origin.rpartition("@")
    if not at or not re.fullmatch("[a-z]{1,3}", unit):
        return column, Origin(origin)
    if unit not in UNITS:
        raise UnknownNameError(f"unit of time of {column}", unit, list(UNITS))
    if column not in TIMES:
        raise HistoryError(f"--map: {column} is no time, so {shown(path)} has no unit: leave @ out")
    if not path:
        raise HistoryError(f"--map: {column} needs a path before the unit")
    return column, Origin(path, unit)


def named_unit(path: str) -> str | None:
    """Return the unit in the name at the end of a path, None if it has none.

    >>> named_unit("metrics.latency_ms"), named_unit("startTimeUnixNano"), named_unit("took")
    ('ms', 'ns', None)
    """
    name = _PLACE.sub("", path).rsplit(".", 1)[-1]
    unit = name.rpartition("@")[2]
    return unit if "@" in name and unit in NAMES else unit_of_name(name)


def top(path: str, keys: Iterable[str]) -> str:
    """Return which of a record's keys a path begins with: the longest, else its first part."""
    fitting = [key for key in keys if path == key or path.startswith((f"{key}.", f"{key}["))]
    return max(fitting, key=len, default=re.split(r"[.\[]", path, maxsplit=1)[0])


def reach(value: Any, path: str) -> Any:
    """Return the value at a path of a record, :data:`ABSENT` if it has no such path.

    A key may have dots itself; a text that is JSON is parsed.

    >>> reach({"usage": {"out": 5}, "a.b": [{"c": 7}]}, "usage.out")
    5
    >>> reach({"a.b": [{"c": 7}]}, "a.b[0].c")
    7
    """
    if not path:
        return value
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, dict):
        return _in_object(value, path)
    return _in_list(value, path) if isinstance(value, list) else ABSENT


def _parsed(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _in_object(value: dict[str, Any], path: str) -> Any:
    if path in value:
        return value[path]
    for i in reversed([i for i, c in enumerate(path) if c in ".["]):
        if path[:i] in value:
            reached = reach(value[path[:i]], path[i:].removeprefix("."))
            if reached is not ABSENT:
                return reached
    return ABSENT


def _in_list(value: list[Any], path: str) -> Any:
    place = _PLACE.match(path)
    if place is None or not -len(value) <= int(place[1]) < len(value):
        return ABSENT
    return reach(value[int(place[1])], path[place.end() :].removeprefix("."))


_DEEP: Final = 6
_MANY: Final = 500


def paths(record: Any, prefix: str = "", deep: int = 0) -> Iterator[str]:
    """Yield the paths of a record that hold a value; only the first item of a list is read."""
    if isinstance(record, str):
        record = _parsed(record)
    if deep >= _DEEP:
        return
    if isinstance(record, dict):
        for key, value in record.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from paths(value, name, deep + 1)
    elif isinstance(record, list) and record and isinstance(record[0], dict):
        yield from paths(record[0], f"{prefix}[0]", deep + 1)


def nearest_path(wanted: str, records: Iterable[Any]) -> str | None:
    """Return the path of the records that is most like ``wanted``, None if none is."""
    known: dict[str, None] = {}
    for record in records:
        for path in paths(record):
            known[path] = None
            if len(known) >= _MANY:
                break
    close = difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.6)
    if close:
        return close[0]
    last = wanted.rsplit(".", 1)[-1]
    return next((path for path in known if path.rsplit(".", 1)[-1] == last), None)
