"""The verdict over all steps: who is ahead, baselines included, and whether prediction pays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.evaluation.point_forecasts import Forecast
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.protocol import Evaluation
from sagellm_lifetime.evaluation.rivals import SIMPLE

_TWO_SIDED_95: Final = 1.96
_EQUAL: Final = 1e-9
"""Difference of two MAEs in tokens that counts as rounding."""
LEAST_ROWS: Final = 30
"""Fewest scored rows for a verdict: the interval of 1.96 standard errors holds for many rows."""
UNTRAINED: Final = "survival"
"""The predictor that needs no training, chosen unless another is ahead of it."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference in error between two forecasts over the same steps.

    Attributes:
        over: name of the other forecast.
        gain: share of the other's MAE that is saved; negative if the other is ahead.
        margin: half width of the 95 % interval of ``gain``; ``None`` with one cluster only.
    """

    over: str
    gain: float
    margin: float | None

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """Return 1 for ahead, -1 for behind, 0 if the interval includes no difference."""
        if self.margin is None or abs(self.gain) <= self.margin:
            return 0
        return 1 if self.gain > 0 else -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison on one workload; the best of each kind is chosen on the same steps.

    Attributes:
        best: least MAE of all.
        own: the best predictor, ``own_mae`` its MAE in tokens.
        simple: gap to the best baseline that learns only the distribution of lengths.
        other: gap to the best other baseline, if there is one.
        untrained: gap to :data:`UNTRAINED`, if it is another one of the predictors.
        maes: MAE by name, tokens.
        at_admission: MAE at admission by name, of those that were scored there.
        predictors: names that are not baselines.
        rows: number of scored rows.
    """

    best: str
    own: str
    simple: Gap
    other: Gap | None
    untrained: Gap | None
    maes: dict[str, float]
    at_admission: dict[str, float]
    predictors: tuple[str, ...]
    rows: int

    @property
    def enough(self) -> bool:
        """Return True if there are at least :data:`LEAST_ROWS` rows."""
        return self.rows >= LEAST_ROWS

    @property
    def pays(self) -> bool:
        """Return True if a predictor is ahead of the best simple baseline beyond chance."""
        return self.enough and self.simple.sign > 0

    @property
    def choice(self) -> str:
        """Return the best predictor if it is ahead of the untrained one, else the untrained."""
        if self.untrained is None or (self.enough and self.untrained.sign > 0):
            return self.own
        return UNTRAINED

    @property
    def best_at_admission(self) -> str | None:
        """Return the name with the least MAE at admission; a predictor before an equal baseline."""
        return _least(self.at_admission) if self.at_admission else None

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict for ``--json``."""
        return {
            "best": self.best,
            "best_predictor": self.own,
            "pays": self.pays,
            "rows": self.rows,
            "enough": self.enough,
            "choice": self.choice,
            "best_at_admission": self.best_at_admission,
            "against_simple": asdict(self.simple),
            "against_other": None if self.other is None else asdict(self.other),
        }

    def says(self) -> str:
        """Return two or three sentences for a report, with margins of the 95 % interval."""
        if not self.enough:
            return (
                f"too few rows to say: {counted(self.rows, 'scored row')} of {LEAST_ROWS} needed."
            )
        own = f"{self.own} ({self.maes[self.own]:,.1f})"
        simple = f"{self.simple.over} ({self.maes[self.simple.over]:,.1f})"
        head = {
            1: "prediction pays",
            0: "no difference beyond chance",
            -1: "prediction does not pay",
        }[self.simple.sign]
        if self.simple.margin is None and self.maes[self.simple.over] > _EQUAL:
            head = "one session or prompt alone does not tell a difference from chance"
        text = f"{head}: {own} has {self._error(self.simple)} {simple}, "
        text += "the best rule without a model."
        if self.other is not None:
            other = f"{self.other.over} ({self.maes[self.other.over]:,.1f})"
            error = self._error(self.other)
            ahead = self.maes[self.own] - self.maes[self.other.over]
            chance = "" if self.other.sign or abs(ahead) <= _EQUAL else ", no more than chance"
            if ahead <= _EQUAL:
                text += f" It has {error} the baseline {other}{chance}."
            else:
                error = error.removesuffix(" than")
                text += f" The baseline {other} is ahead: {self.own} has {error}{chance}."
        tied = [n for n, mae in self.maes.items() if mae <= self.maes[self.best] + _EQUAL]
        return f"{text} Least error of all: {', '.join(tied)}."

    def _error(self, other: Gap) -> str:
        """Return a phrase such as ``9.6 ± 3.0 % less error than`` or ``the same error as``."""
        mine, theirs = self.maes[self.own], self.maes[other.over]
        if abs(mine - theirs) <= _EQUAL:
            return "the same error as"
        if theirs <= _EQUAL:  # a share of 0 is undefined
            return "more error than"
        width = "" if other.margin is None else f" ± {100 * other.margin:.1f}"
        more = "less" if mine < theirs else "more"
        return f"{100 * abs(other.gain):.1f}{width} % {more} error than"


def verdict(evaluations: Sequence[Evaluation]) -> Verdict | None:
    """Return who is ahead; ``None`` if nothing was scored or there is no simple baseline.

    Args:
        evaluations: one per predictor, of the same frame, seed and rivals.
    """
    first = evaluations[0]
    forecasts = {e.name: e.forecasts[e.name] for e in evaluations}
    own = list(forecasts)
    forecasts |= {n: f for n, f in first.forecasts.items() if n not in forecasts}
    scores = {e.name: e.scores[e.name] for e in evaluations}
    scores |= {n: s for n, s in first.scores.items() if n not in scores}
    maes = {n: s["steps"]["mae"] for n, s in scores.items()}
    known = {n: float(mae) for n, mae in maes.items() if mae is not None}
    simple = [n for n in SIMPLE if n in known and n not in own]
    others = [n for n in known if n not in own and n not in simple]
    mine = [n for n in own if n in known]
    if not mine or not simple:
        return None
    ahead = _least({n: known[n] for n in mine})
    admission = {n: s["admission"]["mae"] for n, s in scores.items()}

    def gap_to(names: list[str]) -> Gap:
        over = _least({n: known[n] for n in names})
        gain, margin = gap(first.points, forecasts[ahead], forecasts[over], clusters=first.clusters)
        return Gap(over, gain, margin)

    return Verdict(
        best=_least(known),
        own=ahead,
        simple=gap_to(simple),
        other=gap_to(others) if others else None,
        untrained=gap_to([UNTRAINED]) if UNTRAINED in mine and ahead != UNTRAINED else None,
        maes=known,
        at_admission={n: float(mae) for n, mae in admission.items() if mae is not None},
        predictors=tuple(own),
        rows=first.rows,
    )


def gap(
    points: Points, forecast: Forecast, other: Forecast, *, clusters: np.ndarray
) -> tuple[float, float | None]:
    """Return the share of ``other``'s steps MAE that ``forecast`` saves, and its 95 % margin.

    The margin is that of a ratio of sums over clusters (linearised; Cochran 1977, chapter 6): the
    rows of one session, or of one prompt, are not independent.

    Args:
        clusters: number of the cluster of each row of the frame, from 0.
    """
    at = points.groups()["steps"]
    at = at[points.seen[at]]
    weight = points.weight[at] * points.stands_for[at]
    group = clusters[points.row[at]]
    mine = np.bincount(group, weight * errors(points, forecast, at))
    theirs = np.bincount(group, weight * errors(points, other, at))
    total = theirs.sum()
    if not total > 0:
        return 0.0, None
    ratio = float(mine.sum() / total)
    n = len(np.unique(group))
    if n < 2:
        return 1.0 - ratio, None
    rest = mine - ratio * theirs
    deviation = math.sqrt(n / (n - 1) * float(rest @ rest)) / float(total)
    return 1.0 - ratio, _TWO_SIDED_95 * deviation


def errors(points: Points, forecast: Forecast, at: np.ndarray) -> np.ndarray:
    """Return the absolute errors up to the horizon in tokens, shape ``(len(at),)``."""
    point = np.minimum(forecast.point[at], points.cuts.horizon - points.age[at])
    return np.abs(point - (points.target[at] - points.age[at])).astype(np.float64)


def _least(maes: dict[str, float]) -> str:
    """Return the first name with the least error, up to rounding."""
    least = min(maes.values()) + _EQUAL
    return next(name for name, mae in maes.items() if mae <= least)
