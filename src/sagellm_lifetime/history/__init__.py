"""History files: one row per finished sequence (CSV, JSONL, Parquet; a file, glob or folder)."""

from __future__ import annotations

from sagellm_lifetime.history.read import History, read_history, scan_history
from sagellm_lifetime.history.schema import HISTORY_SCHEMA
from sagellm_lifetime.history.summary import HistorySummary
from sagellm_lifetime.history.write import write_history

__all__ = [
    "HISTORY_SCHEMA",
    "History",
    "HistorySummary",
    "read_history",
    "scan_history",
    "write_history",
]
