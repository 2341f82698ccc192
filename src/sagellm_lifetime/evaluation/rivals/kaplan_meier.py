"""The Kaplan-Meier curve of a history, conditioned on an age."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.evaluation.points import lengths
from sagellm_lifetime.history.prequential import censored

MIN_AT_RISK = 10


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A step function ``survival[i] = P(L > at[i])`` that starts with ``at[0] = 0``.

    ``reliable`` is the last age that still has ``MIN_AT_RISK`` rows.
    """

    at: np.ndarray
    survival: np.ndarray
    reliable: int

    def alive(self, ages: np.ndarray) -> np.ndarray:
        """Return ``P(L > age)``, shape of ``ages``."""
        return self.survival[np.searchsorted(self.at, ages, side="right") - 1]

    def residual(self, ages: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Return quantiles of ``L - a`` given ``L > a``, tokens, shape ``(ages, levels)``.

        Beyond the last reliable age the residual life grows in proportion to the age, as that of a
        power-law tail does. Where censoring hides the end of the curve, its last length is used
        for all beyond.
        """
        base = np.minimum(ages, self.reliable)
        target = self.alive(base)[:, None] * (1.0 - levels)
        # The curve falls, so search it reversed for the first length with survival <= target.
        rising = self.survival[::-1]
        index = len(rising) - np.searchsorted(rising, target * (1 + 1e-12), side="right")
        value = self.at[np.minimum(index, len(self.at) - 1)] - base[:, None]
        scale = np.maximum(ages, 1) / np.maximum(base, 1)
        return np.asarray(np.maximum(value, 1) * scale[:, None])


def kaplan_meier(length: np.ndarray, event: np.ndarray) -> Curve:
    """Return the product-limit estimate (Kaplan & Meier 1958) over whole tokens.

    Args:
        length: total lengths, or lower bounds.
        event: False for a lower bound (right-censored).
    """
    at, inverse = np.unique(length, return_inverse=True)
    ended = np.bincount(inverse, event.astype(np.float64))
    left = np.bincount(inverse).astype(np.float64)
    at_risk = left[::-1].cumsum()[::-1]
    survival = np.cumprod(1.0 - ended / at_risk)
    enough = at[at_risk >= MIN_AT_RISK]
    reliable = max(int(enough[-1]) - 1, 0) if len(enough) else 0
    if at[0] != 0:
        at, survival = np.concatenate([[0], at]), np.concatenate([[1.0], survival])
    return Curve(at, survival, reliable)


def observed(frame: pl.DataFrame) -> np.ndarray:
    """Return which rows ended by themselves (``stop``); others are lower bounds; bool."""
    return ~censored(frame)


def curve_of(frame: pl.DataFrame) -> Curve:
    """Return the Kaplan-Meier curve of the rows of a history that have generated tokens.

    Raises:
        HistoryError: there is no such row.
    """
    length = lengths(frame)
    keep = length > 0
    if not keep.any():
        raise HistoryError("a baseline needs a row with generated tokens to train on")
    return kaplan_meier(length[keep], observed(frame)[keep])
