"""The noise floor: how well a length can be known when the same prompt is answered again."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.evaluation import metrics
from sagellm_lifetime.evaluation.points import known_lengths, lengths

MIN_SAMPLES = 3


def noise_floor(frame: pl.DataFrame) -> dict[str, float | int | None] | None:
    """Scores of predicting each repeated sample by the median of the others, at admission.

    Groups are rows of one ``prompt_id`` (and of one ``model`` where there are models) with at
    least three samples of known length. ``None`` when there is none. A prediction made of two or
    three other samples is itself noisy, so this is an estimate of the floor from above.
    """
    if "prompt_id" not in frame.columns:
        return None
    keys = [name for name in ("prompt_id", "model") if name in frame.columns]
    table = frame.select(
        *(pl.col(name) for name in keys),
        pl.Series("length", lengths(frame)),
        pl.Series("known", known_lengths(frame)),
    ).filter(pl.col("known") & pl.col("prompt_id").is_not_null())
    grouped = table.group_by(keys, maintain_order=True).agg(pl.col("length"))
    grouped = grouped.filter(pl.col("length").list.len() >= MIN_SAMPLES)
    if grouped.is_empty():
        return None
    predicted, actual = [], []
    for size, part in grouped.with_columns(n=pl.col("length").list.len()).group_by("n"):
        block = part["length"].explode().to_numpy().reshape(-1, int(size[0]))
        for sample in range(block.shape[1]):
            predicted.append(np.median(np.delete(block, sample, axis=1), axis=1))
            actual.append(block[:, sample])
    guess, truth = np.rint(np.concatenate(predicted)).astype(np.int64), np.concatenate(actual)
    return {
        "n": len(truth),
        "mae": metrics.mae(guess, truth),
        "within_10pct": metrics.within_10pct(guess, truth),
        "within_10_tokens": metrics.within_10_tokens(guess, truth),
        "kendall_tau": metrics.kendall_tau(guess, truth),
    }


def skill(
    mae: float | None, constant: float | None, floor: dict[str, float | int | None]
) -> float | None:
    """``(MAE_constant - MAE) / (MAE_constant - MAE_floor)``: 0 like a constant, 1 at the floor."""
    best = floor["mae"]
    if mae is None or constant is None or best is None or constant <= best:
        return None
    return (constant - mae) / (constant - best)
