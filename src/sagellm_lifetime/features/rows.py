"""Requests as they were at admission, from the rows of a history."""

from __future__ import annotations

from typing import Any

import polars as pl

from sagellm_lifetime.core.protocol import PredictionRequest

_FEATURES = (
    "prompt_length",
    "prompt_text",
    "model",
    "client_id",
    "session_id",
    "turn",
    "arrival_time",
    "prefix_hashes",
)


def admission_requests(frame: pl.DataFrame, *, first_id: int = 0) -> list[PredictionRequest]:
    """One request per row at age 0, ids counted from ``first_id``."""
    columns = [c for c in _FEATURES if c in frame.columns]
    tokens = "prompt_token_ids" in frame.columns
    capped = "max_length" in frame.columns
    requests = []
    for i, row in enumerate(frame.iter_rows(named=True)):
        said: dict[str, Any] = {c: row[c] for c in columns if row[c] is not None}
        requests.append(
            PredictionRequest(
                first_id + i,
                (row["prompt_token_ids"] or []) if tokens else [],
                0,
                row["max_length"] if capped else None,
                said or None,
            )
        )
    return requests
