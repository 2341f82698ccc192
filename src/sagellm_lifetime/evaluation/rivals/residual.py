"""The global residual-life table: what is left, given the age and nothing else."""

from __future__ import annotations

import polars as pl

from sagellm_lifetime.evaluation.forecast import LEVELS, Forecast, from_quantiles
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.kaplan_meier import curve_of


class ResidualLife(Rival):
    """Quantiles of ``L - a`` given ``L > a`` from the training part, censored rows included."""

    name = "residual_life"

    def fit(self, train: pl.DataFrame) -> None:
        self._curve = curve_of(train)

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        return from_quantiles(self._curve.residual(points.age, LEVELS), points.age, points.cap)
