"""The rows of a log together with what is known about them: their name and their clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from sagellm_lifetime.history import read_history
from sagellm_lifetime.history.prequential import Clock, relative_times

ClockKind = Literal["wall", "session"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to train on, to score or to replay.

    Attributes:
        rows: checked rows of the history format, one a finished sequence.
        name: path or other name, for messages and results.
        clock: origin of ``arrival_time``: one clock for all rows, or one for each session.
        reading: what reading skipped, left out or assumed; goes into the JSON of results as it is.

    >>> data = Dataset.of(pl.DataFrame({"actual_length": [5, 0, 12]}), "three rows")
    >>> data.has_tokens, data.has_all_arrivals, data.recorded_clock
    (True, False, None)
    """

    rows: pl.DataFrame
    name: str = "history"
    clock: ClockKind = "wall"
    reading: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pl.DataFrame, name: str = "history", clock: Clock = "auto") -> Dataset:
        """Return rows as a dataset; ``auto`` infers the clock from the arrival times."""
        return cls(rows, name, "session" if relative_times(rows, clock) else "wall")

    @classmethod
    def read(cls, source: str | Path, *, clock: Clock = "auto") -> Dataset:
        """Return the rows of a file, a glob or a folder.

        Raises:
            HistoryError: it cannot be read, or a row breaks the format.
        """
        return cls.of(read_history(source).frame, str(source), clock)

    @property
    def has_tokens(self) -> bool:
        """True if any sequence generated tokens."""
        return bool((self.rows["actual_length"] > 0).any())

    @property
    def has_all_arrivals(self) -> bool:
        """True if every row has an arrival time."""
        return "arrival_time" in self.rows.columns and not self.rows["arrival_time"].null_count()

    @property
    def recorded_clock(self) -> ClockKind | None:
        """The clock, or None if no row has an arrival time."""
        rows = self.rows
        has_any = "arrival_time" in rows.columns and rows["arrival_time"].null_count() < len(rows)
        return self.clock if has_any else None
