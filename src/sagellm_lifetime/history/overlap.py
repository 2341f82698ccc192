"""Rows that stand in two histories: has a predictor been trained on what it is scored on?

A checkpoint keeps a bottom-k sketch of its training rows (Broder 1997): the smallest hashes of when
requests came and how long they were. No content and no names go into a hash.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import polars as pl

SIZE: Final = 128
"""Hashes in a sketch."""
MANY: Final = 0.25
"""Share of the training rows from which on a score is not one on unseen rows. Below it, hashes of
sessions that all begin at 0 may be equal by chance."""
_COLUMNS: Final = ("arrival_time", "actual_length", "prompt_length")


def sketch(rows: pl.DataFrame) -> list[int]:
    """Return the smallest hashes of the rows, at most :data:`SIZE`; none without arrival times.

    >>> sketch(pl.DataFrame({"actual_length": [5]}))
    []
    """
    return np.unique(_hashes(rows))[:SIZE].tolist()


def share_of(training: Collection[int], rows: pl.DataFrame) -> float:
    """Return the share of the training rows that are among ``rows``, 0 to 1.

    Args:
        training: their :func:`sketch`.
        rows: a history.

    >>> rows = pl.DataFrame({"arrival_time": [1.5, 2.5, 9.0], "actual_length": [5, 8, 13]})
    >>> share_of(sketch(rows), rows), share_of(sketch(rows), rows.tail(0))
    (1.0, 0.0)
    """
    if not training:
        return 0.0
    return float(np.isin(np.array(list(training), dtype=np.uint64), _hashes(rows)).mean())


def _hashes(rows: pl.DataFrame) -> np.ndarray:
    """Return one hash a row, 53 bits so that JSON keeps them; none without arrival times."""
    if "arrival_time" not in rows.columns:
        return np.zeros(0, dtype=np.uint64)
    mixed = np.zeros(len(rows), dtype=np.uint64)
    for name in _COLUMNS:
        values = rows[name].fill_null(-1.0) if name in rows.columns else pl.Series([-1.0])
        numbers = np.broadcast_to(values.cast(pl.Float64).to_numpy(), len(rows))
        mixed = _mixed(mixed ^ np.ascontiguousarray(numbers).view(np.uint64))
    return mixed >> np.uint64(11)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return SplitMix64's finalizer of each value."""
    with np.errstate(over="ignore"):
        values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))
