"""Whether the times of a history are in the unit that they should be in."""

from __future__ import annotations

from typing import Final

import polars as pl

SLOWEST: Final = 2.0
"""Seconds a generated token, at the median, above which a log is hardly in seconds."""
FASTEST: Final = 1e-4
"""And below which it is hardly in seconds either: no engine generates 10,000 tokens a second."""
_ENOUGH: Final = 100_000  # rows that a median is taken of
_LONG: Final = 32  # tokens: of shorter answers the time is mostly waiting


def seconds_per_token(frame: pl.DataFrame) -> float | None:
    """Return the median of ``actual_time`` a generated token, None where the rows do not say.

    Answers of at least 32 tokens decide where there are some: a short one has mostly waited.
    """
    if not {"actual_time", "actual_length"} <= set(frame.columns):
        return None
    every = max(1, frame.height // _ENOUGH)
    held = (
        frame.select("actual_time", "actual_length")
        .gather_every(every)
        .lazy()
        .filter(pl.col("actual_time").is_not_null() & (pl.col("actual_length") > 0))
    )
    ratio = pl.col("actual_time") / pl.col("actual_length")
    long = ratio.filter(pl.col("actual_length") >= _LONG).median()
    found: float | None = held.select(pl.coalesce(long, ratio.median())).collect().item()
    return found


def unit_warning(frame: pl.DataFrame) -> str | None:
    """Return one line where ``actual_time`` is hardly in seconds, None where it may be."""
    found = seconds_per_token(frame)
    if found is None or found == 0.0 or FASTEST <= found <= SLOWEST:
        return None
    if found > SLOWEST:
        guess = "milliseconds" if found / 1e3 <= SLOWEST else "microseconds or nanoseconds"
    else:
        guess = "minutes or hours"
    return (
        f"actual_time: {found:.3g} s a token at the median: is it in {guess}? it should be seconds"
    )
