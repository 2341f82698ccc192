"""Read the rows of a query from a database: PostgreSQL through ADBC, SQLite with Python's own.

A database is named by its address, ``postgresql://user@host/name`` or ``sqlite:///file.db``. The
query may only read: in a read-only transaction of PostgreSQL, and with SQLite's authorizer,
since a file opened read-only still takes ``ATTACH`` and ``VACUUM INTO``. A password is never part
of a name or of a message; it need not stand in the address, since libpq reads ``PGPASSWORD`` and
``~/.pgpass``.
"""

from __future__ import annotations

import re
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.extras import require
from sagellm_lifetime.history.files import EmptyHistoryError
from sagellm_lifetime.history.parquet import no_panic_reports

_POSTGRES: Final = ("postgresql", "postgres")
_SQLITE: Final = "sqlite"
_SECRETS: Final = ("password", "sslpassword")
_HIDDEN: Final = "***"
_EXAMPLE: Final = "--query 'SELECT * FROM …'"
_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{2}")
_FILES: Final = (".db", ".db3", ".sqlite", ".sqlite3")
"""Suffixes of files that are databases."""
_READING: Final = (
    *(sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ),
    *(sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE),
)
"""Actions that a query may take in SQLite."""


def is_database(source: object) -> bool:
    """Return True for the address of a database.

    >>> is_database("postgresql://me@host/logs"), is_database("logs.csv")
    (True, False)
    """
    return isinstance(source, str) and source.partition("://")[0] in (*_POSTGRES, _SQLITE)


def check_source(source: object, query: str | None) -> None:
    """Raise :class:`HistoryError` for an address that is not read, or a query without a database.

    >>> check_source("mysql://me@host/logs", "SELECT 1")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.HistoryError: mysql:// is not read: ...
    """
    text = source if isinstance(source, str) else ""
    if is_database(source):
        return
    if (address := _ADDRESS.match(text)) is not None:
        raise HistoryError(
            f"{address[1]}:// is not read: a log is a file, or a table at postgresql://… or "
            "sqlite:///…"
        )
    if Path(text).suffix.lower() in _FILES:
        needs = "" if query is not None else f" with {_EXAMPLE}"
        raise HistoryError(f"{text}: a database is named by its address: sqlite:///{text}{needs}")
    if query is not None:
        raise HistoryError("a query is for a database, postgresql://… or sqlite:///…: leave it out")


def shown_source(source: str) -> str:
    """Return the name of a source as messages may show it: an address without its password.

    >>> shown_source("postgresql://me:secret@host:5432/logs?sslmode=require")
    'postgresql://me@host:5432/logs?sslmode=require'
    >>> shown_source("logs.csv")
    'logs.csv'
    """
    if not is_database(source):
        other = _ADDRESS.match(source)
        return source if other is None else f"{other[0]}{_HIDDEN}"
    scheme = source.partition("://")[0]
    if scheme == _SQLITE:
        return source
    try:
        parts = urlsplit(source)
        if parts.netloc.count("@") > 1 or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            return f"{scheme}://{_HIDDEN}"  # of an odd address no part is safe to show
        user, at, host = parts.netloc.rpartition("@")
        public = [(k, v) for k, v in parse_qsl(parts.query) if k not in _SECRETS]
    except ValueError:
        return f"{scheme}://{_HIDDEN}"
    netloc = f"{user.partition(':')[0]}{at}{host}"
    return urlunsplit((scheme, netloc, parts.path, urlencode(public), ""))


def read_query(address: str, query: str | None) -> pl.DataFrame:
    """Return the rows of a query.

    Args:
        address: the address of the database.
        query: a SELECT.

    Raises:
        HistoryError: no connection, the query fails, would write or finds no row; the message is
            one line and holds no password.
        MissingExtraError: the driver is not installed.
    """
    where = shown_source(address)
    if not query or not query.strip():
        raise HistoryError(f"{where}: a database needs a query: {_EXAMPLE}")
    read = _sqlite if address.startswith(f"{_SQLITE}:") else _postgres
    frame = read(address, query, where)
    if frame.is_empty():
        raise EmptyHistoryError(f"{where}: the query found no rows")
    return frame


