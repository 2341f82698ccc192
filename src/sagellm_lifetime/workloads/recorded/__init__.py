"""Answers of a small chat model, recorded and shipped with the package."""

from __future__ import annotations

from importlib import resources

import polars as pl

from sagellm_lifetime.history import read_history


def recorded() -> pl.DataFrame:
    """Return all answers as a history with texts; ``README.md`` in this folder describes them.

    >>> recorded()["finish_reason"].unique().sort().to_list()
    ['length', 'stop']
    """
    folder = resources.files("sagellm_lifetime.workloads.recorded")
    with resources.as_file(folder / "smollm2-answers.parquet") as path:
        return read_history(path).frame
