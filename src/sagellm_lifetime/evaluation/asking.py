"""The requests of an evaluation, under ids of their own."""

from __future__ import annotations

from itertools import count

import polars as pl

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.rows import HistoryRequests

_NUMBER = count()


class Asking:
    """Requests of a frame; every evaluation uses ids nobody else uses."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._requests = HistoryRequests(frame)
        self._unique = next(_NUMBER)

    def sequence_id(self, row: int, point: int | None = None) -> str:
        """Id of a row's own sequence, or of the throw-away one of a single point."""
        base = f"evaluate-{self._unique}-{row}"
        return base if point is None else f"{base}-{point}"

    def request(self, row: int, age: int, point: int | None = None) -> PredictionRequest:
        """The request of a row at an age."""
        return self._requests.request(row, age, self.sequence_id(row, point))
