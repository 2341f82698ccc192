"""Hidden score: the length of an answer, estimated from the served model's hidden state.

For each reading of a sequence (``features.hidden_state``) a ridge regression of the logarithm of
the length on the components of the state, and on the scores of earlier readings, gives a score. It
is learned online from sums of outer products, and solved again when they have grown by an eighth;
the ridge is chosen by the squared errors of completions before they are learned. A censored length
counts as the mean of the longer ones that its score suggests (Buckley and James 1979).

The score shifts a distribution of ``log L - score``, an actuarial estimate of earlier completions
with delayed entry (an accelerated failure time model, whose shape is learned). All scores share it,
so a hundred completions are enough. Its hazards and those of the model's table are pooled by a
weight that is chosen by the likelihood of completions before they are counted.

What is stored are sums over at least :data:`LEAST` sequences, none of a single one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from math import erfc, exp, log, pi, sqrt
from typing import TYPE_CHECKING, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array
from sagellm_lifetime.core.grid import BINS, EDGES, bin_of
from sagellm_lifetime.core.hidden_states import READ_AT
from sagellm_lifetime.features.hidden_state import COMPONENTS, STAGES, HiddenReadings
from sagellm_lifetime.models.shrinkage import Hazards

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.models.base import Feedback

LEAST: Final = 32
"""Completions from which on there is a score, and from which on anything is stored."""
_RIDGES: Final = np.array([10.0, 60.0, 400.0, 2500.0])
"""Choices of the ridge, in completions: variance 1 of a standardised component each."""
_FIRST_RIDGE: Final = 2
_SOLVED_AT: Final = 8
"""Inverse of the growth of the sums after which the regression is solved again."""
_MEMORY: Final = 1.0 - 1.0 / 10_000.0
_MOST_SOURCES: Final = 4
_QUIET: Final = 256
"""Completions without a source after which another may take its place. At once, a server with more
LoRA adapters than places would learn none of them."""
_MOST_REPLAYED: Final = 6000
_SHAPE_MEMORY: Final = 2000.0
"""Completions over which the shape is learned, at most; at first over the last half of them, since
the first scores are worse than later ones."""
_PER_OCTAVE: Final = 12
_CENTRE: Final = BINS // 2
_SMOOTH: Final = 4
"""Bins on either side over which the shape is smoothed: a third of an octave."""
_SHAPE_PRIOR: Final = 10.0
"""Sequences with which the shape is shrunk towards a log-logistic of the same spread."""
_SHARES: Final = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
"""Choices of the weight of the score's hazards beside those of the table."""
_FIRST_SHARES: Final = np.array([4.0, 3.0, 2.0, 1.0, 2.0])
"""Losses of the choices to begin with, nats."""
_SHARE_MEMORY: Final = 1.0 - 1.0 / 1000.0
_PRIOR_SD: Final = 1.1
_PRIOR_LOG: Final = log(150.0)
_LARGEST: Final = 1e12
_LARGEST_Z: Final = 8.0
_LARGEST_SCORE: Final = 16.0
_LEAST_CHANCE: Final = 1e-9
_FOLDS: Final = 5
_OCTAVE: Final = log(2.0)
_LOG_EDGES: Final = np.log(np.maximum(EDGES, 1e-3)) * (_PER_OCTAVE / _OCTAVE) + _CENTRE
"""Places of the edges of the length grid among the bins of the shape, for a score of 0."""


