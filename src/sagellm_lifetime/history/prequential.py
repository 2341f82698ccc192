"""Replay a history in time order, as in service: each arrival and each finish."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, get_args

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.core.timing import DEFAULT_SECONDS_PER_TOKEN
from sagellm_lifetime.history.reasons import finish_reason

Clock = Literal["auto", "wall", "session"]
"""Origin of arrival times: one for all, or the start of each session."""
_NEARLY_ALL: Final = 0.95
_SOME: Final = 0.1


def seconds(frame: pl.DataFrame, *, missing: float | None = None) -> np.ndarray:
    """Return the seconds from arrival to finish of each row, shape ``(N,)``.

    Where they are missing: ``missing``, or 0.02 s per token if that is ``None``.
    """
    lengths = frame["actual_length"].to_numpy().astype(np.float64)
    assumed = (
        lengths * DEFAULT_SECONDS_PER_TOKEN if missing is None else np.full(len(lengths), missing)
    )
    if "actual_time" not in frame.columns:
        return assumed
    measured = frame["actual_time"].cast(pl.Float64).to_numpy()
    return np.where(np.isfinite(measured), measured, assumed)


def check_clock(clock: str) -> None:
    """Raise :class:`UnknownNameError` unless ``clock`` is ``auto``, ``wall`` or ``session``."""
    if clock not in get_args(Clock):
        raise UnknownNameError("clock", clock, list(get_args(Clock)))


def relative_times(frame: pl.DataFrame, clock: Clock = "auto") -> bool:
    """Return True if arrival times restart with every session.

    ``wall`` and ``session`` state it. ``auto`` reads when the sessions begin. In times that
    restart, all begin at exactly the same time (usually 0). In some logs a session counts from
    before its first request: there a tenth of the sessions must begin at exactly the first time,
    and three quarters in the first twentieth of the time.

    Users of a load test begin within a short time as well, or all at once. Rows in time order are
    therefore taken to be on one clock: a log of one clock mostly is in that order, and a log of
    many is mostly written session by session. :func:`doubtful_clock` is True when this is a guess.
    """
    check_clock(clock)
    if clock == "wall" or not {"session_id", "arrival_time"} <= set(frame.columns):
        return False
    if clock == "session":
        return True
    starts, first, last = _session_starts(frame)
    if len(starts) < 2 or first == last:  # all at once, so the clock does not matter
        return False
    if frame["arrival_time"].drop_nulls().is_sorted():
        return False
    together = int((starts == first).sum())
    if together >= _NEARLY_ALL * len(starts):
        return True
    return _crowded(starts, first, last) and together >= max(2, _SOME * len(starts))


def doubtful_clock(frame: pl.DataFrame) -> bool:
    """Return True if the clock of a log is in doubt, because its sessions begin together."""
    if not {"session_id", "arrival_time"} <= set(frame.columns):
        return False
    starts, first, last = _session_starts(frame)
    return len(starts) > 1 and first != last and _crowded(starts, first, last)


def _session_starts(frame: pl.DataFrame) -> tuple[pl.Series, float, float]:
    """Return the first arrival of each named session, and the first and last of all of them."""
    rows = frame.select("session_id", "arrival_time").drop_nulls()
    if rows.is_empty():
        return rows["arrival_time"], 0.0, 0.0
    starts = rows.group_by("session_id").agg(pl.col("arrival_time").min())["arrival_time"]
    times = rows["arrival_time"].cast(pl.Float64)
    return starts, float(times.min()), float(times.max())  # type: ignore[arg-type]  # not empty


def _crowded(starts: pl.Series, first: float, last: float) -> bool:
    together = int((starts == first).sum())
    late = float(starts.quantile(0.75))  # type: ignore[arg-type]  # there are starts
    return together >= _NEARLY_ALL * len(starts) or late - first < 0.05 * (last - first)


def clock(frame: pl.DataFrame, kind: Clock = "auto") -> np.ndarray | None:
    """Return the arrival of each row in seconds on one clock, shape ``(N,)``.

    ``None`` when some row has no arrival. Where times restart with every session (see
    :func:`relative_times` for ``kind``), the sessions are laid one after the other, in the order in
    which they first appear.
    """
    if "arrival_time" not in frame.columns or frame["arrival_time"].null_count():
        return None
    arrival = frame["arrival_time"].cast(pl.Float64).to_numpy()
    if not relative_times(frame, kind):
        return arrival
    session = frame["session_id"].fill_null("").rank("dense").to_numpy()
    _, first = np.unique(session, return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    position = rank[session - 1]
    spans = np.zeros(len(first))
    np.maximum.at(spans, position, arrival + seconds(frame) - arrival.min() + 1.0)
    return np.asarray(arrival - arrival.min() + (np.cumsum(spans) - spans)[position])


_clock = clock  # where a parameter is called ``clock``


def in_time_order(frame: pl.DataFrame, *, seed: int = 0, clock: Clock = "auto") -> pl.DataFrame:
    """Return the rows by arrival, or, without times, whole sessions (else rows) in random order.

    Files without times are often sorted by model or by prompt; learning in that order would meet
    one model after the other.

    Args:
        frame: history rows.
        seed: seed of the random order.
        clock: what arrival times count from, see :func:`relative_times`.
    """
    arrival = _clock(frame, clock)
    if arrival is not None:
        return frame[np.argsort(arrival, kind="stable")]
    if "session_id" in frame.columns and frame["session_id"].null_count() == 0:
        group = frame["session_id"].rank("dense").to_numpy().astype(np.int64) - 1
    else:
        group = np.arange(len(frame))
    position = np.random.default_rng(seed).permutation(int(group.max(initial=-1)) + 1)
    return frame[np.argsort(position[group], kind="stable")]


def events(frame: pl.DataFrame, clock: Clock = "auto") -> Iterator[tuple[int, bool]]:
    """Yield ``(row, is_finish)`` in time order; at equal times a finish precedes an arrival.

    Without arrival times the rows come one after the other.
    """
    n = len(frame)
    arrival = _clock(frame, clock)
    if arrival is None:
        arrival = np.arange(n, dtype=np.float64)
        finish = arrival + 0.5
    else:
        # Strictly after its own arrival, also where it took no time.
        finish = np.maximum(arrival + seconds(frame), np.nextafter(arrival, np.inf))
    times = np.concatenate([arrival, finish])
    is_finish = np.arange(2 * n) >= n
    for event in np.lexsort((~is_finish, times)):
        yield int(event % n), bool(event >= n)


def finish_reasons(frame: pl.DataFrame) -> list[str]:
    """Return the finish reason of each row.

    Where it is missing: ``length`` if the row ends exactly at its own ``max_length``, else
    ``stop``.
    """
    filled = frame.with_columns(finish_reason(frame.columns))
    reasons: list[str] = filled["finish_reason"].to_list()
    return reasons


def censored(frame: pl.DataFrame) -> np.ndarray:
    """Return which rows are only lower bounds (every finish but ``stop``); bool, ``(N,)``."""
    return np.array([reason != "stop" for reason in finish_reasons(frame)], dtype=bool)