def _sqlite(address: str, query: str, where: str) -> pl.DataFrame:
    path = Path(unquote(address.removeprefix(f"{_SQLITE}://").removeprefix("/")))
    if not path.is_file():
        raise HistoryError(f"{where}: no such file (three slashes before a relative path)")
    is_denied = False

    def authorize(action: int, *_: object) -> int:
        nonlocal is_denied
        is_denied = is_denied or action not in _READING
        return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY

    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            connection.set_authorizer(authorize)
            cursor = connection.execute(query)
            names = [column[0] for column in cursor.description or ()]
            rows = cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        if is_denied:
            raise HistoryError(f"{where}: a query may only read: {_EXAMPLE}") from error
        raise HistoryError(f"{where}: {_first_line(error)}") from error
    columns = _columns(names, where)
    return pl.DataFrame([_column(name, [row[i] for row in rows]) for i, name in enumerate(columns)])


def _column(name: str, values: list[Any]) -> pl.Series:
    """Return a column of SQLite, whose cells may be of several types; then all are text."""
    values = [None if isinstance(value, bytes) else value for value in values]
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and kinds != {int, float}:
        values = [None if value is None else str(value) for value in values]
    return pl.Series(name, values, strict=False)


def _postgres(address: str, query: str, where: str) -> pl.DataFrame:
    if where.endswith(_HIDDEN):
        raise HistoryError(
            f"{where}: not the address of a database: write @, :, / and % of a password as %40, "
            "%3A, %2F and %25, or put it into PGPASSWORD"
        )
    require("adbc_driver_postgresql", "a PostgreSQL database", "sql")
    import adbc_driver_manager
    from adbc_driver_postgresql import dbapi

    try:
        with dbapi.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(query)
            if cursor.description is None:
                raise HistoryError(f"{where}: the query gives no rows: {_EXAMPLE}")
            _columns([column[0] for column in cursor.description], where)
            with no_panic_reports():
                frame = pl.DataFrame(cursor.fetch_arrow())
    except adbc_driver_manager.Error as error:
        message = _without_secrets(_first_line(error), address)
        raise HistoryError(f"{where}: {message}") from None  # the cause may repeat the address
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        message = "a column of a type that is not read here: cast it in the query (::text, or "
        message += "EXTRACT(epoch FROM …) of an interval)"
        raise HistoryError(f"{where}: {message}") from error
    return frame.select(_plain(column) for column in frame)


def _columns(names: list[str], where: str) -> list[str]:
    """Return the names of the columns of a result. Raise :class:`HistoryError` for doubles."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise HistoryError(f"{where}: the query has two columns {twice!r}: name them with AS")
    if not names:
        raise HistoryError(f"{where}: the query gives no rows: {_EXAMPLE}")
    return names


def _plain(column: pl.Series) -> pl.Series:
    """Return a column of the server in a type of a history: numeric, JSON and UUID as text."""
    if hasattr(pl, "BaseExtension") and isinstance(column.dtype, pl.BaseExtension):
        column = column.ext.storage()
    if column.dtype == pl.Binary:
        cells = [_uuid(cell) for cell in column.to_list()]
        return pl.Series(column.name, cells, dtype=pl.String)
    return column


def _uuid(cell: bytes | None) -> str | None:
    return str(uuid.UUID(bytes=cell)) if cell is not None and len(cell) == 16 else None


def _first_line(error: Exception) -> str:
    """Return the message of a database error, without its position in the query and its code."""
    line = str(error).partition("\n")[0].strip() or type(error).__name__
    return line.rpartition("ERROR:")[2].strip() if "ERROR:" in line else line


def _without_secrets(message: str, address: str) -> str:
    parts = urlsplit(address)
    secrets = [value for key, value in parse_qsl(parts.query) if key in _SECRETS]
    secrets.append(parts.netloc.rpartition("@")[0].partition(":")[2])
    for secret in {text for value in secrets for text in (value, unquote(value)) if text}:
        message = message.replace(secret, _HIDDEN)
    return message
