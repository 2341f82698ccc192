"""Evaluations as tables on the terminal and as the JSON of the design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.cli.output import number, progress

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.core.protocol import LifetimePredictorProtocol
    from sagellm_lifetime.evaluation.protocol import Evaluation
    from sagellm_lifetime.evaluation.rivals.base import Rival
    from sagellm_lifetime.evaluation.scoring import Score
    from sagellm_lifetime.history.prequential import Clock

COLUMNS = (
    "",
    "MAE\nadmission",
    "within\n10%",
    "\nCRPS",
    "90%\ncovers",
    "MAE\nsteps",
    "90%\ncovers",
    "conf.\nECE",
)
_RANKED = ("admission", "steps")
LEGEND = (
    "Tokens. The first four columns at admission, the last three over all steps (every generated\n"
    "token equally likely). Lower is better, but for 'within 10%'; '90% covers' should be 90%.\n"
    "In brackets: the baselines that stand beside. *: the least error of all, baselines included."
)


def measure(
    predictor: LifetimePredictorProtocol,
    rows: pl.DataFrame,
    rivals: Sequence[Rival],
    *,
    online: bool = False,
    clock: Clock = "auto",
    seed: int = 0,
    max_rows: int | None = None,
    label: str,
) -> Evaluation:
    """One evaluation, with progress on stderr."""
    from sagellm_lifetime.evaluation.protocol import evaluate

    with progress(label) as step:
        return evaluate(
            predictor,
            rows,
            online=online,
            clock=clock,
            seed=seed,
            max_rows=max_rows,
            rivals=rivals,
            progress=lambda done, total: step("", done / max(total, 1)),
        )


def score_rows(evaluations: Sequence[Evaluation]) -> list[list[str]]:
    """Return rows of the table: predictors, then rivals in brackets; the least MAE has a star."""
    from sagellm_lifetime.evaluation.report import all_scores

    names = {evaluation.name for evaluation in evaluations}
    scores = all_scores(evaluations)
    least = {group: _least([groups[group] for groups in scores.values()]) for group in _RANKED}
    return [
        _row(name if name in names else f"({name})", groups["admission"], groups["steps"], least)
        for name, groups in scores.items()
    ]


def _least(scores: Sequence[Score]) -> float | None:
    return min((each["mae"] for each in scores if each["mae"] is not None), default=None)


def _row(name: str, admission: Score, steps: Score, least: Mapping[str, float | None]) -> list[str]:
    return [
        name,
        _starred(admission["mae"], least["admission"]),
        number(admission["within_10pct"], ".1%"),
        number(admission["crps"]),
        number(admission["coverage_90"], ".1%"),
        _starred(steps["mae"], least["steps"]),
        number(steps["coverage_90"], ".1%"),
        number(steps["confidence_ece"], ".3f"),
    ]


def _starred(value: float | None, least: float | None) -> str:
    return number(value) + ("*" if value is not None and value == least else " ")


def to_json(evaluations: Sequence[Evaluation], settings: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the design for the first predictor; all of them below ``predictors``."""
    from sagellm_lifetime.evaluation.verdict import verdict

    ahead = verdict(evaluations)
    found = {
        **evaluations[0].to_dict(),
        "verdict": None if ahead is None else ahead.to_dict(),
        "settings": settings,
    }
    if len(evaluations) > 1:
        found["predictors"] = {each.name: each.to_dict() for each in evaluations}
    return found
