"""First predictions of recent sequences beside what became of them, for the live page."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sagellm_lifetime.core.distribution import TOLERANCE, LengthDistribution

KEPT: Final = 512
"""Completions that are remembered."""
SHOWN: Final = 200
"""Of them, the newest ones that are shown one by one."""
_TENTHS: Final = 10
_BINS: Final = 5
"""Groups of confidences of equal width."""


@dataclass(frozen=True, slots=True)
class FirstPrediction:
    """The first prediction of a sequence.

    Attributes:
        total: predicted total length, tokens.
        confidence: that this is within 10 %, 0 to 1.
        distribution: of the tokens that remained then; ``None`` if it is not kept.

    >>> from sagellm_lifetime.core.hazard import log_logistic
    >>> first = FirstPrediction(200, 0.3, LengthDistribution(log_logistic(200.0, 0.5)))
    >>> first.quantile(0.5, age=0), first.quantile(0.5, age=150)
    (200, 232)
    """

    total: int
    confidence: float
    distribution: LengthDistribution | None = None

    @property
    def age(self) -> int:
        """Return the tokens that had been generated at the prediction."""
        return 0 if self.distribution is None else self.distribution.age + self.distribution.shift

    def quantile(self, level: float, age: int) -> int | None:
        """Return a quantile of the total length, given that it is above ``age`` tokens."""
        if self.distribution is None:
            return None
        since = max(age - self.age, 0)
        return age + self.distribution.given(since).quantile(level)

    def position(self, length: int) -> float | None:
        """Return the share of the distribution below ``length`` tokens, among ends before the cap.

        Where predictions are calibrated, these positions are spread evenly over 0 to 1 (Dawid
        1984); half of the probability of ``length`` itself counts as below.
        """
        distribution = self.distribution
        if distribution is None:
            return None
        ended = length - self.age
        below = 1.0 - (distribution.survival(ended - 1) + distribution.survival(ended)) / 2.0
        cap = distribution.max_length
        by_itself = 1.0 if cap is None else 1.0 - distribution.survival(cap - self.age - 1)
        return min(max(below / by_itself, 0.0), 1.0) if by_itself > 0.0 else None


@dataclass(frozen=True, slots=True)
class _Scored:
    """A completion beside its first prediction: lengths in tokens, position from 0 to 1."""

    predicted: int
    confidence: float
    length: int
    position: float | None


class RecentPredictions:
    """The last completions that ended by themselves: one thread adds, another one reads."""

    def __init__(self) -> None:
        self._new: deque[tuple[FirstPrediction, int]] = deque(maxlen=KEPT)
        """Completions since the last reading, so that the adding thread computes nothing."""
        self._scored: deque[_Scored] = deque(maxlen=KEPT)

    def add(self, first: FirstPrediction, length: int) -> None:
        """Add a completion of ``length`` tokens."""
        self._new.append((first, length))

    def snapshot(self) -> dict[str, Any]:
        """Return the newest pairs of predicted and actual length, and the calibration.

        ``ended`` has ``[predicted, actual]`` in tokens, oldest first; ``positions`` counts where in
        its predicted distribution each length fell, by tenths; ``by_confidence`` has, by fifths of
        the confidence, the number of completions, the sum of confidences, and how many lengths were
        within 10 %.
        """
        while self._new:
            first, length = self._new.popleft()
            position = first.position(length)
            self._scored.append(_Scored(first.total, first.confidence, length, position))
        scored = list(self._scored)
        return {
            "ended": [[each.predicted, each.length] for each in scored[-SHOWN:]],
            "positions": _tenths(scored),
            "by_confidence": _by_confidence(scored),
        }


def _tenths(scored: Sequence[_Scored]) -> list[int]:
    counts = [0] * _TENTHS
    for each in scored:
        if each.position is not None:
            counts[min(int(each.position * _TENTHS), _TENTHS - 1)] += 1
    return counts


def _by_confidence(scored: Sequence[_Scored]) -> list[list[float]]:
    groups = [[0, 0.0, 0] for _ in range(_BINS)]
    for each in scored:
        group = groups[min(int(each.confidence * _BINS), _BINS - 1)]
        group[0] += 1
        group[1] += each.confidence
        group[2] += abs(each.predicted - each.length) <= TOLERANCE * each.length
    return groups
