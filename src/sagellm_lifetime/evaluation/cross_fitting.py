"""Fit the baselines on a training part, or on either half of the rows where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError, MissingExtraError
from sagellm_lifetime.evaluation.point_forecasts import Forecast
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.rivals import RIVALS, fit_possible
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.history.prequential import Clock
from sagellm_lifetime.history.splits import split

HALF = "__half"


class Cached(Rival):
    """A baseline whose forecast is computed once for all predictors of a study."""

    def __init__(self, rival: Rival) -> None:
        self.name = rival.name  # type: ignore[misc]  # the name of the wrapped baseline
        self._rival = rival
        self._answer: Forecast | None = None

    def fit(self, train: pl.DataFrame) -> None:
        """Fit on the training part."""
        self._answer = None
        self._rival.fit(train)

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Return the forecast; ``frame`` and ``points`` are the same in every call."""
        if self._answer is None:
            self._answer = self._rival.forecast(frame, points)
        return self._answer


class CrossFitted(Rival):
    """Two baselines of a kind; each is fitted on one half of the rows and answers for the other."""

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]  # the name of the wrapped baseline
        self._halves = (RIVALS[name](), RIVALS[name]())

    def fit(self, train: pl.DataFrame) -> None:
        """Fit on rows with the column ``HALF``."""
        for half, rival in enumerate(self._halves):
            rival.fit(train.filter(pl.col(HALF) != half))

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Return the forecast of each point by the baseline that was not fitted on its row."""
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
    return [Cached(rival) for rival in rivals], left_out


def cross_fitted(
    frame: pl.DataFrame, clock: Clock = "auto"
) -> tuple[pl.DataFrame, list[Rival], dict[str, str]]:
    """Return rows with the column ``HALF``, rivals fitted on the halves, and who is left out."""
    numbered = frame.with_row_index("__row")
    try:
        second_half = split(numbered, share=0.5, clock=clock).test["__row"]
    except HistoryError as error:
        return frame, [], dict.fromkeys(RIVALS, str(error))
    halves = numbered.select(pl.col("__row").is_in(second_half.implode()).cast(pl.Int8).alias(HALF))
    marked = frame.with_columns(halves[HALF])
    rivals: list[Rival] = []
    left_out: dict[str, str] = {}
    for name in RIVALS:
        rival = CrossFitted(name)
        try:
            rival.fit(marked)
        except (HistoryError, MissingExtraError) as error:
            left_out[name] = str(error)
        else:
            rivals.append(Cached(rival))
    return marked, rivals, left_out
