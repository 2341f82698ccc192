"""A journal of completions: JSON lines that survive the process, turned into Parquet.

A journal is locked by the process that writes it, so whoever can lock it knows that its writer is
gone. Its Parquet bears its name: taking a journal up twice gives the same file.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from sagellm_lifetime.core.child import command
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.history.schema import HISTORY_SCHEMA

SUFFIX: Final = ".journal"
"""Not one of a history: a folder with a journal can be read as one."""
_NICENESS: Final = 10


class Journal:
    """One file that grows."""

    def __init__(self, folder: Path, writer: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"completions-{stamp}-{writer}-{secrets.token_hex(3)}{SUFFIX}"
        # Unbuffered: what was written is the system's, whatever becomes of this process.
        self._file = self.path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._good = 0
        self.rows = 0
        self.since = time.monotonic()

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows, all or none.

        Raises:
            OSError: the disk is full, say; the journal is as it was.
        """
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(28, "no space for all of it")
        except OSError:
            self._file.truncate(self._good)
            self._file.seek(self._good)
            raise
        self._good += len(data)
        self.rows += len(rows)

    def close(self) -> None:
        """Unlock it; whoever comes next may take it up."""
        self._file.close()


def take_up(folder: Path) -> Iterator[Path]:
    """Turn journals whose writers are gone into Parquet; yields the new files.

    Raises:
        OSError: a file cannot be read or removed.
        HistoryError: a Parquet cannot be written; its journal stays.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its writer lives
            if not path.exists():
                continue  # another has just taken it up
            target = to_parquet(path, file)
            path.unlink()
        if target is not None:
            yield target


def take_up_elsewhere(folder: Path) -> subprocess.Popen[str]:
    """:func:`take_up` in a process of its own.

    Polars starts a thread for every core and keeps some twenty megabytes, and what it computes
    it takes from the engine. The process says on its standard error what went wrong.
    """
    return subprocess.Popen(
        command(__name__, str(folder)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
    )


def main() -> None:
    """Of a process of its own; the folder is its last argument."""
    os.nice(_NICENESS)
    try:
        for _ in take_up(Path(sys.argv[-1])):
            pass
    except (OSError, HistoryError) as error:
        sys.exit(str(error))


def to_parquet(path: Path, file: BinaryIO) -> Path | None:
    """The rows of a journal as a history file beside it; ``None`` where there are none."""
    import polars as pl

    from sagellm_lifetime.core.history.write import write_history

    data = file.read()
    data = data[: data.rfind(b"\n") + 1]  # the last line may be torn
    if not data:
        return None
    try:
        frame = pl.read_ndjson(data, schema=HISTORY_SCHEMA)
    except pl.exceptions.PolarsError:
        frame = pl.DataFrame(list(_readable(data.splitlines())), schema=HISTORY_SCHEMA)
    used = [name for name in frame.columns if frame[name].null_count() < len(frame)]
    if not used:
        return None
    target = path.with_suffix(".parquet")
    write_history(frame.select(used), target)
    return target


def _readable(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Line by line, without those that a crash of the machine has torn."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def name_of(rank: int) -> str:
    """What a writer is called in the names of its files."""
    return f"engine{rank}-{os.getpid()}"
