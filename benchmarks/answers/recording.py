"""What the package's recorder wrote of a plan: found again, joined with it, made one Parquet.

The recorder knows an ask as vLLM does inside: by its key, a dash and eight random characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from answers.plan import Ask

from sagellm_lifetime import read_history
from sagellm_lifetime.core.atomic import replacing
from sagellm_lifetime.vllm.journal import SUFFIX, recover_journals

SCHEMA: dict[str, Any] = {
    "request_id": pl.String,
    "model": pl.String,
    "client_id": pl.String,
    "session_id": pl.String,
    "prompt_id": pl.String,
    "arrival_time": pl.Float64,
    "turn": pl.Int64,
    "sample": pl.Int64,
    "prompt_length": pl.Int64,
    "max_length": pl.Int64,
    "actual_length": pl.Int64,
    "actual_time": pl.Float64,
    "finish_reason": pl.String,
    "temperature": pl.Float32,
    "prompt_text": pl.String,
    "prompt_token_ids": pl.List(pl.UInt16),
    "output_token_ids": pl.List(pl.UInt16),
    "eos_logprob": pl.List(pl.Float32),
    "entropy": pl.List(pl.Float32),
}
PLANNED = ("prompt_id", "sample", "prompt_text")
"""What an engine cannot know."""
RECORDED = tuple(name for name in SCHEMA if name not in PLANNED)


def answered(folder: Path) -> pl.DataFrame:
    """The answers in a folder of the recorder, under the keys of their asks.

    What a killed recording has left is taken up first. An answer that failed is none.

    Raises:
        SystemExit: somebody writes there.
        HistoryError: a file cannot be read.
    """
    for _ in recover_journals(folder):
        pass
    if any(folder.glob(f"*{SUFFIX}")):
        raise SystemExit(f"error: {folder}: another recording writes there: wait until it ends")
    if not any(folder.glob("*.parquet")):
        return pl.DataFrame(schema={name: SCHEMA[name] for name in RECORDED})
    return (
        read_history(folder, columns=RECORDED)
        .frame.filter(pl.col("finish_reason").is_in(["stop", "length"]))
        .with_columns(pl.col("request_id").str.replace(r"-[^-]*$", ""))
    )


def joined(rows: pl.DataFrame, asks: Sequence[Ask]) -> pl.DataFrame:
    """The answers with what was planned, in the order in which they were asked."""
    planned = pl.DataFrame(
        [(ask.key, *(getattr(ask, name) for name in PLANNED)) for ask in asks],
        schema={name: SCHEMA[name] for name in ("request_id", *PLANNED)},
        orient="row",
    )
    return (
        _on_one_clock(rows)
        .join(planned, on="request_id", how="left")
        .select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())
        .sort("arrival_time", "request_id")
    )


def _on_one_clock(rows: pl.DataFrame) -> pl.DataFrame:
    """Arrivals in seconds from the first; the clock stands while nothing that is there was made.

    So a recording that was interrupted for a night does not last one.
    """
    arrival = pl.col("arrival_time")
    ended = (arrival + pl.col("actual_time")).cum_max().shift(1, fill_value=0.0)
    idle = (arrival - ended).clip(lower_bound=0.0).cum_sum()
    return rows.sort("arrival_time").with_columns(
        (arrival - idle).round(3), pl.col("actual_time").round(3)
    )


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """As small as it gets: it is part of the package."""
    with replacing(path) as file:
        frame.write_parquet(file, compression="zstd", compression_level=19)
