"""Answers on disk: a JSONL file that grows while they come, and the Parquet made of it.

The columns are those of a history. While they grow, ``eos_logprob`` and ``entropy`` (nats) have an
entry for every token; in the Parquet, one for every 16, as histories have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from sagellm_lifetime.core.signals import windows

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

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The answers so far; a last line that a crash has torn is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return [json.loads(line) for line in data[:whole].splitlines()]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add answers; they are on the disk when this returns."""
    with path.open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _signals(row: Row) -> Row:
    eos_logprob, entropy = windows(row["eos_logprob"], row["entropy"])
    return {"eos_logprob": eos_logprob, "entropy": entropy}


def write_parquet(rows: list[Row], path: Path) -> None:
    """All answers as one history file, in the order in which they were asked."""
    rows = [{**row, **_signals(row)} for row in rows]
    frame = pl.DataFrame(rows, schema=SCHEMA).sort("arrival_time", "request_id")
    temporary = path.with_name(f".{path.name}.tmp")
    frame.write_parquet(temporary, compression="zstd", compression_level=19)
    temporary.replace(path)
