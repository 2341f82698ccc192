"""The rivals that stand beside every predictor, fitted on the training part only."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from sagellm_lifetime.core.errors import HistoryError, MissingExtraError
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.boosted import LightGbm
from sagellm_lifetime.evaluation.rivals.constant import ConstantMedian
from sagellm_lifetime.evaluation.rivals.residual import ResidualLife

RIVALS: dict[str, Callable[[], Rival]] = {
    ConstantMedian.name: ConstantMedian,
    ResidualLife.name: ResidualLife,
    LightGbm.name: LightGbm,
}

SIMPLE = (ConstantMedian.name, ResidualLife.name)
"""Those that know the lengths of the training part and the age, and nothing of a request."""


def fit_possible(train: pl.DataFrame) -> tuple[list[Rival], dict[str, str]]:
    """Return the rivals that ``train`` is enough for, fitted, and why each other is left out."""
    rivals, left_out = [], {}
    for name in RIVALS:
        try:
            rivals += fit_rivals(train, [name])
        except (HistoryError, MissingExtraError) as error:
            left_out[name] = str(error)
    return rivals, left_out


def fit_rivals(train: pl.DataFrame, names: list[str] | None = None) -> list[Rival]:
    """Return all rivals (or the named ones), fitted.

    Raises:
        HistoryError: there are too few rows for one of them; see :func:`fit_possible`.
    """
    rivals = [RIVALS[name]() for name in (RIVALS if names is None else names)]
    for rival in rivals:
        rival.fit(train)
    return rivals
