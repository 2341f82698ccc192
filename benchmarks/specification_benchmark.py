"""The specification's own benchmark, which leaks, and its repaired twin, with the Bayes floor.

    PYTHONPATH=src python benchmarks/specification_benchmark.py [--seeds 3] [--json FILE]

The benchmark predicts at half of the true length and learns the completion at once, from an
untrained start: its rule "remaining = current" scores an MAE of 0.49 tokens. The twin asks at age 0
and at an age that is drawn independently of the length; there, nobody can do better than the floor.
Beside ours, the specification's own predictors as they are written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import percent, say, single_thread, table, write_json
from reference.specification import REFERENCES, ReferenceBaseline

from sagellm_lifetime import PREDICTORS, LifetimePredictorProtocol, create_predictor
from sagellm_lifetime.evaluation import specification_benchmark as specification

TARGET = "MAE < 10 and at least 70 % within 10 %"


def makers() -> dict[str, Callable[[int], LifetimePredictorProtocol]]:
    """Makers of untrained predictors by name, given a seed: ours, then the references."""
    found: dict[str, Callable[[int], LifetimePredictorProtocol]] = {}
    for name in PREDICTORS:
        found[name] = lambda seed, name=name: create_predictor(name, seed=seed)
    for name, cls in REFERENCES.items():
        found[name] = lambda seed, cls=cls: (  # the baseline draws nothing
            cls() if cls is ReferenceBaseline else cls(seed=seed)
        )
    return found


def run(names: list[str], seeds: int) -> dict[str, Any]:
    """``{name: {"leaking": [...], "repaired": [...]}}``, one result per seed."""
    found: dict[str, Any] = {}
    for name in names:
        make = makers()[name]
        found[name] = {"leaking": [], "repaired": []}
        for seed in range(seeds):
            found[name]["leaking"].append(specification.run_benchmark(make(seed), seed=seed))
            found[name]["repaired"].append(specification.run_repaired(make(seed), seed=seed))
        say(f"{name}: {seeds} seeds")
    return found


def leaking_table(found: dict[str, Any]) -> str:
    """MAE and hits of the leaking benchmark, and of the rule that the leak hands out."""
    rows = []
    for name, runs in found.items():
        mae = _values(runs["leaking"], "mae")
        hits = _values(runs["leaking"], "within_10pct")
        reached = bool((mae < 10).all() and (hits >= 0.7).all())
        rows.append([name, _mean(mae), _range(mae), percent(hits.mean()), reached])
    rule = [run["rule_remaining_is_current"] for run in next(iter(found.values()))["leaking"]]
    mae, hits = _values(rule, "mae"), _values(rule, "within_10pct")
    rows.append(["rule: remaining = current", _mean(mae), _range(mae), percent(hits.mean()), None])
    return table(["leaking benchmark", "MAE", "over seeds", "within 10 %", TARGET], rows)


def repaired_table(found: dict[str, Any]) -> str:
    """The twin: all samples, and the last half of them, when there was something to learn from."""
    rows = []
    for name, runs in found.items():
        cells: list[Any] = [name]
        for where in ("admission", "uniform_age"):
            whole = [run[where] for run in runs["repaired"]]
            late = [part["last_half"] for part in whole]
            for part in (whole, late):
                cells += [
                    _mean(_values(part, "mae")),
                    percent(_values(part, "within_10pct").mean()),
                ]
        rows.append(cells)
    first = next(iter(found.values()))["repaired"]
    floor, here = first[0]["bayes_floor"], [run["bayes_floor_on_these_samples"] for run in first]
    on_these = [_mean(_values(here, "mae")), percent(_values(here, "within_10pct").mean())]
    exact = [f"{floor['mae']:.1f}", percent(floor["within_10pct"])]
    rule = [run["rule_remaining_is_current"] for run in first]
    leaked = [_mean(_values(rule, "mae")), percent(_values(rule, "within_10pct").mean())]
    none = [None, None]
    # Every sample is alive at its later age, which therefore says nothing: one floor for both.
    rows.append(["Bayes floor, these samples", *on_these, *none, *on_these, *none])
    rows.append(["Bayes floor, exact", *exact, *none, *exact, *none])
    rows.append(["rule: remaining = current", *none, *none, *leaked, *none])
    head = ["repaired twin"]
    for where in ("age 0", "age 0, last half", "later age", "later, last half"):
        head += [f"{where}: MAE", "within 10 %"]
    return table(head, rows)


def _values(runs: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([run[key] for run in runs])


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" if values.mean() < 10 else f"{values.mean():.1f}"


def _range(values: np.ndarray) -> str:
    return f"{values.min():.1f}–{values.max():.1f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="also write every result to this file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(makers()), default=list(makers()))
    parser.add_argument("--samples", type=int, help="fewer samples: for tests, not for use")
    options = parser.parse_args(arguments)
    single_thread()
    if options.samples:
        fewer = partial(specification.samples, count=options.samples)
        vars(specification).update(SAMPLES=options.samples, samples=fewer)
    found = run(options.only, options.seeds)
    print(leaking_table(found), end="\n\n")
    print(repaired_table(found))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
