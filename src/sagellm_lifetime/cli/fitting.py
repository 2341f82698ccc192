"""Fitting a predictor for a command: checked before the work, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from sagellm_lifetime.cli.guard import CommandError
from sagellm_lifetime.cli.options import CapReached, Clock, OnBadRows
from sagellm_lifetime.cli.output import note, progress
from sagellm_lifetime.core.extras import is_installed

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.evaluation.dataset import Dataset
    from sagellm_lifetime.history import History
    from sagellm_lifetime.predictor.base import Predictor

ClockKind = Literal["wall", "session"]
_SHOWN: Final = 3
"""Bad rows named on stderr; ``--json`` has more of them."""


def has_torch() -> bool:
    """Return True if networks can be trained here; PyTorch is not loaded."""
    return is_installed("torch")


def check_names(given: Iterable[str]) -> list[str]:
    """Names of predictors, each once; a name may be several, with commas between.

    Raises:
        LifetimeError: nobody registered it, or it needs PyTorch and there is none.
    """
    from sagellm_lifetime.core.errors import MissingExtraError
    from sagellm_lifetime.predictor.registry import has_network

    names = [name.strip() for several in given for name in several.split(",") if name.strip()]
    if not names:
        raise CommandError("no predictor is named: choose one with --predictor-type")
    for name in names:
        if has_network(name) and not has_torch():
            raise MissingExtraError(f"training {name!r} (survival does without)", "train")
    return list(dict.fromkeys(names))


def tell(history: History) -> None:
    """Say on stderr what reading a history left out, skipped or assumed."""
    for line in history.notes:
        note(line, keep=True)
    if history.skipped:
        places = "; ".join(history.problems[:_SHOWN])
        note(f"skipped {history.skipped:,} bad rows, the first: {places}", keep=True)


def told(history: History) -> dict[str, Any]:
    """Return the same for ``--json``."""
    return {
        "skipped": history.skipped,
        "kinds": history.kinds,
        "problems": history.problems,
        "left_out": history.left_out,
        "ignored": history.ignored,
        "notes": history.notes,
    }


@dataclass
class Reading:
    """Read the logs of a command, and keep what was said about them.

    Attributes:
        on_bad_rows: refuse a log with bad rows, or skip them.
        cap_reached: finish reason of a row that gives none and ends exactly at its own cap.
        clock: what arrival times count from; ``auto`` tells it from the log.
        told: by source, what was said about it, for ``--json``.
    """

    on_bad_rows: OnBadRows = OnBadRows.refuse
    cap_reached: CapReached = CapReached.length
    clock: Clock = Clock.auto
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self, source: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the checked rows of a history; say on stderr what was skipped or decided."""
        from sagellm_lifetime.history import read_history
        from sagellm_lifetime.history.reasons import cap_reached_note

        history = read_history(
            source,
            on_bad_rows=self.on_bad_rows.value,
            columns=columns,
            cap_reached=self.cap_reached.value,
        )
        tell(history)
        if history.cap_reached:
            note(cap_reached_note(history.cap_reached, len(history.frame), self.cap_reached.value))
        self.told[source] = {
            "rows": len(history.frame),
            **told(history),
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
        return Dataset(rows, source, clock, self.told[source])

    def clock_of(self, source: str, rows: pl.DataFrame) -> ClockKind:
        """Return the clock of a whole log, ``wall`` or ``session``; say it where it is in doubt.

        Told from all rows: a part of them may lack the rows with which its sessions begin.
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
        kind: ClockKind = "session" if restarts else "wall"
        has_times = "arrival_time" in rows.columns and rows["arrival_time"].null_count() < len(rows)
        self.told[source]["clock"] = kind if has_times else None
        return kind

    def training_rows(self, source: str) -> tuple[pl.DataFrame, ClockKind]:
        """Return the rows a predictor learns from and their clock.

        Columns that nothing learns from are left out. Of a history that is longer than what is
        learned from, only that part is kept in memory.
        """
        from sagellm_lifetime.history import HISTORY_SCHEMA
        from sagellm_lifetime.history.prequential import in_time_order
        from sagellm_lifetime.predictor.fitting import MAX_ROWS

        columns = [name for name in HISTORY_SCHEMA if name not in ("request_id", "sample")]
        rows = self.rows(source, columns)
        unsaid = [name for name in columns if rows[name].null_count() == len(rows)]
        rows = rows.drop(unsaid) if len(rows) else rows
        clock = self.clock_of(source, rows)
        if len(rows) > MAX_ROWS:
            note(f"training on the newest {MAX_ROWS:,} of {len(rows):,} rows")
            rows = in_time_order(rows, clock=clock).tail(MAX_ROWS).clone()
        return rows, clock


def fit(
    name: str,
    rows: pl.DataFrame,
    *,
    seed: int,
    prepare: Callable[[Any], None] | None = None,
    label: str = "",
    clock: Literal["auto", "wall", "session"] = "auto",
    **options: Any,
) -> Predictor:
    """A new predictor, fitted.

    Args:
        prepare: called with the predictor before it is fitted.
        label: what the progress bar calls it.
        clock: what the arrival times of the rows count from.
        options: of the predictor; those that are ``None`` are left to it.
    """
    from sagellm_lifetime.history import History
    from sagellm_lifetime.predictor.registry import create_predictor

    given = {key: value for key, value in options.items() if value is not None}
    predictor = create_predictor(name, seed=seed, **given)
    if prepare is not None:
        prepare(predictor)
    with progress(label or f"training {name}") as step:
        # The rows were validated when they were read; a History is not validated again.
        predictor.fit(History(rows), progress=step, clock=clock)
    return predictor
