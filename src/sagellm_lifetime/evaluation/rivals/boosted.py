"""LightGBM quantile regression on the columns of the history: the strong rival."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from sagellm_lifetime.evaluation.forecast import LEVELS, Forecast, from_quantiles
from sagellm_lifetime.evaluation.points import Points, lengths
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.columns import Columns
from sagellm_lifetime.evaluation.rivals.kaplan_meier import Curve, curve_of, observed

if TYPE_CHECKING:
    from lightgbm import Booster

QUANTILES: Final = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
TREES: Final = 200
_AGES_PER_ROW: Final = 6
_MAX_SAMPLES: Final = 100_000
_PARAMETERS: Final = {
    "objective": "quantile",
    "learning_rate": 0.04,
    "num_leaves": 15,
    "feature_fraction": 0.9,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "cat_smooth": 20.0,
    "num_threads": 1,  # more threads spin against each other on a shared machine
    "deterministic": True,
    "seed": 0,
    "verbose": -1,
}


class LightGbm(Rival):
    """One booster of 200 trees per quantile of ``log(remaining / residual-life median)``.

    The target starts from the residual-life table, so the trees need not learn what age alone
    says. Training ages are 0 and six drawn log-uniformly up to the longest length, kept where the
    row is still alive: independent of the row's own length. Rows without a seen end are left out
    (LightGBM has no censored quantile loss). Quantiles between the seven are interpolated on the
    normal scale.
    """

    name = "lightgbm"

    def fit(self, train: pl.DataFrame) -> None:
        self._curve = curve_of(train)
        ended = train.filter(pl.Series(observed(train) & (lengths(train) > 0)))
        self._columns = Columns()
        self._columns.fit(ended)
        row, age = _training_ages(lengths(ended))
        features = np.column_stack([self._columns.matrix(ended)[row], self._age(age)])
        target = np.log(lengths(ended)[row] - age) - self._offset(age)
        self._boosters = [self._train(features, target, level) for level in QUANTILES]

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        table = self._columns.matrix(frame)[points.row]
        features = np.column_stack([table, self._age(points.age)])
        found = np.column_stack(
            [np.asarray(booster.predict(features, num_threads=1)) for booster in self._boosters]
        )
        found = np.sort(found, axis=1) + self._offset(points.age)[:, None]
        return from_quantiles(np.exp(_interpolate(found)), points.age, points.cap)

    def _train(self, features: np.ndarray, target: np.ndarray, level: float) -> Booster:
        import lightgbm

        data = lightgbm.Dataset(
            features,
            target,
            categorical_feature=self._columns.categorical,
            params={"verbose": -1},
            free_raw_data=False,
        )
        leaf = int(np.clip(len(target) // 200, 10, 200))
        parameters = _PARAMETERS | {"alpha": level, "min_data_in_leaf": leaf}
        return lightgbm.train(parameters, data, num_boost_round=TREES)

    def _age(self, age: np.ndarray) -> np.ndarray:
        return np.log1p(age).astype(np.float32)

    def _offset(self, age: np.ndarray) -> np.ndarray:
        return np.log(_median(self._curve, age))


def _median(curve: Curve, age: np.ndarray) -> np.ndarray:
    ages, inverse = np.unique(age, return_inverse=True)
    return curve.residual(ages, np.array([0.5]))[inverse, 0]


def _training_ages(length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and ages of the training samples: age 0, and drawn ages below the length."""
    rng = np.random.default_rng(0)
    top = np.log1p(float(length.max(initial=1)))
    drawn = np.expm1(rng.random((len(length), _AGES_PER_ROW)) * top).astype(np.int64)
    drawn = np.column_stack([np.zeros(len(length), dtype=np.int64), drawn])
    row, which = np.nonzero(drawn < length[:, None])
    if len(row) > _MAX_SAMPLES:
        keep = np.sort(rng.choice(len(row), _MAX_SAMPLES, replace=False))
        row, which = row[keep], which[keep]
    return row, drawn[row, which]


def _interpolate(found: np.ndarray) -> np.ndarray:
    """From :data:`QUANTILES` to :data:`LEVELS`, linear in the normal score, tails continued."""
    score = NormalDist().inv_cdf
    have = np.array([score(q) for q in QUANTILES])
    want = np.array([score(q) for q in LEVELS])
    k = np.clip(np.searchsorted(have, want) - 1, 0, len(have) - 2)
    part = (want - have[k]) / (have[k + 1] - have[k])
    return np.asarray(found[:, k] + (found[:, k + 1] - found[:, k]) * part)