class HiddenScore:
    """Scores of hidden states, by source and reading.

    Example:
        >>> import numpy as np
        >>> from sagellm_lifetime.features.hidden_state import HiddenReadings, Reading
        >>> learned = HiddenScore()
        >>> rng = np.random.default_rng(0)
        >>> for x in rng.normal(size=(200, 4)).astype(np.float32):
        ...     learned.learn(HiddenReadings(1, (Reading(0, x),)), int(100 * np.exp(x[0])))
        >>> state = HiddenReadings(1, (Reading(0, np.ones(4, dtype=np.float32)),))
        >>> 5.2 < learned.score(state) < 5.8  # log(100) + 1
        True
    """

    def __init__(self) -> None:
        self._sources: OrderedDict[int, tuple[_Stage, ...]] = OrderedDict()
        self._learned = 0
        self._used: dict[int, int] = {}
        """Number of completions learned when a source was last among them."""
        self._replayed: list[tuple[HiddenReadings, int, bool]] = []
        """Replayed completions, which the regressions learn when the replay is over."""

    # -- predicting --------------------------------------------------------------------------

    def score(self, hidden: HiddenReadings | None) -> float | None:
        """Return the newest score, the logarithm of a length; ``None`` if nothing is known."""
        scored = list(self._scored(hidden))
        return scored[-1][1] if scored else None

    def applied(self, above: Hazards, hidden: HiddenReadings | None) -> Hazards:
        """Return hazards pooled with those of the newest score, as they are without one."""
        scored = list(self._scored(hidden))
        if not scored:
            return above
        stage, score = scored[-1]
        return stage.shape.pooled(above, score)

    def _scored(self, hidden: HiddenReadings | None) -> Iterator[tuple[_Stage, float]]:
        """Yield the stage and the score of each reading that has one."""
        stages = None if hidden is None else self._sources.get(hidden.source)
        if hidden is None or stages is None:
            return
        earlier: list[float] = []
        for i, reading in enumerate(hidden.readings):
            stage = stages[reading.stage]
            score = hidden.scores[i] if hidden.scores else None
            if score is None:
                score = stage.regression.predict(
                    _inputs(reading.stage, reading.components, earlier)
                )
            if score is not None:
                earlier.append(score)
                yield stage, score

    # -- learning ----------------------------------------------------------------------------

    def learn(
        self,
        hidden: HiddenReadings | None,
        length: int,
        above: Hazards | None = None,
        *,
        censored: bool = False,
        replayed: bool = False,
    ) -> None:
        """Learn from one completion.

        Args:
            hidden: its readings.
            length: generated tokens; a lower bound if censored.
            above: hazards of the table for it, before it is counted there.
            censored: True if the length is only a lower bound.
            replayed: True to learn shape and weights only, as of the readings that :meth:`fit`
                returns.
        """
        if hidden is None or length < 1:
            return
        if replayed and not hidden.scores and len(self._replayed) < _MOST_REPLAYED:
            self._replayed.append((hidden, length, censored))
        stages = self._stages(hidden, learns=not replayed)
        if stages is None:
            return
        earlier: list[float] = []
        for i, reading in enumerate(hidden.readings):
            entry = READ_AT[reading.stage]
            if length <= entry:
                break
            stage = stages[reading.stage]
            x = _inputs(reading.stage, reading.components, earlier)
            score = hidden.scores[i] if hidden.scores else stage.regression.predict(x)
            if score is not None:
                stage.shape.learn(score, length, entry, above, censored=censored)
                earlier.append(score)
            if not replayed:
                stage.regression.learn(x, log(length), censored=censored)
                stage.shape.log_sd = stage.regression.log_sd

    def finish(self) -> None:
        """Let the regressions learn the replayed completions, too, and solve them."""
        replayed, self._replayed = self._replayed, []
        for hidden, length, censored in replayed:
            stages = self._stages(hidden, learns=True)
            earlier: list[float] = []
            for reading in hidden.readings:
                if stages is None or length <= READ_AT[reading.stage]:
                    break
                regression = stages[reading.stage].regression
                x = _inputs(reading.stage, reading.components, earlier)
                score = regression.predict(x)
                if score is not None:
                    earlier.append(score)
                regression.learn(x, log(length), censored=censored)

    def merge(self, others: Sequence[HiddenScore]) -> None:
        """Add what others have learned; sources are the same where their keys are."""
        for other in others:
            for key, theirs in other._sources.items():
                ours = self._sources.get(key)
                if ours is None:
                    if len(self._sources) < _MOST_SOURCES:
                        self._sources[key] = deepcopy(theirs)
                    continue
                for one, two in zip(ours, theirs, strict=True):
                    if one.regression.width == two.regression.width:
                        one.merge(two)

    def learn_served(self, feedback: Feedback, above: Hazards | None = None) -> None:
        """Learn from a completion of a model; of a replayed one only shape and weights.

        Args:
            feedback: the completion; its evidence has the readings.
            above: hazards of the table for it, before it is counted there.
        """
        self.learn(
            feedback.evidence.hidden,
            feedback.length,
            above,
            censored=feedback.censored,
            replayed=feedback.replayed,
        )

    def fit_history(
        self,
        frame: pl.DataFrame,
        lengths: np.ndarray,
        censored: np.ndarray,
        *,
        learns_shape: bool = False,
    ) -> list[HiddenReadings | None]:
        """Call :meth:`fit` with the readings of ``N`` rows of a history; return what it returns.

        Args:
            frame: checked rows, in time order.
            lengths: generated tokens, shape ``(N,)``.
            censored: True where the length is only a lower bound, shape ``(N,)``.
            learns_shape: True to learn the shapes, too.
        """
        from sagellm_lifetime.models.history_rows import history_readings

        scored = self.fit(history_readings(frame), lengths, censored)
        if learns_shape:
            for one, length, cut in zip(scored, lengths.tolist(), censored.tolist(), strict=True):
                self.learn(one, length, censored=cut, replayed=True)
        return scored

    def _stages(self, hidden: HiddenReadings, *, learns: bool) -> tuple[_Stage, ...] | None:
        """Return the stages of a source, new ones in place of one that is no longer used."""
        sources, source = self._sources, hidden.source
        if learns:
            self._learned += 1
        if source in sources:
            stages = sources[source]
        elif not learns:
            return None
        else:
            if len(sources) >= _MOST_SOURCES:
                oldest = next(iter(sources))
                if self._learned - self._used.get(oldest, 0) <= _QUIET:
                    return None
                del sources[oldest]
                self._used.pop(oldest, None)
            width = len(hidden.readings[0].components)
            stages = sources[source] = tuple(_Stage(width + i) for i in range(STAGES))
        if learns:
            sources.move_to_end(source)
            self._used[source] = self._learned
        fits = all(
            len(one.components) + one.stage == stages[one.stage].regression.width
            for one in hidden.readings
        )
        return stages if fits else None

    def fit(
        self,
        hidden: Sequence[HiddenReadings | None],
        lengths: np.ndarray,
        censored: np.ndarray,
    ) -> list[HiddenReadings | None]:
        """Fit the regressions; return the readings of ``N`` completions with scores out of fold.

        Equal states (samples of one prompt) are in one fold. The shapes are learned from what is
        returned, by :meth:`learn` with ``replayed``.

        Args:
            hidden: readings, length ``N``.
            lengths: generated tokens, shape ``(N,)``.
            censored: True where the length is only a lower bound, shape ``(N,)``.
        """
        scored = list(hidden)
        by_source: dict[int, list[int]] = {}
        for i, one in enumerate(hidden):
            if one is not None and lengths[i] > 0:
                by_source.setdefault(one.source, []).append(i)
        for rows in list(by_source.values())[-_MOST_SOURCES:]:
            first = hidden[rows[0]]
            stages = None if first is None else self._stages(first, learns=True)
            if stages is not None:
                self._fit_source(stages, scored, np.array(rows), lengths, censored)
        return scored

    def _fit_source(
        self,
        stages: tuple[_Stage, ...],
        scored: list[HiddenReadings | None],
        rows: np.ndarray,
        lengths: np.ndarray,
        censored: np.ndarray,
    ) -> None:
        """Fit the stages of one source; put the scores out of fold into ``scored``."""
        scores: dict[int, list[float]] = {int(row): [] for row in rows}
        folds = _folds([scored[row] for row in rows])
        for stage_number, stage in enumerate(stages):
            xs, places = [], []
            for place, row in enumerate(rows):
                one = scored[row]
                assert one is not None
                for reading in one.readings:
                    fits = len(reading.components) + stage_number == stage.regression.width
                    if (
                        reading.stage == stage_number
                        and fits
                        and lengths[row] > READ_AT[stage_number]
                    ):
                        xs.append(_inputs(stage_number, reading.components, scores[int(row)]))
                        places.append(place)
            if len(places) < LEAST:
                continue
            of_rows = rows[places]
            ys, cut = np.log(lengths[of_rows].astype(np.float64)), censored[of_rows]
            found = stage.regression.fit(np.stack(xs), ys, cut, folds[places])
            stage.shape.log_sd = stage.regression.log_sd
            for row, score in zip(of_rows.tolist(), found.tolist(), strict=True):
                scores[row].append(score)
        for row, row_scores in scores.items():
            one = scored[row]
            if one is not None and len(row_scores) == len(one.readings):
                scored[row] = one._replace(scores=tuple(row_scores))

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return what was learned from sources with enough completions, as arrays."""
        kept = {key: stages for key, stages in self._sources.items() if stages[0].count >= LEAST}
        arrays: Arrays = {"sources": np.array(list(kept), dtype=np.int64)}
        for i, stages in enumerate(kept.values()):
            for j, stage in enumerate(stages):
                if stage.count >= LEAST:
                    arrays |= {f"{i}.{j}.{key}": value for key, value in stage.state().items()}
        return arrays

    def restore(self, state: Arrays) -> None:
        """Replace what was learned with a :meth:`state`.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        keys = checked(state, "sources", np.int64, (None,), 1).tolist()
        if len(set(keys)) < len(keys) or len(keys) > _MOST_SOURCES:
            raise ValueError("'sources' names a source twice, or too many")
        sources = OrderedDict()
        for i, key in enumerate(keys):
            first = part(state, f"{i}.0.")
            width = len(checked(first, "sums", np.float64, (None,), -_LARGEST, _LARGEST)) - 1
            if not 1 <= width <= COMPONENTS:
                raise ValueError(f"'{i}.0.sums' has an impossible number of components")
            stages = tuple(_Stage(width + j) for j in range(STAGES))
            for j, stage in enumerate(stages):
                own = part(state, f"{i}.{j}.")
                if own:
                    stage.restore(own)
            sources[key] = stages
        self._sources, self._used, self._learned = sources, {}, 0


