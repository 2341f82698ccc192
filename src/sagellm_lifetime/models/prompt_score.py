"""Prompt score: one number of a prompt that orders requests by the length of their answers.

A ridge regression of a power of the length on the terms of the prompt
(``features.prompt_terms``), weighted by their inverse document frequency and scaled to length 1. In
:meth:`PromptScore.fit` it is solved by conjugate gradients, and the rows of the history get the
scores of regressions that have not seen their prompts (out of fold), so that the tables and
networks above learn how good a score of an unseen prompt is. After that, and without a fit, each
completion is learned by one step of recursive least squares with a diagonal matrix.

The lengths are taken relative to the mean of their client (or model), so that the score
distinguishes prompts and not clients, which the models above estimate better.

Weights are sums over hashed terms of all prompts, so no prompt can be read from them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from math import log, log1p, sqrt
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked
from sagellm_lifetime.features.name_keys import LARGEST_KEY
from sagellm_lifetime.features.prompt_terms import (
    TERM_BITS,
    PromptTerms,
    TermKind,
    prompt_key,
    prompt_terms,
)
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.base import Feedback, Progress
from sagellm_lifetime.models.context import Context, ObservedRequest

if TYPE_CHECKING:
    import polars as pl

_BUCKETS: Final = 1 << TERM_BITS
RIDGE: Final = 2.0
_FOLDS: Final = 5
_STEPS: Final = 30
"""Maximum number of steps of the conjugate gradients; errors are below 0.1 % by then."""
_TOLERANCE: Final = 1e-6
_LEAST: Final = 100
"""Least number of completions with terms for which a regression is fitted, or a score returned."""
_POWER: Final = 0.25
"""Power of the length that is regressed. With 0, the logarithm, the error of the best use of the
score was 1.5 % larger on a part of vicuna7b_alpaca's training rows, and 0.5 % on ShareGPT's; with
0.5 it was 0.3 % smaller, but single long answers weigh more."""
_MOST_RATIO: Final = 6.0
"""Maximum absolute logarithm of a length over its mean: a factor of 400."""
_LEAST_POWER: Final = 0.25
_MEAN_PRIOR: Final = 5.0
"""Completions of all clients that count for each client's mean."""
MOST_CLIENTS: Final = 4096
_PRIOR: Final = log1p(200.0)
LARGEST: Final = 1e6
_LARGEST_LOG: Final = 64.0
"""No length has a logarithm above this."""


def _target(log_ratio: np.ndarray) -> np.ndarray:
    """Return what is regressed of logarithms of lengths over their means (Box and Cox 1964).

    Errors are counted in tokens, so long answers weigh more than in a regression of the logarithm.
    """
    bounded = np.minimum(np.maximum(log_ratio, -_MOST_RATIO), _MOST_RATIO)
    return np.asarray((np.exp(_POWER * bounded) - 1.0) / _POWER)


def _log_ratio(target: float) -> float:
    """Return the inverse of :func:`_target`, bounded below."""
    return log(max(1.0 + _POWER * target, _LEAST_POWER)) / _POWER


class _Row(NamedTuple):
    """Row of a fit.

    Attributes:
        features: features of the request.
        terms: terms of its prompt.
        value: logarithm of the length.
        censored: True if the length is only a lower bound.
    """

    features: RequestFeatures
    terms: tuple[PromptTerms, ...]
    value: float
    censored: bool


