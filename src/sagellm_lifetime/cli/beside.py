"""The rivals that stand beside a predictor, whatever there is to fit them on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from sagellm_lifetime.cli.output import note
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.evaluation.point_forecasts import Forecast
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.rivals import RIVALS, fit_possible
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.history.prequential import Clock
from sagellm_lifetime.history.splits import split

HALF = "__half"


class Once(Rival):
    """A rival that answers the same points once, however many predictors it stands beside."""

    def __init__(self, rival: Rival) -> None:
        self.name = rival.name  # type: ignore[misc]  # of the instance: that of who answers
        self._rival = rival
        self._answer: Forecast | None = None

    def fit(self, train: pl.DataFrame) -> None:
        """Learn from the training part."""
        self._answer = None
        self._rival.fit(train)

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Answer every point of ``frame``, which is the same in every call."""
        if self._answer is None:
            self._answer = self._rival.forecast(frame, points)
        return self._answer


class CrossFitted(Rival):
    """Two of a kind, each fitted on one half of the rows and asked about the other."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]  # of the instance: that of who answers
        self._halves = (RIVALS[name](), RIVALS[name]())

    def fit(self, train: pl.DataFrame) -> None:
        """Learn from rows with the column ``HALF``."""
        for half, rival in enumerate(self._halves):
            rival.fit(train.filter(pl.col(HALF) != half))

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Answer every point by the half that does not know its row."""
        first, second = (rival.forecast(frame, points) for rival in self._halves)
        own = (frame[HALF].to_numpy() == 1)[points.row]
        answer = replace(first, point=np.where(own, second.point, first.point))
        if first.quantiles is not None and second.quantiles is not None:
            mixed = np.where(own[:, None], second.quantiles, first.quantiles)
            answer = replace(answer, quantiles=mixed)
        if first.confidence is not None and second.confidence is not None:
            mixed = np.where(own, second.confidence, first.confidence)
            answer = replace(answer, confidence=mixed)
        return answer


def trained(train: pl.DataFrame) -> tuple[list[Rival], dict[str, str]]:
    """Return the rivals fitted on the training part, and by name why others are left out."""
    rivals, left_out = fit_possible(train)
    return [Once(rival) for rival in rivals], left_out


def cross_fitted(
    frame: pl.DataFrame, clock: Clock = "auto"
) -> tuple[pl.DataFrame, list[Rival], dict[str, str]]:
    """Return rows with the column ``HALF``, rivals fitted on the halves, and who is left out."""
    numbered = frame.with_row_index("__row")
    try:
        second = split(numbered, share=0.5, clock=clock).test["__row"]
    except HistoryError as error:
        return frame, [], dict.fromkeys(RIVALS, str(error))
    halves = numbered.select(pl.col("__row").is_in(second.implode()).cast(pl.Int8).alias(HALF))
    marked = frame.with_columns(halves[HALF])
    rivals: list[Rival] = []
    left_out: dict[str, str] = {}
    for name in RIVALS:
        rival = CrossFitted(name)
        try:
            rival.fit(marked)
        except HistoryError as error:
            left_out[name] = str(error)
        else:
            rivals.append(Once(rival))
    return marked, rivals, left_out


def say_left_out(left_out: dict[str, str]) -> None:
    """Say on stderr, a line each, which rivals do not stand beside."""
    for name, why in left_out.items():
        note(f"left out beside: {name} ({why})")
