"""Completions of a live engine, written by another thread than the engine's."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.engines.vllm.breaker import LOG, named
from sagellm_lifetime.engines.vllm.journal import SUFFIX, Journal, take_up, take_up_elsewhere

_MOST_WAITING: Final = 100_000
"""Rows kept while nothing can be written."""
Row = dict[str, Any] | Callable[[], dict[str, Any]]


class Recorder:
    """Takes rows from the engine, writes them when it is told to, rotates them into Parquet.

    Nothing here ever fails: what cannot be written is counted in ``lost`` and said once.

    Args:
        folder: where the files go.
        writer: name of this process in their names.
        content: whether rows carry token ids.
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
        self.lost = 0
        self._folder = folder
        self._writer = writer
        self._rotate_rows = rotate_rows
        self._rotate_s = rotate_s
        self._rows: deque[Row] = deque()
        self._journal: Journal | None = None
        self._left_over = True
        """Whether there may be journals that nobody writes any more."""
        self._helper: subprocess.Popen[str] | None = None
        """Takes them up."""
        self._closing = False
        self._complained = False

    def take(self, make: Callable[[], dict[str, Any]]) -> None:
        """One completion; on the engine's thread, which leaves making a row of it to the writer."""
        self.add(make)

    def take_now(self, make: Callable[[], dict[str, Any]]) -> None:
        """The same, where what the row is made of is about to change."""
        row = self._made(make)
        if row is not None:
            self.add(row)

    def add(self, row: Row) -> None:
        """One completion, or what makes it."""
        if len(self._rows) >= _MOST_WAITING:
            self.lost += 1
        else:
            self._rows.append(row)

    def _made(self, row: Row) -> dict[str, Any] | None:
        """The row, unless it is one of something that no row can be made of."""
        try:
            return row() if callable(row) else row
        except Exception as error:  # noqa: BLE001  # whatever a client has sent
            self.lost += 1
            self._complain(error)
            return None

    def flush(self) -> None:
        """Write what has come since the last time; on the writer's thread."""
        taken = (self._made(self._rows.popleft()) for _ in range(len(self._rows)))
        rows = [row for row in taken if row is not None]
        try:
            if rows:
                if self._journal is None:
                    self._journal = Journal(self._folder, self._writer)
                self._journal.write(rows)
                self.recorded += len(rows)
                self._complained = False
                rows = []
            self._rotate()
        except (OSError, HistoryError) as error:
            self.lost += len(rows)
            self._complain(error)

    def close(self) -> None:
        """Write everything, and leave Parquet only."""
        self._rotate_rows, self._closing = 1, True
        self.flush()

    def _rotate(self) -> None:
        journal = self._journal
        if journal is not None and (
            journal.rows >= self._rotate_rows or time.monotonic() - journal.since >= self._rotate_s
        ):
            journal.close()
            self._journal, self._left_over = None, True
        self._mind_helper()
        if self._closing:
            for _ in take_up(self._folder):
                pass
        elif self._left_over and self._helper is None:
            self._left_over = False
            mine = self._journal.path if self._journal is not None else None
            if any(path != mine for path in self._folder.glob(f"*{SUFFIX}")):
                self._helper = take_up_elsewhere(self._folder)

    def _mind_helper(self) -> None:
        """See to it when it has ended; what it could not do is tried at the next rotation."""
        helper = self._helper
        if helper is not None and (self._closing or helper.poll() is not None):
            self._helper = None
            _, said = helper.communicate()
            if helper.returncode:
                raise HistoryError(said.strip() or f"the process ended with {helper.returncode}")

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            # Of a file it quotes at most what was to be recorded.
            said = str(error) if isinstance(error, HistoryError) else named(error)
            LOG.error("completions cannot be recorded in %s: %s", self._folder, said)
        self._complained = True