class PromptScore:
    """Scores of prompts, by one regression per kind of terms."""

    def __init__(self) -> None:
        self._regressions: dict[TermKind, _Regression] = {}
        self._means = _Means()
        self._rows: list[_Row] = []
        """Rows of a fit, until :meth:`finish`."""
        self._kept = 0
        """Number of the last of them that were kept since the fit."""

    def score(self, terms: Sequence[PromptTerms]) -> float | None:
        """Return the score of a prompt: the logarithm of a length; ``None`` if nothing is known.

        The score is that of the first terms whose kind has been learned.
        """
        for kind, buckets in terms:
            regression = self._regressions.get(kind)
            if regression is not None and regression.learned >= _LEAST:
                return _PRIOR + _log_ratio(regression.predict(buckets))
        return None

    def scored(self, request: ObservedRequest) -> tuple[RequestFeatures, tuple[PromptTerms, ...]]:
        """Return the features of a request with the score of its prompt, and its terms.

        Raises:
            RequestError: the token ids cannot be read.
        """
        terms, features = prompt_terms(request.request), request.features
        if terms:
            score = features.prompt_score
            score = self.score(terms) if score is None else score
            features = replace(features, prompt_score=score, prompt_key=prompt_key(terms))
        return features, terms

    def learn(
        self,
        features: RequestFeatures,
        terms: tuple[PromptTerms, ...],
        length: int,
        *,
        censored: bool,
    ) -> None:
        """Learn from one completion; a censored one counts only if it is longer than predicted."""
        if not terms:
            return
        value = log1p(length)
        mean = self._means.mean(features)
        if not censored:
            self._means.learn(features, value)
        for kind, buckets in terms:
            regression = self._regressions.get(kind)
            if regression is None:
                regression = self._regressions[kind] = _Regression()
            regression.step(buckets, _target(np.array(value - mean)).item(), at_least=censored)

    def learn_served(self, feedback: Feedback) -> None:
        """Learn from a sequence of the service; keep a replayed one for :meth:`finish`.

        A replay calibrates, so until its end no score may have been learned from a sample of the
        same prompt.
        """
        evidence = feedback.evidence
        learn = self.keep if feedback.replayed else self.learn
        learn(evidence.features, evidence.terms, feedback.length, censored=feedback.censored)

    def fit(
        self, requests: Sequence[ObservedRequest], lengths: np.ndarray, censored: np.ndarray
    ) -> list[RequestFeatures]:
        """Learn from ``N`` completions; return their features with scores out of fold.

        Censored lengths are left out; their rows get scores.

        Args:
            requests: requests, length ``N``.
            lengths: generated tokens, shape ``(N,)``.
            censored: True where the length is only a lower bound, shape ``(N,)``.
        """
        terms = [prompt_terms(one.request) for one in requests]
        features = [
            replace(one.features, prompt_key=prompt_key(each)) if each else one.features
            for one, each in zip(requests, terms, strict=True)
        ]
        values = np.log1p(lengths.astype(np.float64)).tolist()
        self._rows = list(map(_Row, features, terms, values, censored.tolist()))
        for row in self._rows:
            if not row.censored:
                self._means.learn(row.features, row.value)
        for kind in TermKind:
            places, scores = self._solve(kind, self._rows, out_of_fold=True)
            for i, score in zip(places, scores.tolist(), strict=True):
                if features[i].prompt_score is None:
                    features[i] = replace(features[i], prompt_score=_PRIOR + _log_ratio(score))
        return features

    def keep(
        self,
        features: RequestFeatures,
        terms: tuple[PromptTerms, ...],
        length: int,
        *,
        censored: bool,
    ) -> None:
        """Keep one completion of the replay after a fit, for :meth:`finish`; else do nothing."""
        if terms and self._rows:
            self._rows.append(_Row(features, terms, log1p(length), censored))
            self._kept += 1

    def finish(self) -> None:
        """Fit again on the rows of :meth:`fit` and those kept since; forget them."""
        rows, kept = self._rows, self._kept
        self._rows, self._kept = [], 0
        if not kept:
            return
        for row in rows[-kept:]:
            if not row.censored:
                self._means.learn(row.features, row.value)
        for kind in TermKind:
            self._solve(kind, rows, out_of_fold=False)

    def _solve(
        self, kind: TermKind, rows: Sequence[_Row], *, out_of_fold: bool
    ) -> tuple[list[int], np.ndarray]:
        """Fit the regression of one kind of terms anew, where there are enough of them.

        Returns:
            Places of the rows that have such terms, and their scores out of fold; none without
            ``out_of_fold``, and where nothing was fitted.
        """
        of_kind = {
            i: one.buckets for i, row in enumerate(rows) for one in row.terms if one.kind is kind
        }
        known = np.array([not rows[i].censored for i in of_kind], dtype=bool)
        if np.count_nonzero(known) < _LEAST:
            return [], np.zeros(0)
        values = _target(
            np.array([rows[i].value - self._means.mean(rows[i].features) for i in of_kind])
        )
        regression = self._regressions[kind] = _Regression()
        scores = regression.fit(list(of_kind.values()), values, known, out_of_fold=out_of_fold)
        return (list(of_kind), scores) if out_of_fold else ([], scores)

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the regressions and the means of the clients as arrays."""
        arrays = self._means.state()
        for kind, regression in self._regressions.items():
            arrays |= {f"{kind.value}.{key}": value for key, value in regression.state().items()}
        return arrays

    def restore(self, state: Arrays) -> None:
        """Replace what was learned with a :meth:`state`.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        means = _Means()
        means.restore(state)
        regressions = {}
        for kind in TermKind:
            if any(key.startswith(f"{kind.value}.") for key in state):
                regressions[kind] = _Regression()
                regressions[kind].restore(state, f"{kind.value}.")
        self._means, self._regressions = means, regressions


