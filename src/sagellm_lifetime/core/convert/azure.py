"""Azure LLM inference traces, 2023 (Splitwise) and 2024 (DynamoLLM).

CSV with ``TIMESTAMP,ContextTokens,GeneratedTokens``. The times of 2023 are naive with seven
decimals (``2023-11-16 18:15:46.6805900``), those of 2024 carry an offset
(``2024-05-10 00:00:00.009930+00:00``). Nothing is known of caps, durations or how answers ended.
"""

from __future__ import annotations

import polars as pl

from sagellm_lifetime.core.history.read import OnBadRows, read_as
from sagellm_lifetime.core.history.schema import Layout


def _seconds(column: str) -> pl.Expr:
    clock = pl.col(column).str.strip_chars()
    offset = clock.str.extract(r"([+-]\d\d):?\d\d$", 1).cast(pl.Int64, strict=False).fill_null(0)
    naive = clock.str.replace(r"(Z|[+-]\d\d:?\d\d)$", "").str.replace("T", " ", literal=True)
    moment = naive.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    return moment.dt.epoch("ns") / 1e9 - offset * 3600


_LAYOUT = Layout(
    {
        "arrival_time": "TIMESTAMP",
        "prompt_length": "ContextTokens",
        "actual_length": "GeneratedTokens",
    },
    required=("arrival_time", "prompt_length", "actual_length"),
    values={"arrival_time": _seconds("TIMESTAMP")},
    foreign=True,
)


def read(source: str, *, keep_content: bool, on_bad_rows: OnBadRows) -> pl.DataFrame:
    del keep_content  # the trace has none
    frame = read_as(source, {"csv": _LAYOUT}, _LAYOUT.names, on_bad_rows=on_bad_rows).frame
    # Seconds since 1970 would spend the digits of a float on the date.
    since_start = pl.col("arrival_time") - pl.col("arrival_time").min()
    return frame.with_columns(since_start.round(6))
