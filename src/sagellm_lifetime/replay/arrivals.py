"""When the requests of a history arrive, on one clock."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.history.prequential import Clock, relative_times

OVERLAP = 10
"""Sessions under way at once, on average, where a history does not say when they began."""


def arrivals(frame: pl.DataFrame, *, seed: int = 0, clock: Clock = "auto") -> np.ndarray:
    """Seconds of each row from the first arrival, shape ``(N,)``.

    - On one clock: as recorded.
    - Restarting with every session: each session gets a start of a Poisson process, at a rate that
      keeps about :data:`OVERLAP` of them under way; within the session times stay as they were.
    - Missing in some row: a Poisson process of 1 request a second, in file order. The load scales
      it.
    """
    rng = np.random.default_rng(seed)
    if "arrival_time" not in frame.columns or frame["arrival_time"].null_count():
        gaps = rng.exponential(1.0, len(frame))
        return np.asarray(np.cumsum(gaps) - gaps[0])
    recorded = frame["arrival_time"].cast(pl.Float64).to_numpy()
    if not relative_times(frame, clock):
        return recorded - recorded.min()
    names = frame["session_id"].fill_null("").to_numpy()
    _, first, session = np.unique(names, return_index=True, return_inverse=True)
    lasting = np.zeros(len(first))
    np.maximum.at(lasting, session, recorded - recorded.min())
    gaps = rng.exponential(max(float(lasting.mean()), 1.0) / OVERLAP, len(first))
    starts = np.empty(len(first))
    starts[np.argsort(first)] = np.cumsum(gaps) - gaps[0]
    together = starts[session] + recorded
    return np.asarray(together - together.min())
