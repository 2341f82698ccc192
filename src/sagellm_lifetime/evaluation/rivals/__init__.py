"""The baselines that every predictor is compared with, fitted on the training part only."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, MissingExtraError
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.boosted import LightGbm
from sagellm_lifetime.evaluation.rivals.simple import ConstantMedian, ResidualLife

RIVALS: dict[str, Callable[[], Rival]] = {
    ConstantMedian.name: ConstantMedian,
    ResidualLife.name: ResidualLife,
    LightGbm.name: LightGbm,
}

SIMPLE = (ConstantMedian.name, ResidualLife.name)
"""Rivals that use lengths and ages only, and nothing of a request."""


def fit_possible(train: pl.DataFrame) -> tuple[list[Rival], dict[str, str]]:
    """Return the fitted rivals, and by name why each other one could not be fitted."""
    rivals, left_out = [], {}
    for name in RIVALS:
        try:
            rivals += fit_rivals(train, [name])
        except (HistoryError, MissingExtraError) as error:
            left_out[name] = str(error)
    return rivals, left_out


def fit_rivals(train: pl.DataFrame, names: list[str] | None = None) -> list[Rival]:
    """Return all rivals (or those in ``names``), fitted on ``train``.

    Raises:
        HistoryError: there are too few rows for one of them; see :func:`fit_possible`.
    """
    rivals = [RIVALS[name]() for name in (RIVALS if names is None else names)]
    for rival in rivals:
        rival.fit(train)
    return rivals
