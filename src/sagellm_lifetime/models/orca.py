"""Mean and variance of past lengths, which the specification calls the Orca reference.

The cited paper (Yu et al., OSDI 2022) schedules iterations and predicts no lengths; this is the
predictor that the specification describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.arrays import ORDER, Arrays, in_order, ranks
from sagellm_lifetime.core.checked import checked, checked_keys
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.features.name_keys import LARGEST_KEY
from sagellm_lifetime.models.base import Feedback, LengthModel
from sagellm_lifetime.models.moments import PRIOR_LOG_SD, PRIOR_MEDIAN, Moments

_EVERY: Final = 0
_MAX_MODELS: Final = 1024
_MOST: Final = 1e24
"""Upper limit of a spread, tokens squared: 2000 sequences of the greatest length each in thousands
of merged states."""
_ENOUGH: Final = 8.0
"""Completions of a model from which on its own moments are used."""


class OrcaModel(LengthModel):
    """Mean and variance of past lengths, per model and over all, as a log-logistic.

    Aborted sequences are left out; capped ones count at their cap.

    Args:
        options: options of :class:`~sagellm_lifetime.models.base.LengthModel`.
    """

    name = "orca"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._moments: dict[int, Moments] = {}
        """Moments by model, least recently updated first."""

    def hazards(self, evidence: Sequence[Evidence]) -> np.ndarray:
        """Return rows of cumulative hazards, shape ``(n, BINS + 1)``."""
        return np.stack([self._row(one) for one in evidence])

    def _row(self, evidence: Evidence) -> np.ndarray:
        moments = self._moments.get(evidence.features.model_key)
        if moments is None or moments.weight < _ENOUGH:
            moments = self._moments.get(_EVERY)
        if moments is None:
            return hazard.log_logistic(PRIOR_MEDIAN, PRIOR_LOG_SD)
        return hazard.log_logistic(*moments.log_normal())

    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence."""
        cap = feedback.evidence.features.max_length
        if feedback.censored and (cap is None or feedback.length < cap):
            return
        for key in (feedback.evidence.features.model_key, _EVERY):
            moments = self._moments.pop(key, None) or Moments()
            moments.add(feedback.length)
            self._moments[key] = moments  # the most recently updated is last
        if len(self._moments) > _MAX_MODELS:
            del self._moments[next(iter(self._moments))]

    def merge(self, *others: Self) -> None:
        """Add the moments of each model."""
        for key, moments in (pair for other in others for pair in other._moments.items()):
            self._moments.setdefault(key, Moments()).merge(moments)
        order = sorted(self._moments, key=lambda key: (self._moments[key].weight, key))
        self._moments = {key: self._moments[key] for key in order[-_MAX_MODELS:]}

    def state(self) -> Arrays:
        """Return the moments by model, and their order."""
        moments = {str(key): moments.state() for key, moments in self._moments.items()}
        return {**moments, ORDER: ranks(moments)}

    def restore(self, state: Arrays) -> None:
        """Replace the moments. Raises :class:`ValueError` for arrays that do not fit."""
        named = {key: value for key, value in state.items() if key != ORDER}
        named = in_order(named, state.get(ORDER))
        keys = checked_keys(named, 0, LARGEST_KEY)
        if len(keys) > _MAX_MODELS:
            raise ValueError(f"moments of {len(keys)} models, more than {_MAX_MODELS}")
        moments = [checked(named, name, np.float64, (3,), 0.0, _MOST).tolist() for name in named]
        self._moments = {key: Moments(*sums) for key, sums in zip(keys, moments, strict=True)}
