"""The constant: every total is the training median."""

from __future__ import annotations

import numpy as np
import polars as pl

from sagellm_lifetime.evaluation.forecast import Forecast
from sagellm_lifetime.evaluation.points import Points
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.kaplan_meier import curve_of


class ConstantMedian(Rival):
    """Remaining = training median - age, at least 1 token. A point, so it has no intervals."""

    name = "constant_median"

    def fit(self, train: pl.DataFrame) -> None:
        start = np.zeros(1, dtype=np.int64)
        self._median = round(float(curve_of(train).residual(start, np.array([0.5]))[0, 0]))

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        left = np.maximum(self._median - points.age, 1)
        return Forecast(np.minimum(left, np.maximum(points.cap - points.age, 0)))