class _Stage:
    """Regression and shape learned for one reading of a source."""

    def __init__(self, width: int) -> None:
        self.regression = _Regression(width)
        self.shape = _Shape()

    @property
    def count(self) -> int:
        """Return the completions learned."""
        return self.regression.learned

    def merge(self, other: _Stage) -> None:
        """Add what another stage has learned."""
        self.regression.merge(other.regression)
        self.shape.merge(other.shape)
        self.shape.log_sd = self.regression.log_sd

    def state(self) -> Arrays:
        """Return sums, weights and shape as arrays."""
        return self.regression.state() | self.shape.state()

    def restore(self, state: Arrays) -> None:
        """Replace all of it. Raises :class:`ValueError` for arrays that do not fit."""
        self.regression.restore(state)
        self.shape.restore(state)
        self.shape.log_sd = self.regression.log_sd


def _inputs(stage: int, components: np.ndarray, earlier: Sequence[float]) -> np.ndarray:
    """Return the inputs of a regression: components, and ``stage`` earlier scores or NaN."""
    x = np.full(len(components) + stage, np.nan)
    x[: len(components)] = components
    x[len(components) : len(components) + len(earlier)] = earlier[-stage:] if stage else ()
    return x


def _folds(rows: Sequence[HiddenReadings | None]) -> np.ndarray:
    """Return the fold of each row, the same for rows whose first readings are equal."""
    places: dict[bytes, int] = {}
    of_rows = [
        places.setdefault(one.readings[0].components.tobytes(), len(places))
        for one in rows
        if one is not None
    ]
    return np.array(of_rows) % _FOLDS


