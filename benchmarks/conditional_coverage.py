"""Coverage of the 90 % interval where a user looks: by client, by predicted length, by age.

Used by ``strangers.py``. A predictor is fitted on the earlier 70 % of a trace and scored in
simulated time on the rest, at admission and at the steps (see ``evaluation.points``). Groups with
fewer than 300 requests are left out: the points of one request are no independent cases. Lengths
are whole tokens, so a client whose answers nearly all have one token is covered by 99 % whatever
the interval; the highest group is therefore looked for after the probability of each single length
was shared out evenly (the randomised probability integral transform, in expectation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.core.calibration import bands_of
from sagellm_lifetime.evaluation.point_forecasts import Forecast, cdf, column
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.history.splits import split

LEAST_CASES = 300
LOWEST, HIGHEST = 0.84, 0.96


def conditional_coverage(
    predictor: Any, frame: pl.DataFrame, seed: int, least: int = LEAST_CASES
) -> Iterator[tuple[str, float, float, int]]:
    """Yield a kind of groups, its lowest and its highest coverage, and the number of groups."""
    cut = split(frame)
    found = evaluate(predictor.fit(cut.train), cut.test, online=True, seed=seed)
    points, forecast = found.points, found.forecasts[predictor.name]
    plain, shared = covered(points, forecast)
    names = np.full(len(cut.test), "")
    if "client_id" in cut.test.columns:
        names = cut.test["client_id"].cast(pl.String).fill_null("").to_numpy()
    clients = np.unique(names, return_inverse=True)[1][points.row]
    totals = points.age + forecast.point
    for where, chosen in (
        ("admission", np.flatnonzero(~points.step & (points.age == 0))),
        ("the steps", np.flatnonzero(points.step)),
    ):
        fifths = np.quantile(totals[chosen], [0.2, 0.4, 0.6, 0.8])
        groups = {
            f"by client, at {where}": clients[chosen],
            f"by fifth of predicted length, at {where}": np.searchsorted(
                fifths, totals[chosen], side="right"
            ),
            f"by age band, at {where}": bands_of(points.age[chosen]),
        }
        if where == "admission":
            del groups[f"by age band, at {where}"]  # there is one age
        for name, keys in groups.items():
            rows = [np.unique(points.row[chosen[keys == key]]) for key in np.unique(keys)]
            large = [
                k for k, of_key in zip(np.unique(keys), rows, strict=True) if len(of_key) >= least
            ]
            if not large:
                continue
            index = [chosen[keys == key] for key in large]
            low = min(np.average(plain[i], weights=points.weight[i]) for i in index)
            high = max(np.average(shared[i], weights=points.weight[i]) for i in index)
            yield name, float(low), float(high), len(large)


def covered(points: Points, forecast: Forecast) -> tuple[np.ndarray, np.ndarray]:
    """Return which lengths the 90 % interval holds, plainly and shared out; shape ``(P,)``."""
    assert forecast.quantiles is not None
    low, high = (forecast.quantiles[:, column(level)] for level in (0.05, 0.95))
    plain = (low <= points.remaining) & (points.remaining <= high)
    below, at = (cdf(forecast.quantiles, points.remaining - k) for k in (1, 0))
    inside = np.clip(np.minimum(at, 0.95) - np.maximum(below, 0.05), 0.0, None)
    return plain, inside / np.maximum(at - below, 1e-9)
