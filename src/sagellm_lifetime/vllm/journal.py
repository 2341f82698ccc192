"""A journal of completions: JSON lines that survive the process, turned into Parquet.

A journal is locked by the process that writes it, so a journal that can be locked has no writer.
Its Parquet file has the same name, so that converting a journal twice gives the same file. Lines
that cannot be read are kept in a file of that name too (``.damaged``), and do not stop the others.

New folders have mode 0700, files 0600, as a record identifies clients and may have content.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from sagellm_lifetime.core.atomic import PRIVATE_FILE, make_folder, write_atomically
from sagellm_lifetime.core.child_process import command
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.forking import ClosedInChild
from sagellm_lifetime.core.regular_files import open_regular
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.record_rows import LENGTH, RowError, from_line

if TYPE_CHECKING:
    import polars as pl

SUFFIX: Final = ".journal"
"""Not a suffix of a history file, so that a folder with a journal can be read as a history."""
DAMAGED: Final = ".damaged"
_NICENESS: Final = 10
_SHOWN: Final = 5
"""Largest number of damaged lines named in a message."""
_NOTES: Final = 50
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escaped surrogate: Polars silently turns a lone one into a NUL."""
Warn = Callable[[str], object]


class Journal:
    """One growing journal file.

    Raises:
        OSError: if it cannot be created.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        make_folder(folder, private=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"completions-{stamp}-{writer}-{secrets.token_hex(3)}{SUFFIX}"
        # Unbuffered, so that written lines survive the end of this process.
        self._file = open(self.path, "xb", buffering=0, opener=_private)  # noqa: SIM115 - for long
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            self.path.unlink(missing_ok=True)
            raise
        self._in_child = ClosedInChild(self._file)
        self._good = 0
        self.rows = 0
        self.since = time.monotonic()
        self.is_sound = True
        """False after a failure that may have left half a line at its end."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Append lines, all or none.

        Raises:
            OSError: if the disk is full, say; the journal is unchanged, or ``is_sound`` is False.
        """
        data = b"".join(lines)
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            try:
                self._file.truncate(self._good)
                self._file.seek(self._good)
            except OSError:
                self.is_sound = False
            raise
        self._good += len(data)
        self.rows += len(lines)

    def is_there(self) -> bool:
        """Return True if the file still has a name, as its folder may have been removed."""
        return os.fstat(self._file.fileno()).st_nlink > 0

    def close(self) -> None:
        """Close and unlock the file, which may then be converted."""
        self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, PRIVATE_FILE)


def recover_journals(folder: Path, warn: Warn = LOG.warning) -> Iterator[Path]:
    """Turn journals without a writer into Parquet, and yield the new files.

    A journal that cannot be converted stays, and does not stop the others.

    Args:
        folder: of the record.
        warn: called with one line of text for each journal with damaged lines.

    Raises:
        HistoryError: at the end, if journals could not be read, converted or removed.
    """
    failures: list[str] = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            target = _recover_journal(path, warn)
        except FileNotFoundError:
            continue  # another process has just converted it
        except OSError as error:
            failures.append(f"{path}: {error.strerror or error}")
        except HistoryError as error:
            failures.append(str(error))
        else:
            if target is not None:
                yield target
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise HistoryError(failures[0] + more)


def _recover_journal(path: Path, warn: Warn) -> Path | None:
    with open_regular(path, os.O_RDWR) as file:  # network file systems lock for writers only
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None  # its writer runs
        if not path.exists():
            return None  # another process has just converted it
        target = to_parquet(path, file, warn)
        path.unlink()
    return target


def start_recovery(folder: Path) -> subprocess.Popen[str]:
    """Start :func:`recover_journals` in a process of its own.

    Polars starts a thread for every core and keeps some twenty megabytes, and its work would delay
    the engine. The process writes damage and failures to its standard error, and exits with another
    code than 0 after a failure.
    """
    return subprocess.Popen(
        command(__name__, str(folder)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
    )


def main() -> None:
    """Take up the folder named by the last argument, in a process of its own."""
    os.nice(_NICENESS)
    notes: list[str] = []
    failure = None
    try:
        for _ in recover_journals(Path(sys.argv[-1]), warn=notes.append):
            pass
    except HistoryError as error:
        failure = str(error)
    if len(notes) > _NOTES:  # a pipe buffers some 60 kB before it is read
        notes[_NOTES:] = [f"and so in {len(notes) - _NOTES} more journals"]
    for note in notes:
        print(note, file=sys.stderr)
    sys.exit(failure)


def to_parquet(path: Path, file: BinaryIO, warn: Warn = LOG.warning) -> Path | None:
    """Write the rows of a journal as a history file beside it; return its path.

    Return ``None`` if there are no rows.

    Args:
        path: of the journal.
        file: the journal, open for reading.
        warn: called with one line of text if lines are damaged.

    Raises:
        HistoryError: if a file cannot be written; no partial file is left.
    """
    import polars as pl

    from sagellm_lifetime.history.write import write_history

    data = file.read()
    frame = _read_whole(data)
    if frame is None:
        read = _read_lines(data)
        if read.damaged:
            kept = path.with_suffix(DAMAGED)
            lines = b"".join(line + b"\n" for line in read.damaged)
            write_atomically(kept, lines, private=True, error=HistoryError)
            warn(read.describe(path, kept))
        elif read.changed:
            warn(read.describe(path, None))
        frame = _to_frame(path, read.rows)
    used = [name for name in frame.columns if frame[name].null_count() < len(frame)]
    if not used:
        return None
    target = path.with_suffix(".parquet")
    try:
        write_history(frame.select(used), target, private=True)
    except pl.exceptions.PanicException as error:
        raise HistoryError(f"{target}: cannot be written ({type(error).__name__})") from error
    return target


def _read_whole(data: bytes) -> pl.DataFrame | None:
    """Return the rows of an undamaged journal; ``None`` if it must be read line by line."""
    import polars as pl

    from sagellm_lifetime.history.findings import Findings
    from sagellm_lifetime.history.schema import NATIVE
    from sagellm_lifetime.history.validate import validate_frame

    if not data.endswith(b"\n") or _SURROGATE.search(data):
        return None
    try:
        frame = pl.read_ndjson(data, schema=HISTORY_SCHEMA)
        if len(frame) != data.count(b"\n") or frame[LENGTH].null_count():
            return None
        findings = Findings()
        validate_frame(frame.lazy(), NATIVE, HISTORY_SCHEMA, findings)
    except (HistoryError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    return None if findings.bad else frame


@dataclass
class _Lines:
    """The result of reading line by line."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[bytes] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Descriptions of the first damaged lines."""
    changed: dict[str, int] = field(default_factory=dict)
    """Values left out of other lines -> number of occurrences."""

    def describe(self, path: Path, kept: Path | None) -> str:
        """Return one line that counts and names the damage without quoting the lines."""
        parts = []
        if self.damaged:
            more = "; …" if len(self.damaged) > len(self.problems) else ""
            parts.append(
                f"{len(self.damaged)} of "
                f"{counted(len(self.damaged) + len(self.rows), 'line')} damaged ("
                f"{'; '.join(self.problems)}{more}), left out and kept as {kept}"
            )
        if self.changed:
            kinds = ", ".join(f"{count} × {change}" for change, count in self.changed.items())
            parts.append(f"values left out or replaced: {kinds}")
        return f"{path}: {'; '.join(parts)}"


def _read_lines(data: bytes) -> _Lines:
    read = _Lines()
    lines = data.split(b"\n")
    last = lines.pop()  # empty, unless a crash of the machine cut it
    for number, line in enumerate(lines, start=1):
        try:
            row, changed = from_line(line)
        except RowError as error:
            _note(read, line, f"line {number}: {error}")
            continue
        read.rows.append(row)
        for change in changed:
            read.changed[change] = read.changed.get(change, 0) + 1
    if last:
        _note(read, last, f"line {len(lines) + 1}: torn")
    return read


def _note(read: _Lines, line: bytes, problem: str) -> None:
    read.damaged.append(line)
    if len(read.problems) < _SHOWN:
        read.problems.append(problem)


def _to_frame(path: Path, rows: list[dict[str, Any]]) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.DataFrame(rows, schema=HISTORY_SCHEMA)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise HistoryError(f"{path}: cannot be read ({type(error).__name__})") from error


def name_of(rank: int) -> str:
    """Return the name of an engine core's writer in the names of its files."""
    return f"engine{rank}-{os.getpid()}"
