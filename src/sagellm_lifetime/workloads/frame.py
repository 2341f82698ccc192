"""Columns into a frame of the history format."""

from __future__ import annotations

from typing import Any

import polars as pl

from sagellm_lifetime.history import HISTORY_SCHEMA

COLUMNS = (
    "request_id",
    "model",
    "client_id",
    "session_id",
    "turn",
    "arrival_time",
    "prompt_length",
    "max_length",
    "actual_length",
    "actual_time",
    "finish_reason",
)


def history(name: str, n: int, columns: dict[str, Any]) -> pl.DataFrame:
    """``n`` rows of the workload ``name``; what ``columns`` leaves out is null, seconds are
    rounded to the microsecond."""
    given = {"request_id": [f"{name}-{row}" for row in range(n)], "model": [name] * n, **columns}
    wanted = [*COLUMNS, *(column for column in given if column not in COLUMNS)]
    frame = pl.DataFrame(
        {column: given.get(column, [None] * n) for column in wanted},
        schema={column: HISTORY_SCHEMA[column] for column in wanted},
    )
    return frame.with_columns(pl.col("arrival_time", "actual_time").round(6))
