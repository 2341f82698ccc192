"""History files, and logs of others, with damage: read, or refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from fuzzing import need, refused
from fuzzing.values import as_json, damaged
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.history import read_history
from sagellm_lifetime.history.convert import FORMATS, convert

ROWS = 12


def _rows(rng: Random) -> list[dict[str, Any]]:
    return [
        {
            "request_id": f"r{i}",
            "model": "m",
            "client_id": rng.choice(["a", "b", None]),
            "arrival_time": float(i),
            "prompt_length": rng.randrange(500),
            "max_length": rng.choice([None, 512]),
            "actual_length": rng.randrange(1, 512),
            "actual_time": rng.random() * 10,
            "finish_reason": rng.choice(["stop", "length", None]),
            "prefix_hashes": [1, 2, i],
        }
        for i in range(ROWS)
    ]


def _trace(rng: Random, name: str) -> bytes:
    """Return a log in somebody else's form, by and large."""
    if name == "mooncake":
        rows = [
            {"timestamp": i * 1000, "input_length": 600, "output_length": 5, "hash_ids": [0, i]}
            for i in range(ROWS)
        ]
        return "\n".join(map(json.dumps, rows)).encode()
    if name == "sharegpt":
        turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello there"}]
        return json.dumps([{"id": str(i), "conversations": turns} for i in range(ROWS)]).encode()
    head = {
        "azure": "TIMESTAMP,ContextTokens,GeneratedTokens",
        "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
    }.get(name, "timestamp,input_tokens,output_tokens")
    rows = [f"2024-05-10 00:00:{i:02d},10,{i + 1}" for i in range(ROWS)]
    if name == "burstgpt":
        rows = [f"{i},ChatGPT,10,{i + 1},{i + 11},API log" for i in range(ROWS)]
    return "\n".join([head, *rows]).encode()


def setup(folder: Path) -> Path:
    """Return a folder to write to."""
    return folder


def attempt(folder: Path, rng: Random) -> str:
    """Read one damaged file."""
    way = rng.choice(["refuse", "skip"])
    if rng.random() < 0.3:
        name = rng.choice(list(FORMATS))
        source = folder / f"trace.{'csv' if name in ('azure', 'burstgpt', 'servegen') else 'jsonl'}"
        data = _trace(rng, name)
        source.write_bytes(damaged(rng, data) if rng.random() < 0.8 else data)
        try:
            convert(name, source, folder / "out.parquet", on_bad_rows=way)
        except LifetimeError as error:
            return refused(error)
        return "taken"
    rows = _rows(rng)
    if rng.random() < 0.6:
        row = rng.choice(rows)
        row[rng.choice(list(row))] = as_json(rng)
    suffix = rng.choice(["csv", "jsonl", "parquet", "jsonl.gz"])
    source = folder / f"history.{suffix}"
    for old in folder.glob("history.*"):
        old.unlink()
    if suffix == "csv":
        names = [name for name in rows[0] if name != "prefix_hashes"]
        lines = [",".join("" if row[n] is None else str(row[n]) for n in names) for row in rows]
        data = "\n".join([",".join(names), *lines]).encode("utf-8", "surrogatepass")
    elif suffix == "parquet":
        frame = pl.DataFrame(_rows(rng))
        frame.write_parquet(source)
        data = source.read_bytes()
    else:
        data = "\n".join(map(json.dumps, rows)).encode()
    data = damaged(rng, data) if rng.random() < 0.6 else data
    source.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    try:
        found = read_history(source, on_bad_rows=way)
    except LifetimeError as error:
        return refused(error)
    frame = found.frame
    need(frame["actual_length"].null_count() == 0, "a row without a length was read")
    need(bool((frame["actual_length"] >= 0).all()), "a negative length was read")
    if "arrival_time" in frame.columns:
        times = frame["arrival_time"].drop_nulls()
        need(bool(times.is_finite().all()), "a time that is no number was read")
    need(way == "skip" or found.skipped == 0, "rows were skipped and should have been refused")
    return "taken"
