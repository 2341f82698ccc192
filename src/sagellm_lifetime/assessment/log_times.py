"""A step cost fitted to the durations of a log's own requests.

A request that generates ``n`` tokens is in about ``n`` steps, so its duration is

    n · (base + per_decode · R + per_context · C) + per_prefill · P

with ``R`` the mean number of requests open beside it, ``C`` their tokens, and ``P`` the prompt
tokens that arrived while it was open, its own included. The four are fitted by least squares of the
relative error, none below 0. Waiting in the log's own queue is in the durations, so the steps of a
log of an overloaded server come out too slow.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.replay.cost import StepCost

FEWEST: Final = 200
"""Fewest rows with a duration."""
WORST: Final = 0.5
"""Largest median error of a usable fit, as a share of the duration."""
PLAUSIBLE: Final = (1e-4, 5.0)
"""Least and largest median seconds per generated token that can be an engine's."""


def fit_times(rows: pl.DataFrame) -> StepCost:
    """Return the step cost that explains the durations of a log.

    Args:
        rows: history rows; those with ``arrival_time``, ``actual_time``, ``prompt_length`` and
            tokens are used.

    Raises:
        HistoryError: too few rows have durations, these are not plausible, or the fit misses by
            more than :data:`WORST`.
    """
    columns = ("arrival_time", "actual_time", "prompt_length", "actual_length")
    if not set(columns) <= set(rows.columns):
        raise HistoryError("the log has no durations (actual_time) to fit a step cost to")
    used = rows.select(columns).drop_nulls()
    used = used.filter((pl.col("actual_time") > 0) & (pl.col("actual_length") > 0))
    if len(used) < FEWEST:
        raise HistoryError(f"only {len(used)} rows have a duration; a fit takes {FEWEST}")
    arrival, lasted, prompt, output = (used[name].cast(pl.Float64).to_numpy() for name in columns)
    pace = float(np.median(lasted / output))
    least, most = PLAUSIBLE
    if not least <= pace <= most:
        raise HistoryError(f"{pace:.3g} s a token (actual_time) is no engine's pace: wrong unit?")
    arrival = arrival - arrival.min()
    running, context, prefill = _beside(arrival, lasted, prompt, output)
    parts = np.stack([output, output * running, prefill, output * context], axis=1)
    values = _non_negative(parts / lasted[:, None], np.ones(len(lasted)))
    error = float(np.median(np.abs(parts @ values / lasted - 1)))
    if error > WORST:
        raise HistoryError(
            f"a step cost fitted to the durations misses half of them by {100 * error:.0f} %"
        )
    base, per_decode, per_prefill, per_context = (float(value) for value in values)
    return StepCost(
        "log",
        base=base,
        per_decode=per_decode,
        per_prefill_token=per_prefill,
        per_context_token=per_context,
        source=f"fitted to the durations of {len(used):,} requests of the log",
        fit=f"misses half of the durations by more than {100 * error:.0f} %",
    )


def _beside(
    arrival: np.ndarray, lasted: np.ndarray, prompt: np.ndarray, output: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return per request the mean open requests, their mean tokens, and prompt tokens to prefill.

    A request's tokens grow evenly from its prompt to its total while it is open; the integrals
    between events are exact.
    """
    finish = arrival + lasted
    times = np.concatenate([arrival, finish])
    order = np.argsort(times, kind="stable")
    times = times[order]
    slope = output / lasted
    level = prompt - slope * arrival

    def running_sum(change: np.ndarray) -> np.ndarray:
        return np.cumsum(np.concatenate([change, -change])[order])[:-1]

    count, constant, growth = (running_sum(c) for c in (np.ones_like(prompt), level, slope))
    gaps = np.diff(times)
    squares = np.diff(times**2) / 2

    def integral(steps: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(steps)])
        return np.asarray(np.interp(finish, times, total) - np.interp(arrival, times, total))

    running = integral(count * gaps) / lasted
    context = integral(constant * gaps + growth * squares) / lasted
    came = np.argsort(arrival, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(prompt[came])])
    first = np.searchsorted(arrival[came], arrival, side="left")
    last = np.searchsorted(arrival[came], finish, side="left")
    return running, context, sums[last] - sums[first]


def _non_negative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the least-squares solution of ``a x = b`` with no ``x`` below 0, over all subsets."""
    width = a.shape[1]
    best, least = np.zeros(width), np.inf
    for size in range(1, width + 1):
        for chosen in combinations(range(width), size):
            values = np.linalg.lstsq(a[:, chosen], b, rcond=None)[0]
            if (values < 0).any():
                continue
            error = float(((a[:, chosen] @ values - b) ** 2).sum())
            if error < least:
                best, least = np.zeros(width), error
                best[list(chosen)] = values
    return best
