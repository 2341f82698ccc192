"""Linear regression on prompt features, which the specification calls FastServe's predictor.

The cited paper (Wu et al., arXiv 2305.05920) schedules by skip-join queues on the prompt length and
predicts no output lengths; this is the predictor that the specification describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log, log1p, sqrt
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.features.hidden_state import read_hidden
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.base import Feedback, LengthModel, Progress
from sagellm_lifetime.models.context import Context, ObservedRequest
from sagellm_lifetime.models.hidden_score import HiddenScore
from sagellm_lifetime.models.merging.prompts import merge_prompts
from sagellm_lifetime.models.moments import PRIOR_LOG_SD, PRIOR_MEDIAN
from sagellm_lifetime.models.prompt_score import PromptScore, scored_completions

if TYPE_CHECKING:
    import polars as pl

_INPUTS: Final = 12
_RIDGE: Final = 1.0
_MEMORY: Final = 1.0 - 1.0 / 5000.0
_PRIOR_WEIGHT: Final = 4.0


_PRIOR_PRODUCTS: Final = np.array([_RIDGE * log(PRIOR_MEDIAN)] + [0.0] * (_INPUTS - 1))
_PRIOR_NOISE: Final = np.array([_PRIOR_WEIGHT, _PRIOR_WEIGHT * PRIOR_LOG_SD**2])


class LinearModel(LengthModel):
    """Ridge regression of ``log L`` on prompt features, with slow forgetting.

    The normal equations are stored, and solved at a prediction. The recursive form saves only the
    solution of an 8 x 8 system, and was unstable on inputs that hardly vary (dev/LOG.md). The
    spread of the residuals becomes the spread of the distribution. Aborted sequences are left out;
    capped ones count at their cap.

    Args:
        options: options of :class:`~sagellm_lifetime.models.base.LengthModel`.
    """

    name = "linear"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts = PromptScore()
        self.hidden = HiddenScore()
        self._moments = np.zeros((_INPUTS, _INPUTS))
        self._products = _PRIOR_PRODUCTS.copy()
        self._noise = _PRIOR_NOISE.copy()
        self._prior_share = 1.0
        """Share of the prior that has not faded yet, for merges: each sum has it once."""
        self._weights: np.ndarray | None = None

    def observe(self, request: ObservedRequest) -> Evidence:
        """Return the features of a request with its prompt score, and its hashed terms.

        Raises:
            RequestError: the token ids cannot be read.
        """
        features, terms = self.prompts.scored(request)
        hidden = read_hidden(request.request)
        return self._scored(Evidence(features, request.session, terms=terms, hidden=hidden))

    def absorb(self, evidence: Evidence, request: PredictionRequest) -> Evidence | None:
        """Return evidence with a new reading of the hidden state, or ``None`` without one.

        Raises:
            RequestError: the hidden state cannot be read.
        """
        hidden = read_hidden(request, evidence.hidden)
        return None if hidden is None else self._scored(replace(evidence, hidden=hidden))

    def _scored(self, evidence: Evidence) -> Evidence:
        """Return evidence with the score of its hidden state."""
        score = self.hidden.score(evidence.hidden)
        if score is None:
            return evidence
        return replace(evidence, features=replace(evidence.features, hidden_score=score))

    def _solution(self) -> np.ndarray:
        if self._weights is None:
            ridge = np.eye(_INPUTS) * _RIDGE
            self._weights = np.linalg.solve(self._moments + ridge, self._products)
        return self._weights

    def hazards(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Return rows of cumulative hazards, shape ``(n, BINS + 1)``."""
        rows = []
        for one in evidence:
            # Clipped to the grid, since a line can be extrapolated to any length.
            log_length = float(np.clip(self._solution() @ inputs(one.features), 0.0, 11.7))
            rows.append(hazard.log_logistic(exp(log_length), self._log_sd()))
        return np.stack(rows)

    def _log_sd(self) -> float:
        return max(sqrt(self._noise[1] / self._noise[0]), 0.02)

    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence."""
        self._learn(feedback)
        self.prompts.learn_served(feedback)
        self.hidden.learn_served(feedback)

    def finish_fit(self) -> None:
        """Fit both scores on the replayed rows, too."""
        self.prompts.finish()
        self.hidden.finish()

    def _learn(self, feedback: Feedback) -> None:
        """Add one sequence to the normal equations."""
        features = feedback.evidence.features
        cap = features.max_length
        if feedback.censored and (cap is None or feedback.length < cap):
            return
        x = inputs(features)
        y = log(max(feedback.length, 1))
        gap = y - float(self._solution() @ x)
        self._moments = self._moments * _MEMORY + np.outer(x, x)
        self._products = self._products * _MEMORY + x * y
        self._noise = self._noise * _MEMORY + np.array([1.0, gap * gap])
        self._prior_share *= _MEMORY
        self._weights = None

    def fit(
        self,
        older: pl.DataFrame,
        newest: pl.DataFrame,
        context: Context,
        progress: Progress | None,
    ) -> None:
        """Fit the prompt score, then learn all rows of ``older`` with scores out of fold."""
        rows = scored_completions(self.prompts, older, context, progress)
        hidden = self.hidden.fit_history(older, rows.lengths, rows.censored)
        for i, (features, session) in enumerate(zip(rows.features, rows.sessions, strict=True)):
            evidence = self._scored(Evidence(features, session, hidden=hidden[i]))
            length, is_censored = int(rows.lengths[i]), bool(rows.censored[i])
            self._learn(Feedback(evidence, length, is_censored, replayed=True))

    def merge(self, *others: Self) -> None:
        """Add the normal equations and the residuals, with the prior once.

        The prior fades with each completion, and in the sum as if one model had learned them all.
        """
        models = (self, *others)
        prior = float(np.prod([model._prior_share for model in models]))
        left = prior - sum(model._prior_share for model in models)
        moments = np.sum([model._moments for model in models], axis=0)
        products = np.sum([model._products for model in models], axis=0)
        noise = np.sum([model._noise for model in models], axis=0)
        self._moments, self._prior_share = moments, prior
        self._products = products + left * _PRIOR_PRODUCTS
        self._noise = np.maximum(noise + left * _PRIOR_NOISE, prior * _PRIOR_NOISE)
        self._weights = None
        merge_prompts(self.prompts, [model.prompts for model in others])
        self.hidden.merge([model.hidden for model in others])

    def state(self) -> Arrays:
        """Return the normal equations, the residual sums and both scores."""
        prompts = {f"prompts.{key}": value for key, value in self.prompts.state().items()}
        own = {"moments": self._moments, "products": self._products, "noise": self._noise}
        hidden = {f"hidden.{key}": value for key, value in self.hidden.state().items()}
        return own | {"prior_share": np.array([self._prior_share])} | prompts | hidden

    def restore(self, state: Arrays) -> None:
        """Replace the learned sums. Raises :class:`ValueError` for arrays that do not fit."""
        moments = checked(state, "moments", np.float64, (_INPUTS, _INPUTS)).copy()
        noise = checked(state, "noise", np.float64, (2,), 0.0).copy()
        # Sums of squares and products are positive semidefinite, so the ridge bounds eigenvalues.
        if not np.array_equal(moments, moments.T) or (
            np.linalg.eigvalsh(moments + _RIDGE * np.eye(_INPUTS)).min() < _RIDGE / 2
        ):
            raise ValueError("'moments' holds what cannot be sums of squares")
        if not noise[0] > 0.0:
            raise ValueError("'noise' holds the residuals of no sequence")
        # Checkpoints of before there was a merge lack it; then it follows from the offset's sum.
        derived = np.clip(1.0 - moments[:1, 0] * (1.0 - _MEMORY), 0.0, 1.0)
        prior = checked(
            {"prior_share": derived, **state}, "prior_share", np.float64, (1,), 0.0, 1.0
        )
        self._prior_share = prior.item(0)
        self._moments, self._noise = moments, noise
        self._products = checked(state, "products", np.float64, (_INPUTS,)).copy()
        self._weights = None
        self.prompts.restore(part(state, "prompts."))
        self.hidden.restore(part(state, "hidden."))


def inputs(features: RequestFeatures) -> np.ndarray:
    """Return the inputs of the regression, float64 of shape ``(12,)``.

    They are an offset, the logarithms of prompt length, cap and turn, each followed by 1 if it is
    given, the temperature, the score of the prompt and that of the hidden state above its middle,
    each followed by 1 if there is one.
    """
    x = np.zeros(_INPUTS)
    x[0] = 1.0
    if features.prompt_length is not None:
        x[1], x[2] = log1p(features.prompt_length), 1.0
    if features.max_length is not None:
        x[3], x[4] = log1p(features.max_length), 1.0
    if features.turn is not None:
        x[5], x[6] = log1p(max(features.turn, 0)), 1.0
    if features.temperature is not None:
        x[7] = features.temperature
    if features.prompt_score is not None:
        x[8], x[9] = features.prompt_score, 1.0
    if features.hidden_score is not None:
        # Centred, since none is known before the prefill of a request: 0 stands for the middle.
        x[10], x[11] = features.hidden_score - log(PRIOR_MEDIAN), 1.0
    return x
