"""The order in which a serving system sees a history: each arrival, and each finish, in time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from sagellm_lifetime.core.timing import DEFAULT_SECONDS_PER_TOKEN


def seconds(frame: pl.DataFrame, *, missing: float | None = None) -> np.ndarray:
    """Time from arrival to finish of each row; where it is missing, 0.02 s per token."""
    lengths = frame["actual_length"].to_numpy().astype(np.float64)
    assumed = (
        lengths * DEFAULT_SECONDS_PER_TOKEN if missing is None else np.full(len(lengths), missing)
    )
    if "actual_time" not in frame.columns:
        return assumed
    measured = frame["actual_time"].cast(pl.Float64).to_numpy()
    return np.where(np.isfinite(measured), measured, assumed)


def relative_times(frame: pl.DataFrame) -> bool:
    """Whether arrival times restart with every session.

    On one clock the sessions of a history begin all along it. Here three quarters of them begin in
    the first twentieth of the time, which no service does.
    """
    if not {"session_id", "arrival_time"} <= set(frame.columns):
        return False
    starts = frame.group_by("session_id").agg(pl.col("arrival_time").min())["arrival_time"]
    first, last = frame["arrival_time"].min(), frame["arrival_time"].max()
    late = starts.quantile(0.75)
    if late is None or len(starts) < 4:
        return False
    first, last = float(first), float(last)  # type: ignore[arg-type]  # not null: late is not
    return late - first < 0.05 * (last - first)


def clock(frame: pl.DataFrame) -> np.ndarray | None:
    """Arrival of each row in seconds on one clock, or ``None`` when some row has no arrival.

    Where times restart with every session, the sessions are laid one after the other, in the order
    in which they first appear.
    """
    if "arrival_time" not in frame.columns or frame["arrival_time"].null_count():
        return None
    arrival = frame["arrival_time"].cast(pl.Float64).to_numpy()
    if not relative_times(frame):
        return arrival
    order = frame["session_id"].fill_null("").rank("dense").to_numpy()
    _, first = np.unique(order, return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    place = rank[order - 1]
    spans = np.zeros(len(first))
    np.maximum.at(spans, place, arrival + seconds(frame) - arrival.min() + 1.0)
    return np.asarray(arrival - arrival.min() + (np.cumsum(spans) - spans)[place])


def in_time_order(frame: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """Rows by arrival on one clock; without a clock, sessions (else rows) in a seeded random order.

    Files without times are often sorted by model or by prompt, and whoever learns in that order
    meets every model as a stranger and then never anything else.
    """
    arrival = clock(frame)
    if arrival is not None:
        return frame[np.argsort(arrival, kind="stable")]
    if "session_id" in frame.columns and frame["session_id"].null_count() == 0:
        group = frame["session_id"].rank("dense").to_numpy().astype(np.int64) - 1
    else:
        group = np.arange(len(frame))
    place = np.random.default_rng(seed).permutation(int(group.max(initial=-1)) + 1)
    return frame[np.argsort(place[group], kind="stable")]


def events(frame: pl.DataFrame) -> Iterator[tuple[int, bool]]:
    """``(row, finished)`` in time order; at equal times a finish comes before an arrival.

    Without arrival times the rows are taken to come one after the other.
    """
    n = len(frame)
    arrival = clock(frame)
    if arrival is None:
        arrival = np.arange(n, dtype=np.float64)
        finish = arrival + 0.5
    else:
        # Strictly after its own arrival, also where it took no time.
        finish = np.maximum(arrival + seconds(frame), np.nextafter(arrival, np.inf))
    times = np.concatenate([arrival, finish])
    finished = np.arange(2 * n) >= n
    for event in np.lexsort((~finished, times)):
        yield int(event % n), bool(event >= n)


def finish_reasons(frame: pl.DataFrame) -> list[str]:
    """Finish reason of each row, ``stop`` where it is missing."""
    if "finish_reason" not in frame.columns:
        return ["stop"] * len(frame)
    reasons: list[str] = frame["finish_reason"].cast(pl.String).fill_null("stop").to_list()
    return reasons


def censored(frame: pl.DataFrame) -> np.ndarray:
    """Rows whose length is only a lower bound (every finish but ``stop``), shape ``(N,)``."""
    return np.array([reason != "stop" for reason in finish_reasons(frame)], dtype=bool)
