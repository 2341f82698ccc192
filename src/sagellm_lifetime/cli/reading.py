"""Read the logs of a command: checked rows, their clock, and notes on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.options import CapReached, Clock, OnBadRows
from sagellm_lifetime.cli.output import keep_note, note
from sagellm_lifetime.cli.paths import check_apart, check_file
from sagellm_lifetime.core.wording import counted

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.evaluation.dataset import ClockKind, Dataset
    from sagellm_lifetime.history import History, HistorySummary
    from sagellm_lifetime.history.mapping import ColumnMap

_SHOWN: Final = 3
"""Bad rows named in ``notes``; ``log`` has more of them."""


def understood(history: History, source: str, clock: Clock = Clock.auto) -> HistorySummary:
    """Print on stderr what was understood of a log, and return it; stdout is for results."""
    from sagellm_lifetime.history import HistorySummary

    summary = HistorySummary.of(history, source=source, clock=clock.value)
    note(summary.render())
    for line in history.notes:
        keep_note(line)
    if history.skipped:
        first = "; ".join(history.problems[:_SHOWN])
        keep_note(f"skipped {counted(history.skipped, 'bad row')}, the first: {first}")
    return summary


def reading_json(history: History) -> dict[str, Any]:
    """Return skipped rows, ignored columns and assumptions of a history, for ``--json``."""
    return {
        "skipped": history.skipped,
        "kinds": history.kinds,
        "problems": history.problems,
        "left_out": history.left_out,
        "ignored": history.ignored,
        "notes": history.notes,
    }


def name_of(source: str) -> str:
    """Return the name of a log in results and messages: the address of a database, no password."""
    from sagellm_lifetime.history.databases import shown_source

    return shown_source(source)


def check_query(query: str | None, *sources: str | None) -> None:
    """Raise an error for a query that no source of a command is a database for.

    Raises:
        HistoryError: as of :func:`~sagellm_lifetime.history.databases.check_source`.
    """
    from sagellm_lifetime.history.databases import check_source, is_database

    if query is not None and not any(map(is_database, sources)):
        for source in filter(None, sources):
            check_source(source, query)


@dataclass(frozen=True)
class Mapping:
    """A mapping of ``--map``, and where ``--save-map`` keeps it.

    Attributes:
        columns: the mapping, None without one.
        target: the file to write it to, None for none.
    """

    columns: ColumnMap | None = None
    target: Path | None = None

    @classmethod
    def of(
        cls, texts: Sequence[str] | None, target: Path | None, *others: str | Path | None
    ) -> Mapping:
        """Return the mapping of the options, checked before a log is read.

        Args:
            texts: values of ``--map``.
            target: value of ``--save-map``.
            others: paths that the command reads or writes.

        Raises:
            LifetimeError: a mapping is none, or cannot be kept there.
        """
        from sagellm_lifetime.history.mapping import ColumnMap

        if target is not None:
            if not texts:
                raise CommandError("--save-map keeps the mapping of --map: say one")
            if target.suffix != ".toml":
                raise CommandError(f"--save-map {target}: name it .toml, as --map reads it")
            check_file(target)
            check_apart(target, [*others, *(t for t in texts if "=" not in t)])
        return cls(ColumnMap.parse(texts) if texts else None, target)

    def save(self, history: History) -> None:
        """Write the mapping that a history was read by, if that was asked for."""
        if self.target is None or history.mapping is None:
            return
        from sagellm_lifetime.core.atomic import write_atomically

        write_atomically(self.target, history.mapping.to_toml().encode())
        note(f"mapping: {self.target}")


@dataclass
class Reading:
    """Reader of the logs of a command, with notes on them.

    Attributes:
        on_bad_rows: refuse a log with bad rows, or skip them.
        cap_reached: finish reason of a row that gives none and ends exactly at its own cap.
        clock: origin of the arrival times; ``auto`` infers it from the log.
        mapping: where the columns of the logs stand, and where to keep that.
        query: the rows to read of a database.
        notes: notes on each log by its source, for ``--json``.
        summaries: what was understood of each log, by its source.
    """

    on_bad_rows: OnBadRows = OnBadRows.refuse
    cap_reached: CapReached = CapReached.length
    clock: Clock = Clock.auto
    mapping: Mapping = Mapping()
    query: str | None = None
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    summaries: dict[str, HistorySummary] = field(default_factory=dict)

    def log(self, source: str) -> dict[str, Any]:
        """Return what was understood of a log that was read, for ``--json`` under ``log``."""
        return self.summaries[name_of(source)].as_dict()

    def read(self, source: str) -> dict[str, Any]:
        """Return the notes on a log that was read."""
        return self.notes[name_of(source)]

    def logs(self, data_path: str, train_path: str | None = None) -> dict[str, Any]:
        """Return ``log``, and ``train_log`` where there is a log of its own to train on."""
        logs = {"log": self.log(data_path)}
        return logs if train_path is None else {**logs, "train_log": self.log(train_path)}

    def options(self, maps: Sequence[str] | None) -> list[str]:
        """Return the options with which another command reads the same log in the same way.

        Args:
            maps: values of ``--map``; a mapping that was kept in a file is named by that file.
        """
        kept = self.mapping.target
        if kept is not None and "=" not in str(kept):
            maps = [str(kept)]
        given = [("--map", text) for text in maps or []]
        given += [("--query", self.query)] if self.query is not None else []
        given += [
            (option, value.value)
            for option, value, usual in (
                ("--on-bad-rows", self.on_bad_rows, OnBadRows.refuse),
                ("--cap-reached", self.cap_reached, CapReached.length),
                ("--clock", self.clock, Clock.auto),
            )
            if value is not usual
        ]
        return [part for pair in given for part in pair]

    def rows(self, source: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the checked rows of a history; say on stderr what was understood."""
        from sagellm_lifetime.history import read_history
        from sagellm_lifetime.history.databases import is_database
        from sagellm_lifetime.history.reasons import cap_reached_note

        history = read_history(
            source,
            on_bad_rows=self.on_bad_rows.value,
            columns=columns,
            cap_reached=self.cap_reached.value,
            mapping=self.mapping.columns,
            query=self.query if is_database(source) else None,
        )
        name = name_of(source)
        is_first = not self.summaries  # the log to train on beside it has the same mapping
        self.summaries[name] = understood(history, name, self.clock)
        if is_first:
            self.mapping.save(history)
        if history.cap_reached:
            note(cap_reached_note(history.cap_reached, len(history.frame), self.cap_reached.value))
        self.notes[name] = {
            "rows": len(history.frame),
            **reading_json(history),
            "cap_reached": history.cap_reached,
            "cap_reached_as": self.cap_reached.value,
            "clock": None,
        }
        return history.frame

    def dataset(self, source: str) -> Dataset:
        """Return the checked rows of a history and their clock, for a library call."""
        from sagellm_lifetime.evaluation.dataset import Dataset

        rows = self.rows(source)
        clock = self.clock_of(source, rows)
        return Dataset(rows, name_of(source), clock, self.read(source))

    def clock_of(self, source: str, rows: pl.DataFrame) -> ClockKind:
        """Return the clock of a whole log; print a note where it is in doubt.

        It is inferred from all rows: a part may lack the rows with which its sessions begin.
        """
        from sagellm_lifetime.history.prequential import doubtful_clock, relative_times

        restarts = relative_times(rows, self.clock.value)
        if self.clock is Clock.auto and restarts:
            note(
                "arrival times restart with every session: the sessions are taken one by one "
                "(--clock wall: all times are on one clock)"
            )
        elif restarts:
            note("--clock session: the sessions are taken one by one, each on a clock of its own")
        elif self.clock is Clock.auto and doubtful_clock(rows):
            note(
                "arrival times are on one clock, though the sessions begin close together "
                "(--clock session: they restart with every session)"
            )
        clock: ClockKind = "session" if restarts else "wall"
        has_times = "arrival_time" in rows.columns and rows["arrival_time"].null_count() < len(rows)
        self.read(source)["clock"] = clock if has_times else None
        return clock

    def training_rows(self, source: str) -> tuple[pl.DataFrame, ClockKind]:
        """Return the rows a predictor learns from and their clock.

        Columns that are not learned from are dropped. Of a longer history only the newest
        ``MAX_ROWS`` rows are kept in memory.
        """
        from sagellm_lifetime.history import HISTORY_SCHEMA
        from sagellm_lifetime.history.prequential import in_time_order
        from sagellm_lifetime.predictor.fitting import MAX_ROWS

        columns = [name for name in HISTORY_SCHEMA if name not in ("request_id", "sample")]
        rows = self.rows(source, columns)
        empty = [name for name in columns if rows[name].null_count() == len(rows)]
        rows = rows.drop(empty) if len(rows) else rows
        clock = self.clock_of(source, rows)
        if len(rows) > MAX_ROWS:
            note(f"training on the newest {MAX_ROWS:,} of {len(rows):,} rows")
            rows = in_time_order(rows, clock=clock).tail(MAX_ROWS).clone()
        return rows, clock
