"""Who is ahead over all steps, baselines included, and whether prediction pays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np

from sagellm_lifetime.evaluation.forecast import Forecast
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.protocol import Evaluation
from sagellm_lifetime.evaluation.rivals import SIMPLE

_TWO_SIDED_95: Final = 1.96


@dataclass(frozen=True, slots=True)
class Gap:
    """How much less error one has than another, over the same steps.

    Attributes:
        over: name of the other.
        gain: share of the other's MAE that is saved; negative where the other is ahead.
        margin: half width of the 95 % interval of ``gain``; ``None`` from one cluster alone.
    """

    over: str
    gain: float
    margin: float | None

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """1 ahead, -1 behind, 0 level: the interval holds no difference."""
        if self.margin is None or abs(self.gain) <= self.margin:
            return 0
        return 1 if self.gain > 0 else -1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the steps of one workload say; the best of each kind was chosen on the same steps.

    Attributes:
        best: least MAE of all.
        own: the best predictor, ``own_mae`` its MAE in tokens.
        simple: against the best baseline that learns nothing but the distribution of lengths.
        other: against the best baseline that is not ``simple``, where there is one.
        maes: of everybody, tokens.
        predictors: names of those that are no baselines.
    """

    best: str
    own: str
    simple: Gap
    other: Gap | None
    maes: dict[str, float]
    predictors: tuple[str, ...]

    @property
    def pays(self) -> bool:
        """Whether a predictor is ahead of the best simple baseline by more than chance."""
        return self.simple.sign > 0

    def to_dict(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {
            "best": self.best,
            "best_predictor": self.own,
            "pays": self.pays,
            "against_simple": asdict(self.simple),
            "against_other": None if self.other is None else asdict(self.other),
        }

    def says(self) -> str:
        """Return two or three sentences for people; a margin is that of the 95 % interval."""
        own = f"{self.own} ({self.maes[self.own]:,.1f})"
        simple = f"{self.simple.over} ({self.maes[self.simple.over]:,.1f})"
        head = {
            1: "prediction pays",
            0: "no difference beyond chance",
            -1: "prediction does not pay",
        }[self.simple.sign]
        text = f"{head}: {own} has {_less(self.simple)} error than {simple}, "
        text += "the best rule without a model."
        if self.other is not None:
            other = f"{self.other.over} ({self.maes[self.other.over]:,.1f})"
            chance = "" if self.other.sign else ", no more than chance"
            difference = f"{_less(self.other)} error"
            if self.other.gain > 0:
                text += f" It has {difference} than the baseline {other}{chance}."
            else:
                text += f" The baseline {other} is ahead: {self.own} has {difference}{chance}."
        return f"{text} Least error of all: {self.best}."


def verdict(evaluations: Sequence[Evaluation]) -> Verdict | None:
    """Return who is ahead; ``None`` where nothing was scored or no simple baseline stands beside.

    Args:
        evaluations: one per predictor, over the same frame, with the same seed and rivals.
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
    ahead = min(mine, key=known.__getitem__)

    def against(names: list[str]) -> Gap:
        over = min(names, key=known.__getitem__)
        gain, margin = gap(first.points, forecasts[ahead], forecasts[over], clusters=first.clusters)
        return Gap(over, gain, margin)

    return Verdict(
        best=min(known, key=known.__getitem__),
        own=ahead,
        simple=against(simple),
        other=against(others) if others else None,
        maes=known,
        predictors=tuple(own),
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
    """Return the absolute errors that the MAE is the mean of, tokens, shape ``(len(at),)``."""
    point = np.minimum(forecast.point[at], points.cuts.horizon - points.age[at])
    return np.abs(point - (points.target[at] - points.age[at])).astype(np.float64)


def _less(found: Gap) -> str:
    """``9.6 ± 3.0 % less``, or more."""
    width = "" if found.margin is None else f" ± {100 * found.margin:.1f}"
    return f"{100 * abs(found.gain):.1f}{width} % {'less' if found.gain >= 0 else 'more'}"
