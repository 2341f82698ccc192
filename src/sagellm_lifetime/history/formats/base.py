"""The base class of readers of foreign logs, and helpers that take values out of records."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, ClassVar, Final

import polars as pl

from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.records import Broken, Record, Sample

Row = dict[str, Any]
"""Request in history columns; numbers may still be text, and are checked like any history's."""


class Format(ABC):
    """Format of one program's log. A new one is a file beside this and a line in ``formats``.

    An instance reads one file, so it may keep what it has read of a session.

    Attributes:
        name: its name in ``convert --from`` and in messages.
        title: its description in messages.
        used: paths of the record that are read, with dots between keys; others are noted as not
            read.
        hidden: paths that are not read and not noted either: content, and repetitions.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    used: ClassVar[tuple[str, ...]]
    hidden: ClassVar[tuple[str, ...]] = ()

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.taken: frozenset[str] = frozenset()  # history columns that a mapping reads instead

    @classmethod
    @abstractmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True if a log that begins like this is of this format, and of no other."""

    @classmethod
    def unusable(cls, sample: Sample) -> str | None:
        """Return why a log of this format holds no readable requests, None if it may."""
        del sample
        return None

    @abstractmethod
    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return the requests of one record, or why one of them cannot be read.

        Raises:
            ValueError: the whole record is damaged; the message describes how, quoting nothing.
        """

    def settle(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return all rows of the file, completed by what only the whole file can decide."""
        return frame

    def leave_out(self, why: str) -> list[Row]:
        """Count one request that a history cannot hold, and return no row."""
        self.findings.left_out[why] += 1
        return []


def dig(record: Any, path: str) -> Any:
    """Return the value at a path of keys separated by dots, None if there is none."""
    for key in path.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(key)
    return record


def first(record: Any, *paths: str) -> Any:
    """Return the first of several paths that holds something, else None."""
    return next((value for path in paths if (value := dig(record, path)) not in (None, "")), None)


def as_object(value: Any) -> dict[str, Any]:
    """Return an object, also from JSON text as in CSV exports; empty for other values."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def number(value: Any, name: str) -> float | None:
    """Return a number that may be stored as text, None for none.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError(f"{name} is not a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} is not a number") from None


SEVERAL: Final = "requests with several choices, whose tokens are counted together"
"""Why a request with several answers is left out."""
UNFINISHED: Final = ("in_progress", "queued")
"""The ``status`` of a response of OpenAI's Responses API that is still being generated."""


def ending(response: dict[str, Any]) -> str | None:
    """Return why a response of OpenAI's Responses API ended, None if it does not state it.

    An incomplete one without a reason stays ``"incomplete"``, which is no known finish reason.
    """
    status = words(response.get("status"))
    reason = words(dig(response, "incomplete_details.reason"))
    return reason or status if status == "incomplete" else status


def words(value: Any) -> str | None:
    """Return an id or a name as text, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def unread(records: Iterable[Record], form: type[Format]) -> list[str]:
    """Return the paths of the records that ``form`` does not read, each once, in their order."""
    known = (*form.used, *form.hidden)
    paths = {path: None for record in records for path in _paths(record, "", known)}
    return list(paths)


def _paths(record: Record, prefix: str, known: tuple[str, ...]) -> Iterator[str]:
    for key, value in record.items():
        path = f"{prefix}{key}"
        if any(path == other or path.startswith(f"{other}.") for other in known):
            continue
        # Only into objects that are read in part: the keys of others may be content.
        if isinstance(value, dict) and any(other.startswith(f"{path}.") for other in known):
            yield from _paths(value, f"{path}.", known)
        elif value is not None:
            yield path
