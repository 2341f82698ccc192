"""LightGBM quantile regression on the columns of the history: the strong rival."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.extras import require
from sagellm_lifetime.evaluation.metrics import mae
from sagellm_lifetime.evaluation.point_forecasts import LEVELS, Forecast, from_quantiles
from sagellm_lifetime.evaluation.points import Points, draw_points, lengths
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.rivals.columns import Columns
from sagellm_lifetime.evaluation.rivals.kaplan_meier import Curve, curve_of, observed
from sagellm_lifetime.evaluation.rivals.targets import TARGETS, Target

if TYPE_CHECKING:
    from lightgbm import Booster

QUANTILES: Final = (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
TREES: Final = 200
_MIN_ROWS: Final = 20
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
    "num_threads": 1,  # more threads slow each other down on a shared machine
    "deterministic": True,
    "seed": 0,
    "verbose": -1,
}


class LightGbm(Rival):
    """LightGBM boosters of 200 trees, one per quantile of the log length, on columns and age.

    The target is the one of three (:mod:`.targets`) whose median has the least step-weighted error
    on the last fifth of the training part. Training ages, kept where the row is still alive, are
    independent of its own length: 0, three log-uniform up to the longest length, three from the
    steps of the whole history. Rows without a seen end are left out (LightGBM has no censored
    quantile loss). Quantiles between the seven are interpolated on the normal scale.
    """

    name = "lightgbm"

    def fit(self, train: pl.DataFrame) -> None:
        """Train one booster per quantile. Raise :class:`HistoryError` for fewer than 20 rows."""
        ended = train.filter(pl.Series(observed(train) & (lengths(train) > 0)))
        if len(ended) < _MIN_ROWS:
            raise HistoryError(
                f"the lightgbm rival needs {_MIN_ROWS} finished sequences to train on, "
                f"got {len(ended)}"
            )
        require("lightgbm", "the baseline lightgbm", "report")
        self._columns = Columns()
        self._columns.fit(ended)
        self._target = self._choose(ended, curve_of(train))
        self._boosters = [self._train(ended, self._target, level) for level in QUANTILES]

    def forecast(self, frame: pl.DataFrame, points: Points) -> Forecast:
        """Return the forecast at every point."""
        features = self._features(frame, points.row, points.age)
        values = np.column_stack([_predict(booster, features) for booster in self._boosters])
        levels = _interpolate(np.sort(values, axis=1))
        return from_quantiles(self._target.remaining(levels, points.age), points.age, points.cap)

    def _choose(self, ended: pl.DataFrame, curve: Curve) -> Target:
        first = round(len(ended) * 0.8)
        held_out = ended[first:]
        points = draw_points(held_out)
        at = points.groups()["steps"]
        age, remaining = points.age[at], points.remaining[at]
        features = self._features(held_out, points.row[at], age)
        best, least = TARGETS[0](curve), np.inf
        for make in TARGETS:
            target = make(curve)
            median = _predict(self._train(ended[:first], target, 0.5), features)
            point = target.remaining(median[:, None], age)[:, 0]
            error = mae(point, remaining, points.weight[at])
            if error < least:
                best, least = target, error
        return best

    def _train(self, ended: pl.DataFrame, target: Target, level: float) -> Booster:
        import lightgbm

        length = lengths(ended)
        row, age = _training_ages(length)
        data = lightgbm.Dataset(
            self._features(ended, row, age),
            target.of(length[row] - age, age),
            categorical_feature=self._columns.categorical,
            params={"verbose": -1},
        )
        leaf = int(np.clip(len(row) // 200, 10, 200))
        parameters = _PARAMETERS | {"alpha": level, "min_data_in_leaf": leaf}
        return lightgbm.train(parameters, data, num_boost_round=TREES)

    def _features(self, frame: pl.DataFrame, row: np.ndarray, age: np.ndarray) -> np.ndarray:
        table = self._columns.matrix(frame)[row]
        return np.column_stack([table, np.log1p(age).astype(np.float32)])


def _predict(booster: Booster, features: np.ndarray) -> np.ndarray:
    return np.asarray(booster.predict(features, num_threads=1))


def _training_ages(length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and ages of the training samples: age 0, and drawn ages below the length."""
    rng = np.random.default_rng(0)
    shape = (len(length), _AGES_PER_ROW // 2)
    top = np.log1p(float(length.max(initial=1)))
    spread = np.expm1(rng.random(shape) * top).astype(np.int64)
    others = rng.choice(length, shape, p=length / length.sum())
    steps = (rng.random(shape) * others).astype(np.int64)
    drawn = np.column_stack([np.zeros(len(length), dtype=np.int64), spread, steps])
    row, which = np.nonzero(drawn < length[:, None])
    if len(row) > _MAX_SAMPLES:
        keep = np.sort(rng.choice(len(row), _MAX_SAMPLES, replace=False))
        row, which = row[keep], which[keep]
    return row, drawn[row, which]


def _interpolate(values: np.ndarray) -> np.ndarray:
    """Return values at :data:`LEVELS` from those at :data:`QUANTILES`, shape ``(N, 21)``.

    Linear in the normal score; the tails continue the outermost segments.
    """
    score = NormalDist().inv_cdf
    have = np.array([score(q) for q in QUANTILES])
    want = np.array([score(q) for q in LEVELS])
    k = np.clip(np.searchsorted(have, want) - 1, 0, len(have) - 2)
    part = (want - have[k]) / (have[k + 1] - have[k])
    return np.asarray(values[:, k] + (values[:, k + 1] - values[:, k]) * part)
