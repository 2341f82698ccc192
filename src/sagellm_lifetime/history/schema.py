"""The columns of a history file, and how the columns of another format map onto them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from sagellm_lifetime.core.hidden_states import COLUMNS
from sagellm_lifetime.core.logit_signals import SIGNALS

# The table of the design, section 5, in its order; only ``actual_length`` is required. The last
# are additions: the sampling temperature, the model's own signals in nats, one entry for the
# generated tokens 1–16, one for 17–32, … (core/logit_signals.py), and readings of its hidden state
# (core/hidden_states.py).
HISTORY_SCHEMA: dict[str, pl.DataType] = {
    "request_id": pl.String(),
    "model": pl.String(),
    "client_id": pl.String(),
    "session_id": pl.String(),
    "prompt_id": pl.String(),
    "arrival_time": pl.Float64(),
    "turn": pl.Int64(),
    "sample": pl.Int64(),
    "prompt_length": pl.Int64(),
    "max_length": pl.Int64(),
    "actual_length": pl.Int64(),
    "actual_time": pl.Float64(),
    "finish_reason": pl.String(),
    "prompt_text": pl.String(),
    "output_text": pl.String(),
    "prompt_token_ids": pl.List(pl.Int64()),
    "output_token_ids": pl.List(pl.Int64()),
    "prefix_hashes": pl.List(pl.Int64()),
    "temperature": pl.Float64(),
    "eos_logprob": pl.List(pl.Float64()),
    "entropy": pl.List(pl.Float64()),
    **{name: pl.List(pl.Float64()) for name in COLUMNS},
    "hidden_source": pl.String(),
}
NUMBERS = tuple(n for n, t in HISTORY_SCHEMA.items() if t.is_numeric())
REALS = (*SIGNALS, *COLUMNS)
"""Columns of lists of numbers that need not be whole."""
LISTS = tuple(n for n, t in HISTORY_SCHEMA.items() if t.is_nested())

# Above these a value is a mistake (a time in milliseconds, a byte count), not a long answer.
MAX_COUNT = 10**8
MAX_SECONDS = 10**11


@dataclass(frozen=True)
class Layout:
    """Places of the history columns in a file, and the required ones.

    Attributes:
        names: history column -> column of the file; messages name the column of the file.
        required: history columns that must be there and filled.
        values: history column -> expression over the file's (text) columns that gives the number,
            where a plain cast is not enough; a null from a filled cell is a bad row.
        foreign: True if this is another program's format.
    """

    names: Mapping[str, str]
    required: tuple[str, ...] = ("actual_length",)
    values: Mapping[str, pl.Expr] = field(default_factory=dict)
    foreign: bool = False


NATIVE = Layout({name: name for name in HISTORY_SCHEMA})
