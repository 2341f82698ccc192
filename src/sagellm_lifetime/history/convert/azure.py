"""Azure LLM inference traces, 2023 (Splitwise) and 2024 (DynamoLLM).

CSV with ``TIMESTAMP,ContextTokens,GeneratedTokens``. The times of 2023 are naive with seven
decimals (``2023-11-16 18:15:46.6805900``), those of 2024 carry an offset
(``2024-05-10 00:00:00.009930+00:00``). Nothing is known of caps, durations or how answers ended.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from sagellm_lifetime.history.read import History, OnBadRows, read_as
from sagellm_lifetime.history.schema import Layout
from sagellm_lifetime.history.times import iso_seconds

_LAYOUT = Layout(
    {
        "arrival_time": "TIMESTAMP",
        "prompt_length": "ContextTokens",
        "actual_length": "GeneratedTokens",
    },
    required=("arrival_time", "prompt_length", "actual_length"),
    values={"arrival_time": iso_seconds(pl.col("TIMESTAMP"))},
    foreign=True,
)


def read(source: str, *, keep_content: bool, on_bad_rows: OnBadRows) -> History:
    """Return the requests of a trace, arrivals counted from the first."""
    del keep_content  # the trace has none
    history = read_as(source, {"csv": _LAYOUT}, _LAYOUT.names, on_bad_rows=on_bad_rows)
    # Seconds since 1970 would spend the digits of a float on the date.
    since_start = pl.col("arrival_time") - pl.col("arrival_time").min()
    return replace(history, frame=history.frame.with_columns(since_start.round(6)))
