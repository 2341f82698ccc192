"""Moving average by ``max_length``, as in the specification but with its faults repaired."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.arrays import ORDER, Arrays, in_order, ranks
from sagellm_lifetime.core.checked import checked, checked_keys
from sagellm_lifetime.core.merging import MOST_JOINED, evenly_mixed, thinned
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.models.base import Feedback, LengthModel
from sagellm_lifetime.models.moments import PRIOR_LOG_SD, PRIOR_MEDIAN

_BUCKET: Final = 10
_UNCAPPED: Final = -1
_MAX_BUCKETS: Final = 4096
_LARGEST_BUCKET: Final = 2**63 - 1
_LONGEST: Final = 10**8
_LARGEST_WINDOW: Final = 10**6
_PRIOR_SHARE: Final = 0.8
"""The specification's guess before any history: 80 % of ``max_length``."""


class BaselineModel(LengthModel):
    """Moving average of the lengths seen for the same ``max_length``, rounded down to tens.

    Repaired against the specification: completions go to the bucket of their ``max_length`` (the
    specification uses that of their actual length), the metrics are filled, time is learned, and
    the average becomes a distribution with the spread of the window. A bucket without history uses
    the average of all buckets; without any, 80 % of ``max_length``. Aborted sequences are left out
    of the average; capped ones count at their cap.

    Args:
        window_size: completions averaged per bucket.
        options: options of :class:`~sagellm_lifetime.models.base.LengthModel`.

    Raises:
        RequestError: an option of another type, or out of its range.
    """

    name = "baseline"

    def __init__(self, window_size: int = 100, **options: Any) -> None:
        super().__init__(**options)
        self.options["window_size"] = as_option("window_size", window_size, 1, _LARGEST_WINDOW)
        self._windows: OrderedDict[int, deque[int]] = OrderedDict()
        """Lengths in tokens by bucket, least recently updated first."""

    def hazards(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Return rows of cumulative hazards, shape ``(n, BINS + 1)``."""
        return np.stack([self._row(one) for one in evidence])

    def _row(self, evidence: Evidence) -> np.ndarray:
        cap = evidence.features.max_length
        window = self._windows.get(_bucket(cap)) or self._windows.get(_EVERY)
        if not window:
            guess = PRIOR_MEDIAN if cap is None else max(_PRIOR_SHARE * cap, 1.0)
            return hazard.log_logistic(guess, PRIOR_LOG_SD)
        lengths = np.maximum(np.array(window, dtype=np.float64), 1.0)
        mean = lengths.mean()
        spread = np.sqrt(np.mean(np.log(lengths / mean) ** 2))
        share = len(lengths) / (len(lengths) + 2.0)
        return hazard.log_logistic(mean, max(share * spread + (1 - share) * PRIOR_LOG_SD, 0.02))

    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence."""
        cap = feedback.evidence.features.max_length
        if feedback.censored and (cap is None or feedback.length < cap):
            return
        for bucket in (_bucket(cap), _EVERY):
            window = self._windows.setdefault(bucket, deque(maxlen=self.options["window_size"]))
            window.append(feedback.length)
            self._windows.move_to_end(bucket)
        while len(self._windows) > _MAX_BUCKETS:
            self._windows.popitem(last=False)

    def merge(self, *others: Self) -> None:
        """Join the windows of each bucket; a joined one stays longer than ``window_size``."""
        joined: dict[int, list[int]] = {}
        for model in (self, *others):
            for bucket, window in model._windows.items():
                joined.setdefault(bucket, []).extend(window)
        kept = sorted(joined, key=lambda bucket: (len(joined[bucket]), bucket))[-_MAX_BUCKETS:]
        most = MOST_JOINED * self.options["window_size"]
        windows = {bucket: thinned(np.sort(joined[bucket]), most) for bucket in kept}
        self._windows = OrderedDict(
            (bucket, deque(evenly_mixed(window).tolist(), maxlen=self._room(len(window))))
            for bucket, window in windows.items()
        )

    def _room(self, size: int) -> int:
        """Return the maximum length of a window with ``size`` lengths."""
        return max(size, self.options["window_size"])

    def state(self) -> Arrays:
        """Return the windows by bucket, and their order."""
        windows = {str(bucket): np.array(window) for bucket, window in self._windows.items()}
        return {**windows, ORDER: ranks(windows)}

    def restore(self, state: Arrays) -> None:
        """Replace the windows. Raises :class:`ValueError` for arrays that do not fit."""
        size = MOST_JOINED * self.options["window_size"]
        windows = {bucket: window for bucket, window in state.items() if bucket != ORDER}
        windows = in_order(windows, state.get(ORDER))
        buckets = checked_keys(windows, _EVERY, _LARGEST_BUCKET)
        lengths = [checked(windows, name, np.int64, (None,), 0, _LONGEST) for name in windows]
        sizes = [len(window) for window in lengths]
        if len(sizes) > _MAX_BUCKETS or not all(1 <= count <= size for count in sizes):
            raise ValueError(f"more than {_MAX_BUCKETS} windows, or one of other than 1 to {size}")
        self._windows = OrderedDict(
            (bucket, deque(window.tolist(), maxlen=self._room(len(window))))
            for bucket, window in zip(buckets, lengths, strict=True)
        )


_EVERY: Final = -2
"""Bucket of all completions."""


def _bucket(max_length: int | None) -> int:
    return _UNCAPPED if max_length is None else max_length // _BUCKET * _BUCKET
