"""Evaluate one predictor on a history, with rivals at the same points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.protocol import LifetimePredictorProtocol
from sagellm_lifetime.evaluation.floor import noise_floor, repeated, skill
from sagellm_lifetime.evaluation.point_forecasts import Forecast
from sagellm_lifetime.evaluation.points import Points, draw_points, lengths
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.runs import Progress, run_frozen, run_online
from sagellm_lifetime.evaluation.scoring import Score, score, score_groups
from sagellm_lifetime.history.prequential import Clock


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one predictor, of the rivals at the same points, and what the plots need.

    Attributes:
        name: of the predictor.
        mode: ``"frozen"`` or ``"online"``.
        rows: rows that were scored.
        points: where predictions were asked for.
        forecasts: per name (predictor and rivals), what was answered.
        scores: per name, per group (``admission``, ``"16"`` ..., ``steps``), the metrics.
        floor: noise floor at admission where there are repeated samples.
        clusters: number of the session (else prompt, else row) of each row: what is independent.
    """

    name: str
    mode: str
    rows: int
    points: Points
    forecasts: dict[str, Forecast]
    scores: dict[str, dict[str, Score]]
    clusters: np.ndarray
    floor: Score | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; what cannot be scored is None."""
        result: dict[str, Any] = {"predictor": self.name, "rows": self.rows, "mode": self.mode}
        result["cut"] = self.points.cuts.to_dict()
        result |= nested(self.scores[self.name])
        result["baselines"] = {
            name: nested(groups) for name, groups in self.scores.items() if name != self.name
        }
        if self.floor is not None:
            result["noise_floor"] = self.floor
        return result


def nested(groups: Mapping[str, Score]) -> dict[str, Any]:
    """Return scores by group as ``{"admission": ..., "ages": {"16": ...}, "steps": ...}``."""
    ages = {name: score for name, score in groups.items() if name.isdigit()}
    return {"admission": groups["admission"], "ages": ages, "steps": groups["steps"]}


def evaluate(
    predictor: LifetimePredictorProtocol,
    frame: pl.DataFrame,
    *,
    online: bool = False,
    clock: Clock = "auto",
    seed: int = 0,
    max_rows: int | None = None,
    rivals: Sequence[Rival] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate one predictor on the rows of ``frame``.

    Frozen: all predictions, nothing learned. Online: prequential, see
    :func:`~sagellm_lifetime.evaluation.runs.run_online`; the predictor has learned every row
    afterwards.

    Args:
        frame: history rows that neither the predictor nor the rivals were fitted on.
        clock: what arrival times count from, see
            :func:`~sagellm_lifetime.history.prequential.relative_times`.
        max_rows: score a seeded subsample of this many rows. Online, the others are still asked
            about and learned from.
        rivals: fitted on the training part (:func:`~...rivals.fit_rivals`).
        progress: called with (rows done, rows in all).

    Raises:
        HistoryError: an empty frame, or online without arrival times.
    """
    if not (lengths(frame) > 0).any():
        raise HistoryError("nothing to evaluate: the history has no row with generated tokens")
    scored = _subsample(len(frame), max_rows, seed)
    if not online and not scored.all():
        frame, scored = frame.filter(pl.Series(scored)), np.ones(int(scored.sum()), dtype=bool)
    points = draw_points(frame, seed=seed, scored=scored)
    name = str(getattr(predictor, "name", type(predictor).__name__))
    forecasts = {
        name: run_online(predictor, frame, points, progress, clock=clock)
        if online
        else run_frozen(predictor, frame, points, progress)
    }
    forecasts |= {rival.name: rival.forecast(frame, points) for rival in rivals}
    scores = {key: score_groups(points, forecast) for key, forecast in forecasts.items()}
    floor = noise_floor(frame.filter(pl.Series(scored)))
    if floor is not None:
        again = np.zeros(len(frame), dtype=bool)
        again[scored] = repeated(frame.filter(pl.Series(scored)))
        _add_skill(scores, forecasts, points, again, floor)
    return Evaluation(
        name=name,
        mode="online" if online else "frozen",
        rows=len(np.unique(points.row[points.scored])),
        points=points,
        forecasts=forecasts,
        scores=scores,
        clusters=clusters(frame),
        floor=floor,
    )


def clusters(frame: pl.DataFrame) -> np.ndarray:
    """Return the number of each row's session, else of its prompt, else its own; from 0."""
    names = [pl.col(n).cast(pl.String) for n in ("session_id", "prompt_id") if n in frame.columns]
    alone = pl.concat_str(pl.lit("row "), pl.int_range(pl.len()).cast(pl.String))
    named = frame.select(pl.coalesce(*names, alone).rank("dense"))
    return named.to_series().to_numpy().astype(np.int64) - 1


def _add_skill(
    scores: dict[str, dict[str, Score]],
    forecasts: dict[str, Forecast],
    points: Points,
    again: np.ndarray,
    floor: Score,
) -> None:
    """Add the skill at admission: 0 for the constant, 1 at the noise floor, over repeated rows."""
    admission = points.groups()["admission"]
    index = admission[again[points.row[admission]]]
    maes = {
        name: score(points, forecast, index)["mae_ended"] for name, forecast in forecasts.items()
    }
    for name, groups in scores.items():
        groups["admission"]["mae_repeated"] = maes[name]
        if "constant_median" in maes:
            groups["admission"]["skill"] = skill(maes[name], maes["constant_median"], floor)


def _subsample(rows: int, limit: int | None, seed: int) -> np.ndarray:
    chosen = np.ones(rows, dtype=bool)
    if limit is not None and limit < rows:
        chosen[:] = False
        chosen[np.random.default_rng(seed).choice(rows, limit, replace=False)] = True
    return chosen
