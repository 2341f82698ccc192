"""The noise floor: how well a length is predicted by other answers to the same prompt."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.evaluation import metrics
from sagellm_lifetime.evaluation.points import known_lengths, lengths

MIN_SAMPLES = 3


def repeated(frame: pl.DataFrame) -> np.ndarray:
    """Return which rows the floor is computed from; bool, shape ``(n,)``.

    Those whose ``prompt_id`` (and ``model``, if there is one) has at least three samples of known
    length.
    """
    if "prompt_id" not in frame.columns:
        return np.zeros(len(frame), dtype=bool)
    known = pl.Series("known", known_lengths(frame)) & frame["prompt_id"].is_not_null()
    samples = frame.select(known.cast(pl.Int64).alias("known"), *_keys(frame)).select(
        pl.col("known").sum().over(_keys(frame))
    )
    return (known & (samples["known"] >= MIN_SAMPLES)).to_numpy()


def _keys(frame: pl.DataFrame) -> list[str]:
    return [name for name in ("prompt_id", "model") if name in frame.columns]


def noise_floor(frame: pl.DataFrame) -> dict[str, float | int | None] | None:
    """Return the scores of predicting each repeated sample by the median of the others.

    Over the rows that are :func:`repeated`, at admission; ``None`` without such rows. The median of
    two or three other samples is itself noisy, so this overestimates the floor.
    """
    rows = frame.filter(pl.Series(repeated(frame)))
    if rows.is_empty():
        return None
    grouped = (
        rows.with_columns(length=pl.Series(lengths(rows)))
        .group_by(_keys(rows), maintain_order=True)
        .agg(pl.col("length"))
    )
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
    """Return ``(MAE_constant - MAE) / (MAE_constant - MAE_floor)``: 0 a constant, 1 the floor.

    Both errors are over the :func:`repeated` rows, as the floor is. ``None`` if one is undefined.
    """
    best = floor["mae"]
    if mae is None or constant is None or best is None or constant <= best:
        return None
    return (constant - mae) / (constant - best)
