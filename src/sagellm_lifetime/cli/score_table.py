"""Evaluations as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sagellm_lifetime.cli.output import note, number

if TYPE_CHECKING:
    from sagellm_lifetime.evaluation.protocol import Evaluation
    from sagellm_lifetime.evaluation.scoring import Score

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


def note_left_out(left_out: Mapping[str, str]) -> None:
    """Print on stderr the missing baselines and the reasons, one line each."""
    for name, reason in left_out.items():
        note(f"left out beside: {name} ({reason})")


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
    return min((score["mae"] for score in scores if score["mae"] is not None), default=None)


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
