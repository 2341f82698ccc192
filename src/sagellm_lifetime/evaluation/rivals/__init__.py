"""The rivals that stand beside every predictor, fitted on the training part only."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.boosted import LightGbm
from sagellm_lifetime.evaluation.rivals.constant import ConstantMedian
from sagellm_lifetime.evaluation.rivals.residual import ResidualLife

RIVALS: dict[str, Callable[[], Rival]] = {
    ConstantMedian.name: ConstantMedian,
    ResidualLife.name: ResidualLife,
    LightGbm.name: LightGbm,
}


def fit_rivals(train: pl.DataFrame, names: list[str] | None = None) -> list[Rival]:
    """All rivals (or the named ones), fitted."""
    rivals = [RIVALS[name]() for name in (RIVALS if names is None else names)]
    for rival in rivals:
        rival.fit(train)
    return rivals
