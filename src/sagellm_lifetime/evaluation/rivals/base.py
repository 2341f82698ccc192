"""What every rival is: fitted on the training part, then asked for quantiles at points."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import polars as pl

from sagellm_lifetime.evaluation.point_forecasts import Forecast
from sagellm_lifetime.evaluation.points import Points


class Rival(ABC):
    """A baseline that stands beside every predictor."""

    name: ClassVar[str]

    @abstractmethod
    def fit(self, train: pl.DataFrame) -> None:
        """Learn from the training part."""

    @abstractmethod
    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Answer every point of ``frame``."""
