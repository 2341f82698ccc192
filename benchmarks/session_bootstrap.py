"""Is a predictor really ahead of the residual-life table? The gap in steps MAE, with its interval.

    PYTHONPATH=src python benchmarks/session_bootstrap.py [--data FOLDER] [--predictor survival]

Turns of one session resemble each other, so whole sessions are drawn anew (Efron & Tibshirani 1993,
"An Introduction to the Bootstrap"): the interval is that of the difference predictor − table over
the sessions of the test part, both scored at the same points. The table is frozen in both rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from common import DATA, TRACES, load, say, single_thread, table

from sagellm_lifetime import create_predictor
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import fit_rivals
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.predictor.registry import predictor_names

DRAWS = 10_000


def difference(
    weight: np.ndarray, gap: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Weighted mean of ``gap`` with its 95 % interval over draws of whole groups.

    Args:
        weight: of each point, shape ``(P,)``.
        gap: absolute error of the one minus that of the other, shape ``(P,)``.
        group: session of each point, whole numbers from 0, shape ``(P,)``.
    """
    total = np.bincount(group, weights=weight * gap)
    tokens = np.bincount(group, weights=weight)
    count = len(total)
    drawn = np.zeros(DRAWS)
    for i in range(DRAWS):
        chosen = rng.integers(count, size=count)
        drawn[i] = total[chosen].sum() / tokens[chosen].sum()
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(total.sum() / tokens.sum()), float(low), float(high)


def sessions(frame: pl.DataFrame) -> np.ndarray:
    """A whole number per row: its session, else the row itself."""
    if "session_id" not in frame.columns:
        return np.arange(len(frame))
    return frame["session_id"].rank("dense").to_numpy().astype(np.int64) - 1


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder")
    parser.add_argument("--trace", choices=TRACES, default="claude_code")
    parser.add_argument("--predictor", choices=predictor_names(), default="survival")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    single_thread()
    frame = load(options.data, options.trace)
    if frame is None:
        raise SystemExit(f"{options.trace} is not in {options.data}: give --data FOLDER")
    cut = split(frame)
    rival = fit_rivals(cut.train, ["residual_life"])[0]
    predictor = create_predictor(options.predictor, seed=options.seed).fit(cut.train)
    rows = []
    for online in (False, True):
        found = evaluate(predictor, cut.test, online=online, seed=options.seed, rivals=[rival])
        points = found.points
        steps = np.flatnonzero(points.step & points.scored & points.known)
        error = {
            name: np.abs(forecast.point[steps] - points.remaining[steps])
            for name, forecast in found.forecasts.items()
        }
        group = sessions(cut.test)[points.row[steps]]
        group = np.unique(group, return_inverse=True)[1]
        gap, low, high = difference(
            points.weight[steps],
            error[options.predictor] - error[rival.name],
            group,
            np.random.default_rng(options.seed),
        )
        mae = {name: np.average(e, weights=points.weight[steps]) for name, e in error.items()}
        rows.append(
            [
                f"{options.predictor}, {found.mode}",
                f"{mae[options.predictor]:.1f}",
                f"{mae[rival.name]:.1f}",
                f"{gap:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
            ]
        )
        say(f"{options.trace}: {found.mode} done")
    print(f"{options.trace}, {group.max() + 1:,} sessions of the test part, steps MAE:\n")
    print(table(["predictor", "own", "residual_life", "difference", "95 % interval"], rows))


if __name__ == "__main__":
    main()
