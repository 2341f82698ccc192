"""Seconds per generated token, learned from completions: the median ratio, by model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core.merging import MOST_JOINED, evenly_mixed, thinned
from sagellm_lifetime.core.protocol import MAX_DURATION_S

DEFAULT_SECONDS_PER_TOKEN: Final = 0.02
"""Constant of the specification, used before the first completion."""
_WINDOW: Final = 257
"""Newest completions of which the median is taken."""
_MOST: Final = MOST_JOINED * _WINDOW
"""Maximum number of values of a window that was merged from several."""
_ALL_MODELS: Final = ""
"""Name of the median over all models in a state."""


class _RollingMedian:
    """Median of the last ``_WINDOW`` values; 3 µs an update, so that ``update()`` stays cheap."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque()
        self._sorted: list[float] = []
        self.median = DEFAULT_SECONDS_PER_TOKEN

    def add(self, value: float, room: int = _WINDOW) -> None:
        """Take in a value and drop the oldest of a window with ``room`` values or more.

        A merged window stays as long as it is.
        """
        if len(self.recent) >= room:
            old = self.recent.popleft()
            del self._sorted[bisect_left(self._sorted, old)]
        self.recent.append(value)
        insort(self._sorted, value)
        self.median = self._sorted[len(self._sorted) // 2]


class TokenTiming:
    """Rolling medians of ``actual_time / actual_length``, per model and over all models.

    The time runs from arrival to finish, so it includes waiting and prefill, as an engine reports
    it; the median is not moved by stragglers and clock jumps.

    Args:
        max_models: models with a median of their own; the least recently updated is dropped.
    """

    def __init__(self, max_models: int = 256) -> None:
        self._max_models = max_models
        self._all = _RollingMedian()
        self._by_model: OrderedDict[str, _RollingMedian] = OrderedDict()
        """Least recently updated first."""

    def update(self, model: str | None, length: int, seconds: float) -> None:
        """Learn from one completion; ignore it unless both numbers are positive and plausible."""
        if length <= 0 or not 0.0 < seconds <= MAX_DURATION_S:
            return
        ratio = seconds / length
        self._all.add(ratio)
        if model:
            median = self._by_model.get(model)
            if median is None:
                median = self._by_model[model] = _RollingMedian()
                if len(self._by_model) > self._max_models:
                    self._by_model.popitem(last=False)
            else:
                self._by_model.move_to_end(model)
            median.add(ratio)

    def seconds_per_token(self, model: str | None = None) -> float:
        """Return the median seconds per token of the model, else of all models, else 0.02."""
        known = self._by_model.get(model) if model else None
        return (self._all if known is None else known).median

    def paces(self, models: Sequence[str | None]) -> list[float]:
        """Return the seconds per token of many sequences, by their models."""
        known = {model: self.seconds_per_token(model) for model in set(models)}
        return [known[model] for model in models]

    def state(self) -> dict[str, list[float]]:
        """Return the ratios by model, least recently updated first; those of all under ``""``."""
        ratios = {_ALL_MODELS: list(self._all.recent)} if self._all.recent else {}
        return {**ratios, **{key: list(median.recent) for key, median in self._by_model.items()}}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Replace the learned ratios with a :meth:`state`; its order is that of the updates.

        Raises:
            ValueError: impossible seconds per token, or a model without any.
        """
        medians = {key: _restored(values) for key, values in state.items()}
        self._all = medians.pop(_ALL_MODELS) if _ALL_MODELS in medians else _RollingMedian()
        self._by_model = OrderedDict(list(medians.items())[-self._max_models :])


def _restored(values: Sequence[float]) -> _RollingMedian:
    ratios = np.asarray(values, dtype=np.float64)
    # A comparison with NaN is false.
    if not len(ratios) or not np.all((ratios > 0.0) & (ratios <= MAX_DURATION_S)):
        raise ValueError(f"seconds per token must be above 0 and at most {MAX_DURATION_S}")
    median = _RollingMedian()
    for ratio in ratios[-_MOST:].tolist():
        median.add(ratio, _MOST)
    return median


def merged_ratios(states: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Return the state of a :class:`TokenTiming` with the ratios of several; medians are of all.

    >>> merged_ratios([{"": [0.1]}, {"": [0.3], "m": [0.3]}])
    {'m': [0.3], '': [0.1, 0.3]}
    """
    joined: dict[str, list[float]] = {}
    for state in states:
        for model, ratios in state.items():
            joined.setdefault(model, []).extend(ratios)
    order = sorted(joined, key=lambda model: (len(joined[model]), model))
    return {model: evenly_mixed(thinned(np.sort(joined[model]), _MOST)).tolist() for model in order}