@lru_cache(maxsize=8)
def _triangle(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the upper triangle of a matrix."""
    rows, columns = np.triu_indices(width)
    return rows, columns


@dataclass(slots=True)
class _Solution:
    """Weights of a regression.

    Attributes:
        mean: of the inputs, shape ``(width,)``.
        scale: inverse standard deviation of the inputs, shape ``(width,)``.
        weights: one row for each of ``_RIDGES``, shape ``(4, width)``.
        bias: mean of the logarithms of the lengths.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float

    def standardised(self, x: np.ndarray) -> np.ndarray:
        """Return inputs with mean 0 and variance 1, those that are missing as 0."""
        z = np.nan_to_num((x - self.mean) * self.scale, nan=0.0)
        return np.clip(z, -_LARGEST_Z, _LARGEST_Z, out=z)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the scores under each ridge, shape ``(..., 4)``."""
        found: np.ndarray = self.standardised(x) @ self.weights.T + self.bias
        return np.clip(found, 0.0, _LARGEST_SCORE)


class _Regression:
    """Ridge regression from sums of products.

    Args:
        width: number of inputs.

    Attributes:
        learned: completions learned.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.learned = 0
        self._weight = 0.0
        """Completions in the sums, older ones by less."""
        self._sums = np.zeros(width + 1)
        """Sums of the inputs, and of the logarithms of the lengths."""
        self._products = np.zeros((width + 1) * (width + 2) // 2)
        """Sums of the products of all pairs of these, upper triangle."""
        self._solution: _Solution | None = None
        self._solved = 0
        self._errors = np.zeros(len(_RIDGES) + 1)
        """Sums of squared errors under each ridge, and their weight."""

    @property
    def log_sd(self) -> float:
        """Return the standard deviation of ``log L - score``, shrunk to that of public traces."""
        squares = float(self._errors[self._choice]) + 10.0 * _PRIOR_SD**2
        return sqrt(squares / (float(self._errors[-1]) + 10.0))

    @property
    def _choice(self) -> int:
        return int(np.argmin(self._errors[:-1])) if self._errors[-1] else _FIRST_RIDGE

    def predict(self, x: np.ndarray) -> float | None:
        """Return the score of inputs, shape ``(width,)``; ``None`` if there is none yet."""
        if self._solution is None or len(x) != self.width:
            return None
        return float(self._solution.scores(x)[self._choice])

    def learn(self, x: np.ndarray, y: float, *, censored: bool) -> None:
        """Learn one completion: ``x`` of shape ``(width,)``, ``y`` the logarithm of its length."""
        if self._solution is not None:
            scores = self._solution.scores(x)
            if censored:
                y = _expected_above(float(scores[self._choice]), self.log_sd, y)
            else:
                self._errors *= _SHARE_MEMORY
                self._errors[:-1] += np.square(y - scores)
                self._errors[-1] += 1.0
        elif censored:
            y += _PRIOR_SD / 2.0
        self._add(np.where(np.isnan(x), self._mean(), x), y)
        if self.learned >= LEAST and self.learned >= self._solved + self._solved // _SOLVED_AT:
            self.solve()

    def _mean(self) -> np.ndarray:
        """Return the means of the inputs; only earlier scores can be missing, so the prior's."""
        if not self._weight:
            return np.full(self.width, _PRIOR_LOG)
        mean: np.ndarray = self._sums[:-1] / self._weight
        return mean

    def _add(self, x: np.ndarray, y: float) -> None:
        self._add_many(x[None, :], np.array([y]))

    def _add_many(self, x: np.ndarray, y: np.ndarray) -> None:
        both = np.column_stack([x, y])
        memory = _MEMORY ** len(both)
        self._weight = self._weight * memory + len(both)
        self._sums *= memory
        self._sums += both.sum(axis=0)
        self._products *= memory
        self._products += (both.T @ both)[_triangle(self.width + 1)]
        self.learned += len(both)

    def merge(self, other: _Regression) -> None:
        """Add the sums and the errors of another regression, and solve both as one."""
        self.learned += other.learned
        self._weight += other._weight
        self._sums = self._sums + other._sums
        self._products = self._products + other._products
        self._errors = self._errors + other._errors
        if self.learned >= LEAST:
            self.solve()

    def solve(self) -> None:
        """Solve the regression under each ridge from the sums."""
        self._solved = self.learned
        self._solution = _solved(self._weight, self._sums, self._products)

    def fit(self, x: np.ndarray, y: np.ndarray, cut: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Learn from ``N`` completions at once; return scores out of fold, shape ``(N,)``.

        Args:
            x: inputs, shape ``(N, width)``.
            y: logarithms of the lengths, shape ``(N,)``.
            cut: True where the length is only a lower bound, shape ``(N,)``.
            fold: fold of each row, shape ``(N,)``.
        """
        is_missing = np.isnan(x)
        counts = np.maximum((~is_missing).sum(axis=0), 1)
        x = np.where(is_missing, np.where(is_missing, 0.0, x).sum(axis=0) / counts, x)
        target = y + np.where(cut, _PRIOR_SD / 2.0, 0.0)
        scores = np.zeros((len(y), len(_RIDGES)))
        for _ in range(2):  # the second with what the first suggests for censored lengths
            for k in range(_FOLDS):
                one = _Regression(self.width)
                one._add_many(x[fold != k], target[fold != k])
                scores[fold == k] = _solved(one._weight, one._sums, one._products).scores(
                    x[fold == k]
                )
            squares = np.square(y[:, None] - scores)[~cut].sum(axis=0)
            self._errors = np.append(squares, float((~cut).sum()))
            for i in np.flatnonzero(cut):
                target[i] = _expected_above(scores[i, self._choice], self.log_sd, y[i])
        self._errors *= min(1.0, 1.0 / (1.0 - _SHARE_MEMORY) / max(self._errors[-1], 1.0))
        self._add_many(x, target)
        self.solve()
        chosen: np.ndarray = scores[:, self._choice]
        return chosen

    def state(self) -> Arrays:
        """Return sums, weights and errors as arrays."""
        solution = self._solution
        if solution is None:
            self.solve()
            solution = self._solution
        assert solution is not None
        return {
            "sums": self._sums,
            "products": self._products,
            "mean": solution.mean,
            "scale": solution.scale,
            "weights": solution.weights,
            "bias": np.array([solution.bias, self._weight]),
            "errors": self._errors,
            "learned": count_array(self.learned),
            "solved": count_array(self._solved),
        }

    def restore(self, state: Arrays) -> None:
        """Replace all of it. Raises :class:`ValueError` for arrays that do not fit."""
        width, limits = self.width, (-_LARGEST, _LARGEST)
        self._sums = checked(state, "sums", np.float64, (width + 1,), *limits).copy()
        size = (width + 1) * (width + 2) // 2
        self._products = checked(state, "products", np.float64, (size,), -1e18, 1e18).copy()
        bias, weight = checked(state, "bias", np.float64, (2,), 0.0, MOST).tolist()
        self._weight = weight
        self._solution = _Solution(
            checked(state, "mean", np.float64, (width,), *limits),
            checked(state, "scale", np.float64, (width,), 0.0, _LARGEST),
            checked(state, "weights", np.float64, (len(_RIDGES), width), *limits),
            bias,
        )
        errors = checked(state, "errors", np.float64, (len(_RIDGES) + 1,), 0.0, _LARGEST)
        self._errors = errors.copy()
        self.learned, self._solved = checked_count(state, "learned"), checked_count(state, "solved")
        if self.learned < LEAST or not 0.0 < weight <= self.learned + 0.5:
            raise ValueError("'learned' and 'bias' count completions that cannot be")


def _solved(weight: float, sums: np.ndarray, products: np.ndarray) -> _Solution:
    """Return the ridge regressions of the last variable on the others, from their sums."""
    width = len(sums) - 1
    mean = sums / weight
    full = np.zeros((width + 1, width + 1))
    full[_triangle(width + 1)] = products / weight
    full = np.triu(full) + np.triu(full, 1).T - np.outer(mean, mean)
    variance = np.maximum(np.diag(full)[:-1], 0.0)
    # A component that hardly varies beside the others is noise of rounding.
    floor = 1e-6 * float(variance.max(initial=0.0)) + 1e-12
    scale = np.where(variance > floor, 1.0 / np.sqrt(np.maximum(variance, floor)), 0.0)
    correlation = full[:-1, :-1] * np.outer(scale, scale)
    values, vectors = np.linalg.eigh(correlation)
    values = np.maximum(values, 0.0)
    along = vectors.T @ (full[:-1, -1] * scale)
    shrunk = along / (values + _RIDGES[:, None] / weight)
    return _Solution(mean[:-1], scale, shrunk @ vectors.T, float(np.clip(mean[-1], 0.0, 16.0)))


def _expected_above(mean: float, sd: float, least: float) -> float:
    """Return the mean of a normal variable, given that it is above ``least``."""
    z = (least - mean) / sd
    above = 0.5 * erfc(z / sqrt(2.0))
    if above < 1e-6:
        return least + sd / max(z, 1.0)
    return mean + sd * exp(-0.5 * z * z) / sqrt(2.0 * pi) / above


class _Shape:
    """Distribution of ``log L - score``, and its weight.

    Attributes:
        log_sd: spread of the log-logistic that it is shrunk to.
    """

    def __init__(self) -> None:
        self.log_sd = _PRIOR_SD
        self._counts = np.zeros((3, BINS))
        """Completions that ended in each bin, that were last seen alive, and that entered."""
        self._seen = 0
        self._losses = _FIRST_SHARES.copy()
        self._cumulative: np.ndarray | None = None
        self._fresh_until = 0

    def merge(self, other: _Shape) -> None:
        """Add the counts and losses of another shape."""
        self._counts = self._counts + other._counts
        self._seen += other._seen
        self._losses = self._losses + other._losses - _FIRST_SHARES
        self._losses -= min(float(self._losses.min()), 0.0)
        self._cumulative = None

    def pooled(self, above: Hazards, score: float) -> Hazards:
        """Return the hazards of a score pooled with those of the table."""
        share = float(_SHARES[np.argmin(self._losses)])
        if share == 0.0:
            return above
        steps = self._steps(score) * share
        if share < 1.0:
            steps += above.steps * (1.0 - share)
        return Hazards.of_steps(steps, above.atoms)

    def _steps(self, score: float) -> np.ndarray:
        """Return the logarithm of the survival of each bin of lengths, shape ``(BINS,)``."""
        places = _LOG_EDGES - score * (_PER_OCTAVE / _OCTAVE)
        cumulative = np.interp(places, np.arange(BINS + 1), self._hazards())
        cumulative[0] = 0.0
        return -np.diff(cumulative)

    def _hazards(self) -> np.ndarray:
        """Return the cumulative hazards of the shape at its edges, shape ``(BINS + 1,)``."""
        if self._cumulative is None or self._seen > self._fresh_until:
            self._cumulative = _shape(self._counts, self.log_sd)
            self._fresh_until = self._seen + self._seen // 16
        return self._cumulative

    def learn(
        self, score: float, length: int, entry: int, above: Hazards | None, *, censored: bool
    ) -> None:
        """Count one completion, and score the weights with it before.

        Args:
            score: its score.
            length: generated tokens; a lower bound if censored.
            entry: age at which its state was read, tokens.
            above: hazards of the table; ``None`` to score nothing.
            censored: True if the length is only a lower bound.
        """
        if above is not None:
            self._choose(score, length, entry, above, censored=censored)
        memory = min(_SHAPE_MEMORY, 32.0 + self._seen / 2.0)
        self._counts *= 1.0 - 1.0 / memory
        self._seen += 1
        place = _place(log(length) - score)
        self._counts[1 if censored else 0, place] += 1.0
        if entry:
            self._counts[2, max(min(_place(log(entry) - score), place - 1), 0)] += 1.0

    def _choose(
        self, score: float, length: int, entry: int, above: Hazards, *, censored: bool
    ) -> None:
        shares = _SHARES[:, None]
        k, first = bin_of(length), bin_of(entry) if entry else 0
        steps = self._steps(score)[: k + 1] * shares + above.steps[: k + 1] * (1.0 - shares)
        nats: np.ndarray = -steps[:, first:k].sum(axis=1)
        if not censored:
            nats -= np.log(np.maximum(-np.expm1(steps[:, k]), _LEAST_CHANCE))
        self._losses *= _SHARE_MEMORY
        self._losses += nats - nats.min()

    def state(self) -> Arrays:
        """Return counts and losses as arrays."""
        return {
            "shape": self._counts,
            "cumulative": self._hazards(),
            "losses": self._losses,
            "seen": count_array(self._seen),
            "fresh": count_array(self._fresh_until),
        }

    def restore(self, state: Arrays) -> None:
        """Replace all of it. Raises :class:`ValueError` for arrays that do not fit."""
        self._counts = checked(state, "shape", np.float64, (3, BINS), 0.0, MOST).copy()
        cumulative = checked(state, "cumulative", np.float64, (BINS + 1,), 0.0, _LARGEST)
        if cumulative[0] != 0.0 or (np.diff(cumulative) < 0.0).any():
            raise ValueError("'cumulative' decreases, or does not begin at 0")
        self._cumulative = cumulative.copy()
        self._losses = checked(state, "losses", np.float64, (len(_SHARES),), 0.0, MOST).copy()
        self._seen = checked_count(state, "seen")
        self._fresh_until = checked_count(state, "fresh")


def _place(residual: float) -> int:
    """Return the bin of ``log L - score``."""
    return min(max(int(_PER_OCTAVE * residual / _OCTAVE + _CENTRE), 0), BINS - 1)


def _shape(counts: np.ndarray, log_sd: float) -> np.ndarray:
    """Return cumulative hazards of the residuals at the edges of their bins.

    The ratio of ended to expected, smoothed and shrunk to 1, corrects a log-logistic.

    Args:
        counts: ended, last seen alive, entered, shape ``(3, BINS)``.
        log_sd: spread of the log-logistic.
    """
    ended, left, entered = counts
    later = [np.cumsum(one[::-1])[::-1] for one in (ended, left, entered)]
    alive = np.maximum(later[0] + np.append(later[1][1:], 0.0) - later[2], ended)
    edges = (np.arange(BINS + 1) - _CENTRE) * (_OCTAVE / _PER_OCTAVE)
    s = max(log_sd, 0.05) * sqrt(3.0) / pi
    prior = np.diff(np.logaddexp(0.0, edges / s))
    window = np.ones(2 * _SMOOTH + 1)
    expected = np.convolve(alive * prior, window, "same")
    found = np.convolve(ended, window, "same")
    ratio = (found + _SHAPE_PRIOR * 0.5) / (expected + _SHAPE_PRIOR * 0.5)
    return np.append(0.0, np.cumsum(prior * ratio))