class ScoredCompletions(NamedTuple):
    """Completions of a history in time order, with prompt scores out of fold.

    Attributes:
        features: features of the requests with prompt scores, length ``N``.
        sessions: keys of their sessions, 0 for none, length ``N``.
        lengths: generated tokens, int64 of shape ``(N,)``.
        censored: True where the length is only a lower bound, shape ``(N,)``.
    """

    features: list[RequestFeatures]
    sessions: list[int]
    lengths: np.ndarray
    censored: np.ndarray


def scored_completions(
    prompts: PromptScore,
    frame: pl.DataFrame,
    context: Context,
    progress: Progress | None,
) -> ScoredCompletions:
    """Fit a prompt score on the rows of a history; return the rows with scores out of fold.

    Args:
        prompts: an unfitted prompt score, which is fitted.
        frame: checked rows, in time order.
        context: learns all rows.
        progress: called with the name of the step and the share done; ``None`` for no calls.
    """
    from sagellm_lifetime.models.history_rows import completions

    rows = list(completions(frame, context, progress))
    lengths = np.array([length for _, length, _ in rows], dtype=np.int64)
    is_censored = np.array([is_bound for _, _, is_bound in rows], dtype=bool)
    requests = [observed for observed, _, _ in rows]
    features = prompts.fit(requests, lengths, is_censored)
    return ScoredCompletions(features, [one.session for one in requests], lengths, is_censored)


