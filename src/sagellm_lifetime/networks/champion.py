"""Choice of the weights in use: the champion's, a challenger's once it is no worse, or none.

New weights of a network are a *challenger*. Champion and challenger are scored side by side on
completions that neither was trained on: the log loss of the length, a cut-off one as survival. The
challenger replaces the champion if it passes a one-sided test of non-inferiority: the mean of
the paired differences plus ``Z`` standard errors is at most :data:`MARGIN`. It is run after each of
:data:`TESTED_AT` completions, and ``Z`` is the normal quantile of 5 % divided by the number of
tests (Bonferroni), so weights that are worse by the margin are accepted with a chance of 5 % at
most. Weights that are not accepted in the last test, or clearly worse in an earlier one, are
refused.

The corrections of the champion are applied by the share with the least recent loss, and 0, which
leaves the table uncorrected, is among the shares.
"""

from __future__ import annotations

from math import sqrt
from typing import Final

import numpy as np

from sagellm_lifetime.networks.graphs import Weights
from sagellm_lifetime.networks.serving import Runner

TESTED_AT: Final = (16, 32, 64, 128)
"""Numbers of completions at which a challenger may be accepted or refused."""
MARGIN: Final = 0.01
"""Nats per completion by which an accepted challenger may be worse."""
Z: Final = 2.2414
"""Quantile of the normal law at ``1 - 0.05 / len(TESTED_AT)``."""
_LEAST_SD: Final = 0.02
"""Least standard deviation of a difference, nats: a few equal ones prove little."""
_LARGEST: Final = 2.0
"""Bound of a difference, nats, so that no single completion decides."""
SHARES: Final[np.ndarray] = np.array([1.0, 0.75, 0.5, 0.25, 0.0])
"""Shares of the corrections that are applied; the first of equally good ones is used."""
SHARES.flags.writeable = False
_FORGET: Final = 1.0 - 1.0 / 256.0
"""Factor by which older losses fade with each completion."""


class Share:
    """Share of a network's corrections that predicts best, by its recent losses.

    >>> share = Share()
    >>> share.value
    1.0
    >>> share.add(np.array([3.0, 2.5, 2.0, 2.2, 2.4]))
    >>> share.value
    0.5
    """

    def __init__(self) -> None:
        self.losses = np.zeros(len(SHARES))
        """Fading sums of losses under each of :data:`SHARES`, nats."""

    @property
    def value(self) -> float:
        """Return the share in use, 0 for no corrections."""
        return SHARES.item(int(self.losses.argmin()))

    def add(self, losses: np.ndarray) -> None:
        """Add the losses of one completion under each of :data:`SHARES`, nats."""
        self.losses = self.losses * _FORGET + losses


class Trial:
    """Paired scores of a challenger and the champion.

    Args:
        weights: weights of the challenger.
        runner: runner of these weights.

    Attributes:
        share: share of the challenger's corrections that has predicted best in the trial.
    """

    def __init__(self, weights: Weights, runner: Runner) -> None:
        self.weights, self.runner = weights, runner
        self.share = Share()
        self._differences: list[float] = []

    def add(self, champion: float, challenger: np.ndarray) -> None:
        """Add one completion.

        Args:
            champion: loss of the champion, nats.
            challenger: losses of the challenger under each of :data:`SHARES`, nats.
        """
        self.share.add(challenger)
        difference = challenger.item(0) - champion
        # A loss that is not a number counts as the largest difference.
        if not difference <= _LARGEST:
            difference = _LARGEST
        self._differences.append(max(difference, -_LARGEST))

    def verdict(self) -> bool | None:
        """Return True to accept the challenger, False to refuse it, ``None`` while undecided."""
        count = len(self._differences)
        if count not in TESTED_AT:
            return None
        return is_no_worse(np.array(self._differences), is_last=count == TESTED_AT[-1])


def is_no_worse(differences: np.ndarray, *, is_last: bool) -> bool | None:
    """Return the result of one test.

    Args:
        differences: losses of the challenger minus those of the champion, nats, shape ``(N,)``.
        is_last: True to decide in any case.

    Returns:
        True for no worse than by the margin, False for worse, ``None`` for undecided.

    >>> is_no_worse(np.full(16, -0.1), is_last=False), is_no_worse(np.full(16, 0.1), is_last=False)
    (True, False)
    """
    count = len(differences)
    error = max(float(differences.std(ddof=1)), _LEAST_SD) / sqrt(count)
    mean = float(differences.mean())
    if mean + Z * error <= MARGIN:
        return True
    return False if is_last or mean - Z * error > MARGIN else None
