"""The interface of rivals: fitted on the training part, then asked for forecasts at points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import polars as pl

from sagellm_lifetime.evaluation.point_forecasts import Forecast
from sagellm_lifetime.evaluation.points import Points


class Rival(ABC):
    """A baseline that every predictor is compared with."""

    name: ClassVar[str]

    @abstractmethod
    def fit(self, train: pl.DataFrame) -> None:
        """Learn from the training part.

        Raises:
            HistoryError: there are too few rows.
        """

    @abstractmethod
    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Return the forecast at every point of ``frame``."""
