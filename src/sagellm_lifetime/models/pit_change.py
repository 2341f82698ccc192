"""Change of the predicted probabilities at which outcomes fall: a cheap sign of a change.

The probability ``u`` that was predicted for lengths up to the actual one (the probability integral
transform) has some distribution: the uniform one if predictions are right, and another, steady one
if they are somewhat wrong. When the workload changes, so does this distribution: lengths that are
longer, shorter, more spread or at other places of the distribution all change it.

A histogram of the recent ``u`` is compared with one of the usual ``u`` by the logarithm of the
ratio of their densities at each new ``u``, before it is counted, and the ratios are summed by a
CUSUM (Page 1954). The sum is a bet on the recent histogram (a plug-in martingale, Fedorova et al.
2012): where nothing changes it loses, since the recent histogram is the noisier one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from typing import Final

BINS: Final = 8
"""Bins of a histogram; few, so that the recent one is learned from few completions."""
RECENT: Final = 96
"""Completions after which the recent histogram is halved."""
USUAL: Final = 4096
"""Completions after which the usual histogram is halved."""


def _even() -> list[int]:
    return [1] * BINS


@dataclass(slots=True)
class PitChange:
    """Two histograms of ``u``, and the sum of the comparison.

    Attributes:
        recent: counts of the recent histogram, one more than was counted in each bin.
        usual: counts of the usual histogram, likewise.
        suspicion: sum of the CUSUM, nats.

    Example:
        >>> from sagellm_lifetime.models.pit_change import PitChange
        >>> change = PitChange()
        >>> for i in range(400):
        ...     change.add((i * 0.618) % 1.0)
        >>> change.suspicion < 4.0
        True
        >>> for i in range(40):
        ...     change.add(0.4 + 0.2 * ((i * 0.618) % 1.0))
        >>> change.suspicion > 4.0
        True
    """

    recent: list[int] = field(default_factory=_even)
    usual: list[int] = field(default_factory=_even)
    suspicion: float = 0.0
    _recent_sum: int = field(init=False)
    _usual_sum: int = field(init=False)

    def __post_init__(self) -> None:
        self._recent_sum, self._usual_sum = sum(self.recent), sum(self.usual)

    def add(self, u: float) -> None:
        """Compare one ``u``, from 0 to 1, and count it."""
        k = int(u * BINS) if u < 1.0 else BINS - 1
        recent, usual = self.recent, self.usual
        ratio = recent[k] * self._usual_sum / (usual[k] * self._recent_sum)
        # A sum of zero stays zero without a logarithm.
        if self.suspicion or ratio > 1.0:
            total = self.suspicion + log(ratio)
            self.suspicion = total if total > 0.0 else 0.0
        recent[k] += 1
        usual[k] += 1
        self._recent_sum += 1
        if self._recent_sum > RECENT:
            self.recent = [(count + 1) >> 1 for count in self.recent]
            self._recent_sum = sum(self.recent)
        self._usual_sum += 1
        if self._usual_sum > USUAL:
            self.usual = [(count + 1) >> 1 for count in self.usual]
            self._usual_sum = sum(self.usual)

    def forget_recent(self) -> None:
        """Begin the recent histogram and the sum anew."""
        self.recent, self._recent_sum, self.suspicion = _even(), BINS, 0.0