class _Regression:
    """Linear regression on terms, of lengths relative to a mean.

    Attributes:
        learned: completions learned.
    """

    def __init__(self) -> None:
        self.learned = 0
        self._weights = np.zeros(_BUCKETS, dtype=np.float32)
        self._documents = np.zeros(_BUCKETS, dtype=np.float32)
        """Number of prompts with each term."""
        self._precision = np.full(_BUCKETS, RIDGE, dtype=np.float32)
        """Diagonal of the normal equations: how well each weight is known."""

    def _importance(self, index: np.ndarray) -> np.ndarray:
        """Return the inverse document frequencies of terms, scaled to length 1, float32.

        Args:
            index: buckets of the terms, intp: NumPy would convert other types at each use.
        """
        weight: np.ndarray = self._documents.take(index)
        weight += np.float32(1.0)
        np.divide(np.float32(1.0 + self.learned), weight, out=weight)
        np.log(weight, out=weight)
        weight += np.float32(1.0)
        weight *= np.float32(1.0 / sqrt(np.dot(weight, weight)))
        return weight

    def predict(self, buckets: np.ndarray) -> float:
        """Return the predicted deviation of the logarithm of a length from its mean."""
        index = buckets.astype(np.intp)
        return float(np.dot(self._weights.take(index), self._importance(index)))

    def step(self, buckets: np.ndarray, value: float, *, at_least: bool) -> None:
        """Learn one completion, and count its terms.

        It is a step of recursive least squares with a diagonal matrix, which needs no learning
        rate: a new term moves by a third of the error, a common one hardly.

        Args:
            buckets: terms of the prompt.
            value: deviation of the logarithm of the length from its mean.
            at_least: True if the deviation is only a lower bound.
        """
        index = buckets.astype(np.intp)
        x = self._importance(index)
        weights = self._weights.take(index)
        gap = value - float(np.dot(weights, x))
        if at_least and gap <= 0.0:
            return
        precision = self._precision.take(index)
        gain = x / precision
        weights += gain * np.float32(gap / (1.0 + float(np.dot(gain, x))))
        self._weights[index] = weights
        self._precision[index] = precision + x * x
        self._documents[index] += np.float32(1.0)
        self.learned += 1

    def fit(
        self,
        buckets: list[np.ndarray],
        values: np.ndarray,
        known: np.ndarray,
        *,
        out_of_fold: bool,
    ) -> np.ndarray:
        """Solve the regression; return scores out of fold, shape ``(N,)``, or zeros.

        Args:
            buckets: terms of ``N`` prompts.
            values: deviations of the logarithms of the lengths, shape ``(N,)``.
            known: False where the value is only a lower bound, shape ``(N,)``.
            out_of_fold: False to spare the scores, five regressions.
        """
        # Rows of equal terms are one row with a weight: prompts are often sampled several times,
        # and must not be in two folds.
        places: dict[bytes, int] = {}
        place = np.array([places.setdefault(one.tobytes(), len(places)) for one in buckets])
        distinct = [np.frombuffer(key, dtype=np.uint16) for key in places]
        weight = np.bincount(place, known, minlength=len(places))
        mean = np.bincount(place, values * known, minlength=len(places)) / np.maximum(weight, 1.0)
        self.learned = len(buckets)
        for one, count in zip(distinct, np.bincount(place), strict=True):
            self._documents[one] += count
        matrix = _Rows(distinct, [self._importance(one.astype(np.intp)) for one in distinct])
        fold = np.arange(len(places)) % _FOLDS
        scores = np.zeros(len(places))
        for k in range(_FOLDS if out_of_fold else 0):
            solved = matrix.solve(mean, np.where(fold == k, 0.0, weight))
            scores[fold == k] = matrix.dot(solved)[fold == k]
        self._weights = matrix.solve(mean, weight).astype(np.float32)
        self._precision += matrix.squares(weight).astype(np.float32)
        row_scores: np.ndarray = scores[place]
        return row_scores

    def state(self) -> Arrays:
        """Return the weights and counts as arrays."""
        return {
            "weights": self._weights,
            "documents": self._documents,
            "precision": self._precision,
            "learned": np.array([min(self.learned, MOST)], dtype=np.int64),
        }

    def restore(self, state: Arrays, prefix: str) -> None:
        """Replace weights and counts. Raises :class:`ValueError` for arrays that do not fit."""
        shape = (_BUCKETS,)
        weights = checked(state, f"{prefix}weights", np.float32, shape, -LARGEST, LARGEST)
        documents = checked(state, f"{prefix}documents", np.float32, shape, 0.0, MOST)
        precision = checked(state, f"{prefix}precision", np.float32, shape, RIDGE, MOST)
        learned = int(checked(state, f"{prefix}learned", np.int64, (1,), 0, MOST)[0])
        if documents.max(initial=0.0) > learned:
            raise ValueError(f"'{prefix}documents' counts more prompts than were learned")
        self._weights, self._documents = weights.copy(), documents.copy()
        self._precision, self.learned = precision.copy(), learned


