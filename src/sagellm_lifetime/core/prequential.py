"""The order in which a serving system sees a history: each arrival, and each finish, in time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from sagellm_lifetime.core.timing import DEFAULT_SECONDS_PER_TOKEN


def seconds(frame: pl.DataFrame) -> np.ndarray:
    """Time from arrival to finish of each row; where it is missing, 0.02 s per token."""
    lengths = frame["actual_length"].to_numpy().astype(np.float64)
    estimated = lengths * DEFAULT_SECONDS_PER_TOKEN
    if "actual_time" not in frame.columns:
        return estimated
    measured = frame["actual_time"].cast(pl.Float64).to_numpy()
    return np.where(np.isfinite(measured), measured, estimated)


def events(frame: pl.DataFrame) -> Iterator[tuple[int, bool]]:
    """``(row, finished)`` in time order; at equal times a finish comes before an arrival.

    Without arrival times the rows are taken to come one after the other.
    """
    n = len(frame)
    if "arrival_time" in frame.columns and frame["arrival_time"].null_count() == 0:
        arrival = frame["arrival_time"].to_numpy().astype(np.float64)
        finish = arrival + seconds(frame)
    else:
        arrival = np.arange(n, dtype=np.float64)
        finish = arrival + 0.5
    times = np.concatenate([arrival, finish])
    finished = np.arange(2 * n) >= n
    for event in np.lexsort((~finished, times)):
        yield int(event % n), bool(event >= n)


def censored(frame: pl.DataFrame) -> np.ndarray:
    """Rows whose length is only a lower bound (every finish but ``stop``), shape ``(N,)``."""
    if "finish_reason" not in frame.columns:
        return np.zeros(len(frame), dtype=bool)
    return (frame["finish_reason"].fill_null("stop") != "stop").to_numpy()
