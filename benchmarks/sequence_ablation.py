"""What the sequence buys: the LSTM and the Transformer with parts of what they read taken away.

    PYTHONPATH=src python benchmarks/sequence_ablation.py [--data FOLDER] [--json FILE]

Same rows, same seeds, each variant trained and tested on what it is left with:

    full             recent completions, the admission, chunks of the generation
    no chunks        as full, without the content of the generation
    admission only   one step: no recent completions and no chunks
    shuffled         the recent completions of a session or client in random order
    random weights   as full, the recurrent or attention weights permuted after training
    survival         no network: the residual-life table alone

Data with arrival times are run in simulated time (predicted at the arrival, learned at the finish),
so that a session has recent completions; tables and calibration learn then, the weights do not. The
others are frozen, split by prompt. Without the data folder only the built-in profile is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import DATA, load, percent, say, single_thread, table, write_json

from sagellm_lifetime import (
    Predictor,
    SurvivalLifetimePredictor,
)
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.features.context import Finished, RecentCompletions
from sagellm_lifetime.features.evidence import SequenceEvidence, read_evidence
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.models.context import ObservedRequest
from sagellm_lifetime.networks.lstm import LSTMModel
from sagellm_lifetime.networks.transformer import TransformerModel
from sagellm_lifetime.workloads import generate

NETWORKS = {"lstm": LSTMModel, "transformer": TransformerModel}
SEQUENTIAL = {"lstm": ("weight_hh",), "transformer": ("attention.in_proj_weight",)}
"""Names of the weights by which one step hears of another."""
CONTENT = ("output_text", "output_token_ids")
BUILT_IN = "coding-agent"
DATASETS = (
    "claude_code",
    "mooncake_conversation",
    "vicuna7b_alpaca",
    "alpaca_eval",
    BUILT_IN,
)
VARIANTS = ("full", "no chunks", "admission only", "shuffled", "random weights")


class NoRecent(RecentCompletions):
    """Has nothing to say of any session or client."""

    def __init__(self, source: RecentCompletions) -> None:
        super().__init__()

    def session(self, session: int) -> list[Finished]:
        """Nothing."""
        return []

    def client(self, features: RequestFeatures) -> list[Finished]:
        """Nothing."""
        return []


class Shuffled(RecentCompletions):
    """The completions of another memory, each list in random order."""

    def __init__(self, source: RecentCompletions, rng: np.random.Generator) -> None:
        super().__init__()
        self._source, self._rng = source, rng

    def session(self, session: int) -> list[Finished]:
        """Last completions of a session, in random order."""
        return self._mixed(self._source.session(session))

    def client(self, features: RequestFeatures) -> list[Finished]:
        """Last completions of a client, in random order."""
        return self._mixed(self._source.client(features))

    def _mixed(self, items: list[Finished]) -> list[Finished]:
        return [items[i] for i in self._rng.permutation(len(items))]


def variant_class(network: str, view: Callable[[RecentCompletions], RecentCompletions]) -> Any:
    """The model, reading its recent completions through ``view``."""

    class Variant(NETWORKS[network]):  # type: ignore[misc]  # the class is chosen at run time
        def read(self, request: ObservedRequest) -> SequenceEvidence:
            recent = view(request.recent)
            return read_evidence(request.request, request.session, request.features, recent)

    return Variant


def built(network: str, variant: str, seed: int, epochs: int) -> Any:
    """An untrained variant."""
    options: dict[str, Any] = {"seed": seed, "online": "off", "epochs": epochs}
    if variant == "admission only":
        return Predictor(variant_class(network, NoRecent)(**options))
    if variant == "shuffled":
        rng = np.random.default_rng(seed)
        return Predictor(variant_class(network, partial(Shuffled, rng=rng))(**options))
    return Predictor(NETWORKS[network](**options))


def permute(predictor: Any, network: str, seed: int) -> None:
    """Permute the entries of the weights that connect the steps; all others stay as trained."""
    rng = np.random.default_rng(seed)
    weights = dict(predictor.model.weights)
    for key, value in weights.items():
        if any(part in key for part in SEQUENTIAL[network]):
            weights[key] = rng.permutation(value.ravel()).reshape(value.shape)
    predictor.model.use(weights)


def part_of(frame: pl.DataFrame, rows: int) -> pl.DataFrame:
    """About ``rows`` rows: whole sessions or prompts, or the first in time."""
    return frame if rows >= len(frame) else split(frame, share=rows / len(frame)).train


def rows_of(name: str, folder: Path, rows: int, seed: int) -> pl.DataFrame | None:
    """A data set of about so many rows, or ``None`` where it is absent."""
    if name == BUILT_IN:
        return generate(BUILT_IN, rows, seed=seed)
    frame = load(folder, name)
    return None if frame is None else part_of(frame, rows)


def ablate(name: str, frame: pl.DataFrame, *, seed: int, epochs: int) -> list[dict[str, Any]]:
    """Scores of all variants on one data set."""
    cut = split(frame)
    online = "arrival_time" in frame.columns and frame["arrival_time"].null_count() == 0
    has_content = any(column in frame.columns for column in CONTENT)
    bare = [part.drop(c for c in CONTENT if c in part.columns) for part in (cut.train, cut.test)]
    found: list[dict[str, Any]] = []

    def score(predictor: Any, test: pl.DataFrame, network: str, variant: str) -> None:
        result = evaluate(predictor, test, online=online, seed=seed)
        scores = result.scores[result.name]
        found.append(
            {
                "data": name,
                "rows": len(cut.train),
                "scored": result.rows,
                "split": cut.by,
                "mode": result.mode,
                "network": network,
                "variant": variant,
                "admission": scores["admission"],
                "steps": scores["steps"],
            }
        )
        say(f"{name}: {network}, {variant}: steps MAE {scores['steps']['mae']:.1f}")

    score(SurvivalLifetimePredictor(seed=seed).fit(bare[0]), bare[1], "–", "survival")
    for network in NETWORKS:
        for variant in VARIANTS[:-1]:
            if variant == "no chunks" and not has_content:
                continue
            with_content = variant in {"full", "shuffled"}
            train, test = (cut.train, cut.test) if with_content else bare
            predictor = built(network, variant, seed, epochs).fit(train)
            twin = predictor.clone() if variant == "full" else None
            score(predictor, test, network, variant)
            if twin is not None:
                permute(twin, network, seed)
                score(twin, test, network, "random weights")
    return found


def report(found: list[dict[str, Any]]) -> str:
    """One table per data set."""
    parts = []
    for name in dict.fromkeys(each["data"] for each in found):
        here = [each for each in found if each["data"] == name]
        first = here[0]
        full = {e["network"]: e["steps"]["mae"] for e in here if e["variant"] == "full"}
        rows = []
        for each in here:
            steps, admission = each["steps"], each["admission"]
            against = full.get(each["network"], min(full.values()))
            rows.append(
                [
                    each["variant"]
                    if each["network"] == "–"
                    else f"{each['network']}, {each['variant']}",
                    f"{steps['mae']:.1f}",
                    f"{100 * (steps['mae'] / against - 1):+.1f} %",
                    f"{steps['crps']:.1f}",
                    percent(steps["within_10pct"]),
                    f"{admission['mae']:.1f}",
                    f"{admission['crps']:.1f}",
                ]
            )
        head = ["variant", "steps MAE", "against full", "steps CRPS", "steps within 10 %"]
        title = (
            f"{name}: {first['rows']:,} rows to train on, {first['scored']:,} scored, "
            f"split by {first['split']}, {first['mode']}"
        )
        parts.append(title + "\n\n" + table([*head, "admission MAE", "admission CRPS"], rows))
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the data folder")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--rows", type=int, default=6000, help="about so many rows per data set")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    single_thread()
    found: list[dict[str, Any]] = []
    for name in options.only:
        frame = rows_of(name, options.data, options.rows, options.seed)
        if frame is not None:
            found += ablate(name, frame, seed=options.seed, epochs=options.epochs)
    print(report(found))
    write_json(options.json, found)


if __name__ == "__main__":
    main()
