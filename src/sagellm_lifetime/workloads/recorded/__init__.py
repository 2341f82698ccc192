"""Answers of a small chat model, recorded and shipped with the package."""

from __future__ import annotations

from importlib import resources
from typing import Final

import polars as pl

from sagellm_lifetime.history import read_history

ANSWERS: Final = "smollm2-answers.parquet"
HIDDEN: Final = "smollm2-hidden.parquet"
LOW_ANSWERS: Final = "smollm2-low-temperature.parquet"
LOW_HIDDEN: Final = "smollm2-low-temperature-hidden.parquet"


def recorded(*, hidden: bool = False, low: bool = False) -> pl.DataFrame:
    """Return all answers as a history with texts; ``README.md`` in this folder describes them.

    Args:
        hidden: True to add the readings of the model's hidden state (16 components each).
        low: True for the recording at temperatures 0 and 0.2, whose lengths hardly vary from one
            answer to a prompt to the next.

    >>> recorded()["finish_reason"].unique().sort().to_list()
    ['length', 'stop']
    """
    folder = resources.files("sagellm_lifetime.workloads.recorded")
    answers, states = (LOW_ANSWERS, LOW_HIDDEN) if low else (ANSWERS, HIDDEN)
    with resources.as_file(folder / answers) as path:
        frame = read_history(path).frame
    if not hidden:
        return frame
    with resources.as_file(folder / states) as path:
        return frame.join(pl.read_parquet(path), on="request_id", how="left", maintain_order="left")
