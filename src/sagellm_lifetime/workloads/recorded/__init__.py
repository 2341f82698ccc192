"""Answers of a small chat model, recorded and shipped with the package."""

from __future__ import annotations

from importlib import resources
from typing import Final

import polars as pl

from sagellm_lifetime.history import read_history

ANSWERS: Final = "smollm2-answers.parquet"
HIDDEN: Final = "smollm2-hidden.parquet"


def recorded(*, hidden: bool = False) -> pl.DataFrame:
    """Return all answers as a history with texts; ``README.md`` in this folder describes them.

    Args:
        hidden: True to add the readings of the model's hidden state (16 components each).

    >>> recorded()["finish_reason"].unique().sort().to_list()
    ['length', 'stop']
    """
    folder = resources.files("sagellm_lifetime.workloads.recorded")
    with resources.as_file(folder / ANSWERS) as path:
        frame = read_history(path).frame
    if not hidden:
        return frame
    with resources.as_file(folder / HIDDEN) as path:
        return frame.join(pl.read_parquet(path), on="request_id", how="left", maintain_order="left")
