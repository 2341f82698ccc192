"""The columns of a history file, and how the columns of another format map onto them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

# The table of the design, section 5, in its order; only ``actual_length`` is required. The last
# three are additions, what a request says (section 4) as a recorder sees it: the temperature it was
# sampled at, and what the model itself gave along the way (nats): one entry for the generated
# tokens 1–16, one for 17–32, … (core/signals.py).
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
}
NUMBERS = tuple(n for n, t in HISTORY_SCHEMA.items() if t.is_numeric())
LISTS = tuple(n for n, t in HISTORY_SCHEMA.items() if t.is_nested())

# Above these a value is a mistake (a time in milliseconds, a byte count), not a long answer.
MAX_COUNT = 10**8
MAX_SECONDS = 10**11

# Names other tools give to the generated length, suggested when ``actual_length`` is missing.
_ALIASES = (
    "output_length",
    "output_len",
    "output_tokens",
    "completion_tokens",
    "generated_tokens",
    "num_output_tokens",
)
# A column that gives a public trace away: the answer is then to convert it.
_TRACES = {
    "GeneratedTokens": "azure",
    "Response tokens": "burstgpt",
    "hash_ids": "mooncake",
    "conversations": "sharegpt",
    "output_tokens": "servegen",
}


@dataclass(frozen=True)
class Layout:
    """Where each history column is found in a file, and what must be there.

    Attributes:
        names: history column -> column of the file; messages speak of the column of the file.
        required: history columns that must be there and filled.
        values: history column -> expression over the file's (text) columns that gives the number,
            where a plain cast is not enough; a null from a filled cell is a bad row.
        foreign: whether this is another program's format.
    """

    names: Mapping[str, str]
    required: tuple[str, ...] = ("actual_length",)
    values: Mapping[str, pl.Expr] = field(default_factory=dict)
    foreign: bool = False


NATIVE = Layout({name: name for name in HISTORY_SCHEMA})


def suggestion(wanted: str, present: Iterable[str], *, foreign: bool = False) -> str:
    """What to do about a missing column, as the end of a one-line message.

    Names only what looks like the wanted column: where a header is missing altogether, the
    "columns" are the first row, and a message must not repeat somebody's prompt.
    """
    names = [str(name) for name in present]
    if not foreign:
        for name, trace in _TRACES.items():
            if name in names:
                return f"this looks like a {trace} trace: convert it with --from {trace} first"
        for alias in _ALIASES:
            if alias in names:
                return f"rename {alias!r} to {wanted!r} if it counts the generated tokens"
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "every row needs it (in CSV, the first line names the columns)"
