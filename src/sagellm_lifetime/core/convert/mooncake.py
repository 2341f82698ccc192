"""Mooncake (Kimi) traces: JSONL with ``timestamp`` (milliseconds), lengths and ``hash_ids``.

``hash_ids`` are the ids of the prompt's 512-token blocks; equal leading ids share KV cache.
"""

from __future__ import annotations

import polars as pl

from sagellm_lifetime.core.history.read import OnBadRows, read_as
from sagellm_lifetime.core.history.schema import Layout

_LAYOUT = Layout(
    {
        "arrival_time": "timestamp",
        "prompt_length": "input_length",
        "actual_length": "output_length",
        "prefix_hashes": "hash_ids",
    },
    required=("arrival_time", "prompt_length", "actual_length"),
    values={"arrival_time": pl.col("timestamp").cast(pl.Float64, strict=False) / 1000},
    foreign=True,
)


def read(source: str, *, keep_content: bool, on_bad_rows: OnBadRows) -> pl.DataFrame:
    del keep_content  # the trace has none
    return read_as(source, {"jsonl": _LAYOUT}, _LAYOUT.names, on_bad_rows=on_bad_rows).frame
