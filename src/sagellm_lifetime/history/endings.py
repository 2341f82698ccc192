"""How a row ended where the log does not say: by itself, or at the cap that its own row names.

Many logs have ``max_tokens`` and no finish reason. A row that ends exactly at its cap was cut
there: taken for a finished answer it would teach that answers never get longer than the cap.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import polars as pl

from sagellm_lifetime.core.errors import UnknownNameError

CapReached = Literal["length", "stop"]


def check_cap_reached(cap_reached: str) -> None:
    """Raise :class:`UnknownNameError` unless ``cap_reached`` is ``"length"`` or ``"stop"``."""
    if cap_reached not in get_args(CapReached):
        raise UnknownNameError("finish reason at a cap", cap_reached, list(get_args(CapReached)))


def unstated_at_cap(columns: Collection[str]) -> pl.Expr:
    """Return an expression, bool: no finish reason is given and the length is the row's own cap."""
    if not {"actual_length", "max_length"} <= set(columns):
        return pl.lit(value=False)
    length, cap = pl.col("actual_length"), pl.col("max_length")
    reached = (length > 0) & (length == cap).fill_null(value=False)
    return reached & pl.col("finish_reason").is_null() if "finish_reason" in columns else reached


def finish_reason(columns: Collection[str], cap_reached: CapReached = "length") -> pl.Expr:
    """Return the finish reason of each row as an expression named ``finish_reason``.

    A stated reason is believed. Where there is none it is ``cap_reached`` for a row that ends
    exactly at its own ``max_length``, else ``stop``.
    """
    ended = pl.when(unstated_at_cap(columns)).then(pl.lit(cap_reached)).otherwise(pl.lit("stop"))
    if "finish_reason" in columns:
        ended = pl.coalesce(pl.col("finish_reason").cast(pl.String), ended)
    return ended.alias("finish_reason")


def said(rows: int, total: int, cap_reached: str) -> str:
    """Return one line: how many rows the rule decided, as what they count, and how to change it."""
    other = "stop" if cap_reached == "length" else "length"
    meaning = {"length": "cut there", "stop": "ended by themselves"}
    return (
        f"{rows:,} of {total:,} rows give no finish reason and end exactly at their max_length: "
        f"counted as {cap_reached!r}, {meaning[cap_reached]} (cap_reached={other!r}, or "
        f"--cap-reached {other}, counts them as {meaning[other]})"
    )
