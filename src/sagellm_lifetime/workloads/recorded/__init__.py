"""Recorded answers that ship with the package: what a small chat model really generated."""

from __future__ import annotations

from importlib import resources

import polars as pl

from sagellm_lifetime.history import read_history


def recorded() -> pl.DataFrame:
    """All answers, a history with content: see ``README.md`` in this folder for what they are."""
    folder = resources.files("sagellm_lifetime.workloads.recorded")
    with resources.as_file(folder / "smollm2-answers.parquet") as path:
        return read_history(path).frame
