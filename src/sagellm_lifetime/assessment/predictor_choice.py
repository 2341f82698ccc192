"""Which predictor is best on a log: chosen on one part of it, measured on a later one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from sagellm_lifetime.assessment.intervals import Range, saved_share
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.extras import is_installed
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.evaluation.points import known_lengths
from sagellm_lifetime.evaluation.protocol import Evaluation
from sagellm_lifetime.evaluation.rivals import SIMPLE
from sagellm_lifetime.evaluation.study import Progress, Study, StudySettings, labelled
from sagellm_lifetime.evaluation.verdict import UNTRAINED, errors
from sagellm_lifetime.evaluation.verdict import verdict as who_is_ahead
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.registry import DEFAULT, create_predictor, has_network

CANDIDATES: Final = ("survival", "linear", "baseline")
NETWORK: Final = DEFAULT
EPOCHS: Final = 2
TEST_SHARE: Final = 0.3
CHOOSE_SHARE: Final = 0.2
"""Share of the rows before the test part on which the candidates are compared."""
MOST_ROWS: Final = (1500, 2000)
"""Most neighbouring rows that are scored to choose, and to measure."""
MOST_ROWS_QUICK: Final = (400, 600)
MOST_TRAINING_ROWS: Final = 12_000
"""Newest rows that are trained on; beyond some thousands the scores hardly change."""
MOST_TRAINING_ROWS_QUICK: Final = 4000
FEWEST_ROWS: Final = 100


@dataclass(frozen=True, eq=False)
class Parts:
    """A log in the order of time: what is trained on, chosen on and tested on.

    Attributes:
        train: earliest rows.
        choose: rows on which the candidates are compared.
        past: both (the newest rows), what the chosen predictor learns before the test and replay.
        test: latest rows, of which nothing was chosen.
        by: how the log was cut, see :func:`~sagellm_lifetime.history.splits.split`.
    """

    train: Dataset
    choose: Dataset
    past: Dataset
    test: Dataset
    by: str


def cut(history: Dataset, *, quick: bool = False) -> Parts:
    """Return the parts of a log; ``quick`` trains on fewer rows.

    Raises:
        HistoryError: it has fewer than :data:`FEWEST_ROWS` rows, or no tokens in one of its parts.
    """
    if len(history.rows) < FEWEST_ROWS:
        raise HistoryError(
            f"{len(history.rows)} rows are too few to assess: {FEWEST_ROWS} or more are needed"
        )
    whole = split(history.rows, share=1 - TEST_SHARE, clock=history.clock)
    before = split(whole.train, whole.by, share=1 - CHOOSE_SHARE, clock=history.clock)
    most = MOST_TRAINING_ROWS_QUICK if quick else MOST_TRAINING_ROWS
    frames = (before.train.tail(most), before.test, whole.train.tail(most), whole.test)
    train, choose, past, test = (replace(history, rows=rows) for rows in frames)
    for part, name in ((train, "training"), (choose, "choosing"), (test, "test")):
        ends = known_lengths(part.rows)[part.rows["actual_length"].to_numpy() > 0]
        if not ends.any():
            raise HistoryError(
                f"no row of the {name} part generated tokens to an end that is known"
            )
    return Parts(train, choose, past, test, whole.by)


@dataclass(frozen=True, eq=False)
class PredictorChoice:
    """The best predictor of a log, and how good it is on rows that chose nothing.

    Attributes:
        name: of the predictor.
        predictor: fitted on all rows before the test part.
        candidates: MAE in tokens over all steps of the choosing part, by name.
        rows: rows trained on, chosen on and scored.
        by: how the log was cut.
        online: True if it learned while it was scored.
        mae: its MAE over all steps of the test part, tokens.
        baselines: those of the baselines on the same steps.
        saved: share of the constant's error that it saves, with a 95 % interval.
        coverage_90: share of outcomes in its 90 % intervals.
        confidence_ece: mean difference of stated confidence and hits.
        within_10pct: share of admissions predicted within 10 % of the total.
    """

    name: str
    predictor: Predictor
    candidates: Mapping[str, float]
    rows: tuple[int, int, int]
    by: str
    online: bool
    mae: float
    baselines: Mapping[str, float]
    saved: Range
    coverage_90: float | None
    confidence_ece: float | None
    within_10pct: float | None

    @property
    def constant(self) -> str:
        """Return the name of the best rule that looks at nothing of a request."""
        return min(
            (name for name in SIMPLE if name in self.baselines), key=self.baselines.__getitem__
        )

    @property
    def beaten_by(self) -> str | None:
        """Return the baseline with the least error, if that is less than the predictor's."""
        best = min(self.baselines, key=self.baselines.__getitem__)
        return best if self.baselines[best] < self.mae else None

    def says(self) -> str:
        """Return who is best on this log, by how much and how sure, in three sentences."""
        others = [name for name in self.candidates if name != self.name]
        base = self.baselines["constant_median"]
        low, high = 100 * self.saved.low, 100 * self.saved.high
        head = f"{self.name} was chosen" + (f" over {', '.join(others)}" if others else "")
        text = (
            f"{head} on the log's own earlier rows. On {self.rows[2]:,} later ones it errs by "
            f"{self.mae:,.0f} tokens on average, a constant by {base:,.0f}: "
        )
        if self.saved.sign > 0:
            text += f"{100 * self.saved.middle:.0f} % less ({low:.0f} to {high:.0f} %)."
        elif self.saved.sign < 0:
            text += f"{-100 * self.saved.middle:.0f} % MORE ({-high:.0f} to {-low:.0f} %)."
        else:
            text += f"no difference beyond chance ({low:.0f} to {high:.0f} % less)."
        if self.beaten_by is not None:
            other = self.baselines[self.beaten_by]
            text += f" The baseline {self.beaten_by} errs less: {other:,.0f} tokens."
        if self.coverage_90 is not None:
            text += f" Its 90 % intervals hold {100 * self.coverage_90:.0f} % of the outcomes"
            if self.confidence_ece is not None:
                text += (
                    f"; its confidence is off by {100 * self.confidence_ece:.0f} points on average"
                )
            text += "."
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the figures for ``--json``."""
        train, choose, test = self.rows
        return {
            "name": self.name,
            "candidates_mae": dict(self.candidates),
            "rows": {"train": train, "choose": choose, "test": test},
            "split": self.by,
            "online": self.online,
            "mae": self.mae,
            "baselines_mae": dict(self.baselines),
            "saved_of_constant": self.saved.to_json(),
            "beaten_by": self.beaten_by,
            "coverage_90": self.coverage_90,
            "confidence_ece": self.confidence_ece,
            "within_10pct": self.within_10pct,
        }


def candidates(*, quick: bool = False) -> list[str]:
    """Return the names of the predictors that are compared; networks only where PyTorch is.

    >>> candidates(quick=True)
    ['survival', 'linear', 'baseline']
    """
    with_network = not quick and is_installed("torch")
    return [*CANDIDATES, *([NETWORK] if with_network else [])]


def choose_predictor(
    parts: Parts,
    names: Sequence[str],
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> PredictorChoice:
    """Return the best of several predictors on a log.

    They are trained on the first part and compared over all steps of the second; ``survival``,
    which needs no training, is taken unless another is ahead of it by more than chance. The one
    that is taken learns both parts and is measured on the third.

    Raises:
        LifetimeError: a predictor cannot be trained on these rows.
    """
    tell = progress or _silent
    few, many = MOST_ROWS_QUICK if quick else MOST_ROWS
    options = {name: {"epochs": EPOCHS} for name in names if has_network(name)}
    shown = replace(parts.choose, rows=parts.choose.rows.head(few))
    settings = StudySettings(predictors=names, seed=seed, options=options)
    compared = Study(shown, settings, train=parts.train)
    result = compared.run(labelled(tell, "choosing a predictor"))
    ahead = who_is_ahead(result.evaluations)
    name = UNTRAINED if ahead is None else ahead.choice
    maes = {each.name: each.scores[each.name]["steps"]["mae"] for each in result.evaluations}
    predictor = create_predictor(name, seed=seed, **options.get(name, {}))
    predictor.fit(
        parts.past.rows, progress=labelled(tell, f"training {name}"), clock=parts.past.clock
    )
    test = replace(parts.test, rows=parts.test.rows.head(many))
    final = Study(test, StudySettings(seed=seed), train=parts.past, predictor=predictor)
    measured = final.run(labelled(tell, "measuring"))
    evaluation = measured.evaluations[0]
    steps = {key: groups["steps"] for key, groups in evaluation.scores.items()}
    mae = steps[name]["mae"]
    known = {key: score["mae"] for key, score in steps.items() if key != name}
    baselines = {key: float(value) for key, value in known.items() if value is not None}
    if mae is None or "constant_median" not in baselines:
        raise HistoryError("nothing to measure: no row of the test part has a known end")
    return PredictorChoice(
        name=name,
        predictor=predictor,
        candidates={key: float(value) for key, value in maes.items() if value is not None},
        rows=(len(parts.train.rows), len(shown.rows), len(test.rows)),
        by=parts.by,
        online=measured.online,
        mae=float(mae),
        baselines=baselines,
        saved=saved_share(*_errors_by_row(evaluation, name, "constant_median"), seed=seed),
        coverage_90=steps[name]["coverage_90"],
        confidence_ece=steps[name]["confidence_ece"],
        within_10pct=evaluation.scores[name]["admission"]["within_10pct"],
    )


def _errors_by_row(evaluation: Evaluation, *names: str) -> list[np.ndarray]:
    """Return the weighted absolute errors over all steps, summed by row in the log's order."""
    points = evaluation.points
    at = points.groups()["steps"]
    at = at[points.seen[at]]
    weight = points.weight[at] * points.stands_for[at]
    rows, place = np.unique(points.row[at], return_inverse=True)
    return [
        np.bincount(place, weight * errors(points, evaluation.forecasts[name], at), len(rows))
        for name in names
    ]


def _silent(_what: str, _share: float) -> None:
    return
