"""The record of a live engine: rows of any kind, files with damage. Nothing stops the rest."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

from fuzzing import need
from fuzzing.values import as_json, damaged
from sagellm_lifetime.vllm.journal import recover_journals
from sagellm_lifetime.vllm.recorder import Recorder

SOUND = 5
ODD: list[Any] = ["\ud800", "\x00", "é", 2**64, 2**63, -1, 1.5, float("nan"), 1e308, None, True]


def setup(folder: Path) -> Path:
    """Return a folder to record in."""
    return folder / "record"


def _row(rng: Random, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {"request_id": f"r{number}", "actual_length": 5, "finish_reason": "stop"}
    if rng.random() < 0.5:
        name = rng.choice(["client_id", "turn", "arrival_time", "prefix_hashes", "model", "sample"])
        row[name] = rng.choice([rng.choice(ODD), as_json(rng), [rng.choice(ODD)]])
    return row


def attempt(folder: Path, rng: Random) -> str:
    """Record a few rows, damage the journal perhaps, and take it up again."""
    shutil.rmtree(folder, ignore_errors=True)
    recorder = Recorder(folder, "engine-0")
    for number in range(SOUND):
        recorder.add({"request_id": f"s{number}", "actual_length": 7, "finish_reason": "stop"})
        recorder.add(_row(rng, number))
    recorder.flush()
    harmed = rng.random() < 0.5
    if harmed:
        for journal in folder.glob("*.journal"):
            journal.write_bytes(damaged(rng, journal.read_bytes()))
    recorder.close()
    list(recover_journals(folder))
    files = list(folder.glob("*.parquet"))
    rows = sum(len(pl.read_parquet(file)) for file in files)
    if not harmed:
        found = {name for file in files for name in pl.read_parquet(file)["request_id"].to_list()}
        lost = {f"s{number}" for number in range(SOUND)} - found
        need(not lost, f"sound rows are lost: {lost}")
    need(not list(folder.glob("*.journal")), "the journal stays for ever")
    return "taken" if rows else "refused"
