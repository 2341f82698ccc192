"""The ``LifetimePredictor`` of ``sagellm_kv_cache.predictor``: lifetimes of KV handles.

The package leaves the unit of a lifetime open ("steps/time"), so it is named here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.integrations.sagellm.packages import KV_CACHE, require
from sagellm_lifetime.integrations.sagellm.running import RunningSequences, sequences_or_new
from sagellm_lifetime.integrations.sagellm.scores import HandleScores, HandleView, request_id_of

require(KV_CACHE, "predicting lifetimes of KV handles")

from sagellm_kv_cache.models import LifetimePrediction  # noqa: E402
from sagellm_kv_cache.predictor import LifetimePredictor, PredictorFeatures  # noqa: E402

_NO_ID: Final = "unknown"
"""Request id that ``PredictorFeatures.from_handle`` gives to a handle without the field."""


class Unit(Enum):
    """Unit of ``remaining_lifetime`` and of the lifetimes that are learned."""

    SECONDS = "seconds"
    TOKENS = "tokens"
    """Tokens still to be generated, one a step of the engine."""


def features_of(handles: Iterable[Any]) -> list[Any]:
    """Return the ``PredictorFeatures`` of KV handles, joined to their sequences.

    The package's own ``from_handle`` reads a field that ``KVPool.alloc`` leaves empty, and calls
    the request "unknown"; here ``metadata["request_id"]`` counts. A shared handle counts as pinned,
    since :class:`LifetimeAwareEviction` never evicts it either.
    """
    features = []
    for handle in handles:
        own = PredictorFeatures.from_handle(handle)
        changed: dict[str, Any] = {"is_pinned": own.is_pinned or int(handle.ref_count) > 1}
        if request_id := request_id_of(handle):
            changed["request_id"] = request_id
        features.append(own.model_copy(update=changed))
    return features


class KVLifetimePredictor(LifetimePredictor):
    """Predict how long KV handles live, and how good a victim each is.

    Of each ``LifetimePrediction``: ``remaining_lifetime`` is the median remaining life of the
    sequence in ``unit``, 0 without a running one; ``reuse_prob`` is 1 for a running sequence, which
    reads its KV at every step, and otherwise the probability of a reuse within ``horizon_s``;
    ``evict_score`` is in 0–1, the highest is the best victim, in the very order in which
    :class:`LifetimeAwareEviction` evicts among handles of one priority (features tell none), and
    −1 for a pinned or shared handle, which must not go;
    ``confidence`` is for a running sequence the calibrated probability that its predicted total
    length is within 10 % of the actual one, and for an idle handle the probability that the
    likelier of "reused within the horizon" and "not" is true.

    Args:
        sequences: the running sequences.
        unit: of lifetimes.
        horizon_s: of ``reuse_prob``, seconds.
        scores: of an installed strategy, ``strategy.scores``, to share what it has learned of
            reuse; new ones by default.
    """

    def __init__(
        self,
        sequences: RunningSequences | None = None,
        *,
        unit: Unit = Unit.SECONDS,
        horizon_s: float = 60.0,
        scores: HandleScores | None = None,
    ) -> None:
        if sequences is None and scores is not None:
            sequences = scores.sequences
        self.sequences = sequences_or_new(sequences)
        self.unit = unit
        self.horizon_s = horizon_s
        self.scores = HandleScores(self.sequences) if scores is None else scores

    def predict_batch(self, features: Sequence[Any]) -> list[Any]:
        """Return one ``LifetimePrediction`` per ``PredictorFeatures``, in their order.

        Raises:
            ValueError: ``features`` is empty.
            RuntimeError: the predictor failed for one of them.
        """
        if not features:
            raise RequestError("features must not be empty: give those of one handle or more")
        views = [_view(feature) for feature in features]
        now = max(float(feature.extracted_at) for feature in features)
        scores = self.scores.score(views, now)
        asked = [request for request in scores.requests if request is not None]
        answers = iter(self.sequences.predictions(asked) if asked else [])
        reuse = self.scores.reuse.probability(scores.idle_s, scores.reuses, self.horizon_s)
        predictions = []
        for i, feature in enumerate(features):
            request = scores.requests[i]
            result = None if request is None else next(answers)
            if request is not None and result is None:
                raise RuntimeError(f"no prediction for the sequence of handle {feature.handle_id}")
            likely = float(reuse[i])
            predictions.append(
                LifetimePrediction(
                    handle_id=feature.handle_id,
                    request_id=feature.request_id,
                    reuse_prob=likely if result is None else 1.0,
                    remaining_lifetime=0.0 if result is None else self._life(result),
                    evict_score=-1.0 if feature.is_pinned else float(scores.score[i]),
                    confidence=max(likely, 1.0 - likely) if result is None else result.confidence,
                    features_summary={
                        "unit": self.unit.value,
                        "num_tokens": views[i].num_tokens,
                        "generated_tokens": None if request is None else request.current_length,
                        "source": "reuse" if result is None else getattr(result, "source", "model"),
                    },
                    predicted_at=now,
                )
            )
        return predictions

    def update(self, features: Any, actual_lifetime: float) -> None:
        """Learn from a handle's end.

        For a running sequence, ``actual_lifetime`` counts from its arrival: tokens generated in
        all, or seconds, with the tokens that were last reported to the shared sequences. For an
        idle handle it is the seconds from its last access to the next.

        Raises:
            ValueError: the lifetime is not positive and finite, or no token was ever reported.
        """
        if not (math.isfinite(actual_lifetime) and actual_lifetime > 0.0):
            raise RequestError("actual_lifetime must be positive and finite")
        view = _view(features)
        request = self.sequences.request(view.request_id)
        if request is None or view.request_id is None:
            self.scores.reuse.ended(actual_lifetime, 0, reused=True)
            return
        if self.unit is Unit.TOKENS:
            # The predictor needs a time too: since the handle was made, on the packages' clock.
            seconds = max(float(features.extracted_at) - float(features.created_at), 0.0)
            self.sequences.finished(view.request_id, round(actual_lifetime), seconds=seconds)
        elif request.current_length > 0:
            length = request.current_length
            self.sequences.finished(view.request_id, length, seconds=actual_lifetime)
        else:
            raise RequestError(
                "the sequence never reported a token, and seconds tell no length: call "
                "progressed() as it generates, or use Unit.TOKENS"
            )

    def get_model_version(self) -> str:
        """Return the package's version and the kind of predictor."""
        from sagellm_lifetime import __version__

        return f"isagellm-lifetime-{__version__}-{type(self.sequences.predictor).__name__}"

    def _life(self, result: Any) -> float:
        if self.unit is Unit.TOKENS:
            return float(result.estimated_remaining_tokens)
        return float(result.estimated_time)


def _view(feature: Any) -> HandleView:
    return HandleView(
        handle_id=str(feature.handle_id),
        request_id=None if feature.request_id == _NO_ID else str(feature.request_id),
        num_tokens=int(feature.num_tokens),
        last_access=float(feature.last_access),
        created_at=float(feature.created_at),
    )
