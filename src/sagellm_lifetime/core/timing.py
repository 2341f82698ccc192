"""Seconds per generated token, learned from completions: the median ratio, by model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

DEFAULT_SECONDS_PER_TOKEN: Final = 0.02
"""The specification's constant; used only before anything was learned."""
_WINDOW: Final = 257
_EVERY: Final = ""


class _RollingMedian:
    """Median of the last ``_WINDOW`` values; 3 µs an update, so that ``update()`` stays cheap."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self.recent) == _WINDOW:
            old = self.recent.popleft()
            del self._sorted[bisect_left(self._sorted, old)]
        self.recent.append(value)
        insort(self._sorted, value)

    def value(self) -> float:
        return self._sorted[len(self._sorted) // 2]


class TokenTiming:
    """``actual_time / actual_length``, as a rolling median per model and over all models.

    The time runs from arrival to finish, so waiting and prefill are in it, as they are in what an
    engine reports; the median keeps stragglers and clock jumps out.
    """

    def __init__(self, max_models: int = 256) -> None:
        self._max_models = max_models
        self._by_model: dict[str, _RollingMedian] = {}

    def update(self, model: str | None, length: int, seconds: float) -> None:
        """Learn from one completion; ignored unless both numbers are positive."""
        if length <= 0 or not seconds > 0.0 or seconds == float("inf"):
            return
        ratio = seconds / length
        self._median(_EVERY).add(ratio)
        if model and (model in self._by_model or len(self._by_model) <= self._max_models):
            self._median(model).add(ratio)

    def _median(self, key: str) -> _RollingMedian:
        # Not setdefault(): that would build a median at every update and throw it away.
        found = self._by_model.get(key)
        if found is None:
            found = self._by_model[key] = _RollingMedian()
        return found

    def seconds_per_token(self, model: str | None = None) -> float:
        """Median seconds per token of the model, else of all models, else 0.02."""
        if not self._by_model:
            return DEFAULT_SECONDS_PER_TOKEN
        known = self._by_model.get(model or _EVERY) or self._by_model[_EVERY]
        return known.value()

    def paces(self, models: Sequence[str | None]) -> list[float]:
        """Seconds per token of many sequences, by their models."""
        known = {model: self.seconds_per_token(model) for model in set(models)}
        return [known[model] for model in models]

    def state(self) -> dict[str, list[float]]:
        """What was learned, as plain data."""
        return {key: list(median.recent) for key, median in self._by_model.items()}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Replace what was learned with a :meth:`state`."""
        self._by_model = {}
        for key, values in state.items():
            median = self._by_model.setdefault(key, _RollingMedian())
            for value in np.asarray(values, dtype=np.float64)[-_WINDOW:]:
                median.add(float(value))
