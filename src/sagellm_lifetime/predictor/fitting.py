"""Fit of a predictor on a history: the older part in bulk, the newest part by a replay.

The newest part is replayed in time order, predicted at arrival and learned at the finish, through
the same ``predict`` and ``update`` that an engine calls. So the calibration is learned from
predictions made before their outcomes were learned, and online choices are made as in service.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import client_key
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.overlap import sketch
from sagellm_lifetime.history.prequential import (
    Clock,
    censored,
    events,
    finish_reasons,
    in_time_order,
    relative_times,
    seconds,
)
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.predictor.fair_timing import FairTiming

if TYPE_CHECKING:
    from sagellm_lifetime.core.protocol import LifetimePredictorProtocol
    from sagellm_lifetime.history.reasons import CapReached
    from sagellm_lifetime.models.base import Progress

_LOG = logging.getLogger(__name__)
_CONTENT_AGES = [16 * 2**k for k in range(10)]
"""Ages at which a replayed sequence with content is predicted again, tokens."""
MAX_ROWS = 300_000
"""Maximum number of rows to learn from: the newest, since older ones predict little."""
_REPLAY_SHARE = 0.2
_MAX_REPLAY = 6000
REGISTERED: Final = 20_000
"""Number of newest rows whose clients are counted in the fair shares of the calibration."""
_LEAST = 20
"""Rows below which nothing is held out."""


@dataclass(frozen=True)
class Rows:
    """Rows of a checked history in two parts.

    Attributes:
        older: rows to learn in bulk, in time order.
        newest: rows to replay, in time order; empty for a short history.
        clock: origin of the arrival times.
        summary: number of rows, columns and lengths; no content.
    """

    older: pl.DataFrame
    newest: pl.DataFrame
    clock: Clock
    summary: dict[str, Any]

    def clients(self) -> list[str | None]:
        """Return the clients of the newest older rows, in time order; ``None`` without one."""
        if "client_id" not in self.older.columns:
            return []
        return self.older["client_id"].tail(REGISTERED).to_list()


def read(history: Any, cap_reached: CapReached = "length", clock: Clock = "auto") -> Rows:
    """Return the rows of a history to be fitted on; arguments as of ``Predictor.fit``.

    Raises:
        HistoryError: the history cannot be used.
    """
    from sagellm_lifetime.history import read_history
    from sagellm_lifetime.history.reasons import cap_reached_note

    read = read_history(history, cap_reached=cap_reached)
    if isinstance(history, str | os.PathLike):
        for line in read.notes:
            _LOG.warning(line)
    if read.cap_reached:
        _LOG.warning(cap_reached_note(read.cap_reached, len(read.frame), cap_reached))
    # Inferred once from the whole history: a part may lack the first rows of its sessions.
    origin: Clock = "session" if relative_times(read.frame, clock) else "wall"
    if clock == "auto" and origin == "session":
        _LOG.warning(
            "arrival times restart with every session: the sessions are taken one by one "
            "(clock='wall': all times are on one clock)"
        )
    frame = in_time_order(read.frame, clock=origin).tail(MAX_ROWS)
    summary = _summary(frame)
    if read.cap_reached:
        summary["cap_reached"] = {"rows": read.cap_reached, "as": cap_reached}
    return Rows(*_parts(frame, origin), origin, summary)


def _parts(frame: pl.DataFrame, clock: Clock) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the part to learn in bulk and the part to replay; no session or prompt is in both.

    With a prompt in both parts (another sample, another model) the replayed errors would be too
    small, and so would the intervals.
    """
    if len(frame) < _LEAST:
        return frame, frame.clear()
    share = 1.0 - min(_REPLAY_SHARE, _MAX_REPLAY / len(frame))
    try:
        parts = split(frame, "auto", share, clock=clock)
    except HistoryError:
        # One session (or prompt) has nearly all rows, so they are cut by order instead.
        parts = split(frame, "order", share)
    return in_time_order(parts.train, clock=clock), in_time_order(parts.test, clock=clock)


def _summary(frame: pl.DataFrame) -> dict[str, Any]:
    lengths = frame["actual_length"]
    return {
        "rows": len(frame),
        "columns": frame.columns,
        "censored": int(censored(frame).sum()),
        "length_quantiles": {
            str(q): lengths.quantile(q, interpolation="nearest") for q in (0.1, 0.5, 0.9, 0.99)
        },
        "sketch": sketch(frame),
    }


def seconds_per_token(frame: pl.DataFrame, keys: NameKeys) -> FairTiming:
    """Return the seconds per token, learned from the newest 50,000 rows with a duration.

    Args:
        frame: checked rows, in time order.
        keys: keys of the names of clients.
    """
    timing = FairTiming()
    if "actual_time" in frame.columns:
        columns = [
            c for c in ("model", "client_id", "actual_length", "actual_time") if c in frame.columns
        ]
        known = frame.select(columns).filter(pl.col("actual_time").is_not_null()).tail(50_000)
        for row in known.iter_rows(named=True):
            client = client_key(row.get("client_id"), keys)
            timing.learn(client, row.get("model"), row["actual_length"], row["actual_time"])
    return timing


def replay(
    predictor: LifetimePredictorProtocol,
    frame: pl.DataFrame,
    progress: Progress | None,
    clock: Clock,
) -> None:
    """Predict each row at its arrival and learn it at its finish, in time order.

    Args:
        predictor: predictor whose ``predict`` and ``update`` are called.
        frame: checked rows.
        progress: called with the name of the step and the share done; ``None`` for no calls.
        clock: origin of the arrival times.
    """
    requests = HistoryRequests(frame)
    lengths = frame["actual_length"].to_list()
    times = seconds(frame, missing=0.0).tolist()
    reasons = finish_reasons(frame)
    for step, (row, finished) in enumerate(events(frame, clock)):
        if not finished:
            predictor.predict(requests.request(row))
        else:
            if requests.has_content:
                for age in _CONTENT_AGES:
                    if age < lengths[row]:
                        predictor.predict(requests.request(row, age))
            predictor.update(row, lengths[row], times[row], finish_reason=reasons[row])
        if progress and step % 512 == 0:
            progress("calibrating", step / (2 * len(frame)))