class _Rows:
    """Sparse matrix of ``N`` rows over the buckets.

    Args:
        buckets: columns of each row.
        values: values of each row.
    """

    def __init__(self, buckets: list[np.ndarray], values: list[np.ndarray]) -> None:
        self._count = len(buckets)
        self._columns = np.concatenate(buckets).astype(np.int64)
        self._values = np.concatenate(values).astype(np.float64)
        self._row = np.repeat(np.arange(self._count), [len(one) for one in buckets])

    def dot(self, weights: np.ndarray) -> np.ndarray:
        """Return the product with weights of shape ``(_BUCKETS,)``, shape ``(N,)``."""
        return np.bincount(self._row, self._values * weights[self._columns], self._count)

    def _transposed(self, rows: np.ndarray) -> np.ndarray:
        return np.bincount(self._columns, self._values * rows[self._row], _BUCKETS)

    def squares(self, weight: np.ndarray) -> np.ndarray:
        """Return the weighted sum of squares of each column, shape ``(_BUCKETS,)``."""
        return np.bincount(self._columns, np.square(self._values) * weight[self._row], _BUCKETS)

    def solve(self, values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the ridge regression of values on the rows, shape ``(_BUCKETS,)``.

        Conjugate gradients on the normal equations (Hestenes and Stiefel 1952).

        Args:
            values: shape ``(N,)``.
            weight: weight of each row, shape ``(N,)``.
        """
        solution = np.zeros(_BUCKETS)
        residual = self._transposed(weight * values)
        direction, size = residual.copy(), float(residual @ residual)
        target = _TOLERANCE * size
        for _ in range(_STEPS):
            if size <= target:
                break
            image = self._transposed(weight * self.dot(direction)) + RIDGE * direction
            step = size / float(direction @ image)
            solution += step * direction
            residual -= step * image
            size, before = float(residual @ residual), size
            direction = residual + (size / before) * direction
        return solution


class _Means:
    """Mean logarithms of the lengths of each client, or model where no client is named."""

    def __init__(self) -> None:
        self._sums: OrderedDict[int, list[float]] = OrderedDict()
        self._all = [0.0, 0.0]

    @staticmethod
    def _key(features: RequestFeatures) -> int:
        return features.client_key or features.model_key

    def mean(self, features: RequestFeatures) -> float:
        """Return the mean of a request's client, shrunk to that of all."""
        count, total = self._all
        common = (total + _MEAN_PRIOR * _PRIOR) / (count + _MEAN_PRIOR)
        own = self._sums.get(self._key(features))
        if own is None:
            return common
        return (own[1] + _MEAN_PRIOR * common) / (own[0] + _MEAN_PRIOR)

    def learn(self, features: RequestFeatures, value: float) -> None:
        """Count the logarithm of one length."""
        self._all[0] += 1.0
        self._all[1] += value
        key = self._key(features)
        if not key:
            return
        if key in self._sums:
            self._sums.move_to_end(key)
        elif len(self._sums) >= MOST_CLIENTS:
            self._sums.popitem(last=False)
        own = self._sums.setdefault(key, [0.0, 0.0])
        own[0] += 1.0
        own[1] += value

    def state(self) -> Arrays:
        """Return the sums as arrays."""
        return {
            "mean_keys": np.array(list(self._sums), dtype=np.int64),
            "mean_sums": np.array([self._all, *self._sums.values()], dtype=np.float64),
        }

    def restore(self, state: Arrays) -> None:
        """Replace the sums. Raises :class:`ValueError` for arrays that do not fit."""
        keys = checked(state, "mean_keys", np.int64, (None,), 1, LARGEST_KEY).tolist()
        array = checked(state, "mean_sums", np.float64, (len(keys) + 1, 2), 0.0, MOST)
        if len(set(keys)) < len(keys) or len(keys) > MOST_CLIENTS:
            raise ValueError("'mean_keys' names a client twice, or too many")
        counts, totals = array[:, 0], array[:, 1]
        if (counts % 1.0).any() or (totals > counts * _LARGEST_LOG).any():
            raise ValueError("'mean_sums' holds impossible sums of lengths")
        if counts[1:].sum() > counts[0]:
            raise ValueError("'mean_sums' counts more for the clients than for all")
        sums = array.tolist()
        self._all = sums[0]
        self._sums = OrderedDict(zip(keys, sums[1:], strict=True))
