"""The arrival times of a history's requests on one clock."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.history.prequential import Clock, relative_times

OVERLAP = 10
"""Mean number of concurrent sessions, for a history without the sessions' start times."""


def arrivals(frame: pl.DataFrame, *, seed: int = 0, clock: Clock = "auto") -> np.ndarray:
    """Return the seconds of each row from the first arrival, shape ``(N,)``.

    - Times on one clock are taken as recorded.
    - Times that restart with every session: each session starts at a point of a Poisson process, at
      a rate that keeps about :data:`OVERLAP` of them open; times within a session are kept.
    - Times missing in some row: a Poisson process of 1 request a second, in file order. The load
      scales it.
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
