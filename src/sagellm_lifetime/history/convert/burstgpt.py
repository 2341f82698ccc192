"""BurstGPT: two months of ChatGPT and GPT-4 traffic of a campus (Azure OpenAI).

CSV with ``Timestamp`` (seconds), ``Model``, ``Request tokens``, ``Response tokens``,
``Total tokens``, ``Log Type``; the third release adds ``Session ID`` (empty on API calls) and
``Elapsed time`` (seconds) in the middle, so columns go by name. A failed request has no response
tokens: it is kept, as an error. ``Log Type`` (conversation or API) becomes the ``client_id``.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from sagellm_lifetime.history.read import History, OnBadRows, read_as
from sagellm_lifetime.history.schema import Layout

_LAYOUT = Layout(
    {
        "arrival_time": "Timestamp",
        "model": "Model",
        "client_id": "Log Type",
        "session_id": "Session ID",
        "prompt_length": "Request tokens",
        "actual_length": "Response tokens",
        "actual_time": "Elapsed time",
    },
    required=("arrival_time", "prompt_length", "actual_length"),
    foreign=True,
)


def read(source: str, *, keep_content: bool, on_bad_rows: OnBadRows) -> History:
    """Return the requests of a trace, failed ones as errors."""
    del keep_content  # the trace has none
    history = read_as(source, {"csv": _LAYOUT}, _LAYOUT.names, on_bad_rows=on_bad_rows)
    failed = pl.col("actual_length") == 0
    frame = history.frame.with_columns(
        finish_reason=pl.when(failed).then(pl.lit("error"))  # the trace has no reason of the others
    )
    if "session_id" in frame.columns:
        turn = pl.int_range(pl.len()).over("session_id")
        frame = frame.with_columns(turn=pl.when(pl.col("session_id").is_not_null()).then(turn))
    return replace(history, frame=frame)
