"""ServeGen workloads (Alibaba).

ServeGen publishes per-client histograms; a workload is drawn from them with its
``generate_workload`` and saved with its ``save_requests_to_csv``: ``request_id``, ``timestamp``
(seconds) and the fields of the category: ``input_tokens,output_tokens``, ``reason_ratio`` for
reasoning models, ``text_tokens`` and lists of ``image_tokens,audio_tokens,video_tokens`` for
multimodal ones (their sum is the prompt). A ``client_id`` column, if there is one, is kept.
The offline "stat" traces beside them are real requests in JSONL, in batch order and without times:
``request_id, input_length, output_length, duration`` (milliseconds).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history.files import csv_header, find_files, kind_of
from sagellm_lifetime.history.read import History, OnBadRows, read_as
from sagellm_lifetime.history.schema import Layout

_MEDIA = ("image_tokens", "audio_tokens", "video_tokens")
_NAMES = {
    "request_id": "request_id",
    "client_id": "client_id",
    "arrival_time": "timestamp",
    "prompt_length": "input_tokens",
    "actual_length": "output_tokens",
}
_REQUIRED = ("arrival_time", "prompt_length", "actual_length")
_WORKLOAD = Layout(_NAMES, _REQUIRED, foreign=True)
_OFFLINE = Layout(
    {
        "request_id": "request_id",
        "prompt_length": "input_length",
        "actual_length": "output_length",
        "actual_time": "duration",
    },
    required=("prompt_length", "actual_length"),
    values={"actual_time": pl.col("duration").cast(pl.Float64, strict=False) / 1000},
    foreign=True,
)


def _multimodal(header: list[str]) -> Layout:
    tokens = pl.col("text_tokens").str.strip_chars().cast(pl.Float64, strict=False)
    for name in _MEDIA:
        if name in header:  # "[12, 345]" in one cell
            counts = pl.col(name).str.extract_all(r"\d+").cast(pl.List(pl.Float64))
            tokens += counts.list.sum().fill_null(0)
    names = {**_NAMES, "prompt_length": "text_tokens"}
    return Layout(names, _REQUIRED, values={"prompt_length": tokens}, foreign=True)


def read(source: str, *, keep_content: bool, on_bad_rows: OnBadRows) -> History:
    """Return the requests of a generated workload, or of a published offline trace."""
    del keep_content  # a workload has none
    if kind_of(Path(source)) == "json":
        raise HistoryError(
            f"{source}: per-client histograms, not requests: generate a workload with ServeGen's "
            "generate_workload and save it with save_requests_to_csv"
        )
    first = find_files(source)[0]
    header = csv_header(first) if kind_of(first) == "csv" else []
    workload = _multimodal(header) if "text_tokens" in header else _WORKLOAD
    columns = dict.fromkeys([*workload.names, *_OFFLINE.names])
    layouts = {"csv": workload, "jsonl": _OFFLINE}
    return read_as(source, layouts, columns, on_bad_rows=on_bad_rows)
