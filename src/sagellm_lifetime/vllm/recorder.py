"""The recorder of a live engine's completions, which another thread writes."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.vllm.circuit_breaker import LOG, named
from sagellm_lifetime.vllm.journal import SUFFIX, Journal, recover_journals, start_recovery
from sagellm_lifetime.vllm.record_rows import RowError, fit, to_line

_MOST_WAITING: Final = 100_000
"""Largest number of waiting completions while nothing can be written; newer ones are dropped."""
_MOST_WAITING_BYTES: Final = 1 << 28
"""The same in bytes of JSON, for rows with content."""
_AT_ONCE_BYTES: Final = 1 << 18
"""Size of one atomic write, small enough to use the rest of a nearly full disk."""
_CANNOT_WRITE: Final = "cannot be written"
_CANNOT_ROTATE: Final = "cannot be turned into Parquet"
_FULL: Final = "memory is full"
Row = dict[str, Any] | Callable[[], dict[str, Any]]


class Recorder:
    """A queue of completions that a thread writes to a journal and rotates into Parquet.

    No method raises. While nothing can be written, rows wait in memory, up to a bound, and are
    written when there is room again. Rows that cannot be recorded, exceed that bound, or still wait
    at the end are counted in ``lost``; values that the history format cannot hold are left out and
    counted in ``replaced``. Each kind is logged once.

    Args:
        folder: of the files.
        writer: name of this process in the file names.
        content: True if rows have token ids.
        rotate_rows: rows after which a journal becomes a Parquet file.
        rotate_s: seconds after which it does.
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        *,
        content: bool = False,
        rotate_rows: int = 10_000,
        rotate_s: float = 600.0,
    ) -> None:
        self.content = content
        self.recorded = 0
        self.replaced = 0
        """Values left out, or texts in which a character was replaced."""
        self._folder = folder
        self._writer = writer
        self._rotate_rows = rotate_rows
        self._rotate_s = rotate_s
        self._rows: deque[Row] = deque()
        # Two counts, as each thread adds to its own without a lock.
        self._lost_by_engine = 0
        self._lost_by_writer = 0
        self._lines: deque[bytes] = deque()
        """Lines of rows that wait to be written; only the writer's thread changes it."""
        self._line_bytes = 0
        self._journal: Journal | None = None
        self._left_over = True
        """True if there may be journals without a writer."""
        self._helper: subprocess.Popen[str] | None = None
        """The process that turns them into Parquet."""
        self._closing = False
        self._logged: set[str] = set()
        """Problems that are logged already."""
        self._is_full = False
        """True if a row was dropped since the last successful write."""

    def missed(self) -> None:
        """Count a completion that could not be described."""
        self._lost_by_engine += 1

    @property
    def lost(self) -> int:
        """Return the number of completions that are lost."""
        return self._lost_by_engine + self._lost_by_writer

    @property
    def waiting(self) -> int:
        """Return the number of completions that wait to be written."""
        return len(self._rows) + len(self._lines)

    def take(self, make: Callable[[], dict[str, Any]]) -> None:
        """Queue a completion, whose row the writer's thread makes; on the engine's thread."""
        self.add(make)

    def take_now(self, make: Callable[[], dict[str, Any]]) -> None:
        """Queue a completion whose row must be made at once, as its source is about to change."""
        try:
            row = make()
        except Exception as error:  # noqa: BLE001  # from any input of a client
            self._lost_by_engine += 1
            self._log_once(f"a completion is left out: {named(error)}")
        else:
            self.add(row)

    def add(self, row: Row) -> None:
        """Queue a row, or a function that makes one."""
        if self.waiting >= _MOST_WAITING:
            self._lost_by_engine += 1
            self._is_full = True
        else:
            self._rows.append(row)

    def flush(self) -> None:
        """Write the queued completions; on the writer's thread."""
        for _ in range(len(self._rows)):
            self._make(self._rows.popleft())
        try:
            self._write()
        except OSError as error:
            self._log_once(_CANNOT_WRITE, f"{error}; completions wait for room")
            if self._is_full:
                self._log_once(_FULL, f"{self.waiting} completions wait: newer ones are dropped")
        else:
            if _CANNOT_WRITE in self._logged:
                LOG.warning("completions are recorded in %s again", self._folder)
            self._is_full = False
            self._logged -= {_CANNOT_WRITE, _FULL}
        try:
            self._rotate()
        except (OSError, HistoryError) as error:
            self._log_once(_CANNOT_ROTATE, f"{error}; journals stay as they are")
        else:
            self._logged.discard(_CANNOT_ROTATE)

    def close(self) -> None:
        """Write everything, and turn all journals into Parquet."""
        self._closing = True
        self.flush()
        if self._lines:
            LOG.error("%d completions that waited for room are lost", len(self._lines))
            self._lost_by_writer += len(self._lines)
            self._lines.clear()
            self._line_bytes = 0

    def _make(self, row: Row) -> None:
        """Make a line of a row; count the row as lost if that is impossible."""
        try:
            fitted, changed = fit(row() if callable(row) else row)
            line = to_line(fitted)
        except RowError as error:
            self._refuse(str(error))
            return
        except Exception as error:  # noqa: BLE001  # from any input of a client
            self._refuse(named(error))
            return
        for change in changed:
            self.replaced += 1
            if change not in self._logged:
                self._logged.add(change)
                LOG.warning("recorded in %s without a value: %s", self._folder, change)
        if self._line_bytes + len(line) > _MOST_WAITING_BYTES:
            self._lost_by_writer += 1
            self._is_full = True
            return
        self._lines.append(line)
        self._line_bytes += len(line)

    def _write(self) -> None:
        """Append all waiting lines to the journal, piece by piece, the oldest first."""
        while self._lines:
            journal = self._open_journal()
            piece, size = 0, 0
            for line in self._lines:
                if piece and size + len(line) > _AT_ONCE_BYTES:
                    break
                piece, size = piece + 1, size + len(line)
            try:
                journal.write(list(islice(self._lines, piece)))
            except OSError:
                if not journal.is_sound:
                    journal.close()
                    self._journal, self._left_over = None, True
                raise
            for _ in range(piece):
                self._lines.popleft()
            self._line_bytes -= size
            self.recorded += piece

    def _open_journal(self) -> Journal:
        """Return the present journal, or a new one if there is none."""
        journal = self._journal
        if journal is not None and not journal.is_there():
            LOG.error("%s was removed, with %d completions", journal.path, journal.rows)
            journal.close()
            journal = None
        self._journal = journal or Journal(self._folder, self._writer)
        return self._journal

    def _rotate(self) -> None:
        journal = self._journal
        if journal is not None and (
            self._closing
            or journal.rows >= self._rotate_rows
            or time.monotonic() - journal.since >= self._rotate_s
        ):
            journal.close()
            self._journal, self._left_over = None, True
        self._check_helper()
        if self._closing:
            for _ in recover_journals(self._folder):
                pass
        elif self._left_over and self._helper is None:
            self._left_over = False
            mine = self._journal.path if self._journal is not None else None
            if any(path != mine for path in self._folder.glob(f"*{SUFFIX}")):
                self._helper = start_recovery(self._folder)

    def _check_helper(self) -> None:
        """Log the notes of the helper process if it has ended.

        Raises:
            HistoryError: if it failed; the next rotation tries again.
        """
        helper = self._helper
        if helper is not None and (self._closing or helper.poll() is not None):
            self._helper = None
            _, text = helper.communicate()
            notes = text.splitlines()
            failure = f"the process ended with {helper.returncode}"
            if helper.returncode and notes:
                failure = notes.pop()
            for note in notes:
                LOG.warning("%s", note)
            if helper.returncode:
                raise HistoryError(failure)

    def _refuse(self, reason: str) -> None:
        self._lost_by_writer += 1
        self._log_once(f"a completion is left out: {reason}")

    def _log_once(self, problem: str, details: str = "") -> None:
        if problem not in self._logged:
            self._logged.add(problem)
            reason = f"{problem}: {details}" if details else problem
            LOG.error("completions cannot be recorded in %s: %s", self._folder, reason)
