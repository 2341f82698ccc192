"""The rivals that know lengths and ages only: a constant, and the residual life by age."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.evaluation.point_forecasts import LEVELS, Forecast, from_quantiles
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.kaplan_meier import curve_of


class ConstantMedian(Rival):
    """The constant: remaining = training median - age, at least 1 token; without intervals."""

    name = "constant_median"

    def fit(self, train: pl.DataFrame) -> None:
        """Learn the median length, censored rows included."""
        start = np.zeros(1, dtype=np.int64)
        self._median = round(float(curve_of(train).residual(start, np.array([0.5]))[0, 0]))

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Return the forecast at every point: a point, no quantiles."""
        left = np.maximum(self._median - points.age, 1)
        return Forecast(np.minimum(left, np.maximum(points.cap - points.age, 0)))


class ResidualLife(Rival):
    """Quantiles of ``L - a`` given ``L > a`` from the training part, censored rows included."""

    name = "residual_life"

    def fit(self, train: pl.DataFrame) -> None:
        """Learn the Kaplan-Meier curve of the lengths."""
        self._curve = curve_of(train)

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Return the forecast at every point."""
        return from_quantiles(self._curve.residual(points.age, LEVELS), points.age, points.cap)
