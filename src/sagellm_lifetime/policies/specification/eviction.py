"""``PredictiveEvictionWithML`` of the specification, repaired."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
    SequenceId,
)
from sagellm_lifetime.policies.eviction import VALUES, eviction_order
from sagellm_lifetime.policies.plan import Plan
from sagellm_lifetime.policies.specification.asking import ask, forecast_of
from sagellm_lifetime.policies.specification.blocks import choose
from sagellm_lifetime.policies.specification.contract import (
    EvictionCandidate,
    EvictionPolicyProtocol,
)
from sagellm_lifetime.policies.specification.counting import EvictionCounts
from sagellm_lifetime.policies.state import Sequences

_PLAN: Final = Plan()
_REMEMBERED: Final = 65_536
_CERTAINLY_NOT: Final = 2.0
"""A threshold above every probability."""


class PredictiveEvictionWithML(EvictionPolicyProtocol):
    """An eviction policy that chooses victims by their predicted lifetimes.

    Differences from the specification's example, with reasons:
    - The default order is cost-aware: memory-time freed per token to be computed again. The example
      evicts the shortest remaining first, which is about to free its memory anyway; that is
      ``order="shortest"``.
    - Nothing is evicted if nothing is required; the example always evicts one.
    - A sequence that is expected to end at once is the shortest of all; the example's
      ``lifetime or inf`` makes it the longest. The same holds for a candidate without
      ``max_length``, which means "no cap known" here and a cap of 0 tokens there.
    - The less important are evicted first; the example ignores the priority.
    - A block that several candidates hold is freed with the last of them, and not with each; a
      candidate that would free no block is not evicted.
    - A candidate without a prediction (the predictor failed or is untrained) or with a low
      confidence (FAQ 2) follows the engine's rule: the oldest access first, after the confident.
    - A candidate near completion, or evicted often, is spared while there are others.
    - The caller's list keeps its order. ``estimated_lifetime`` is still set on the candidates.

    Args:
        lifetime_predictor: any predictor of the protocol; as in the example, an untrained
            ``LSTMLifetimePredictor`` by default.
        order: a key of ``eviction.VALUES``; ``"shortest"`` is the specification's.
        min_confidence: confidence below which the engine's rule decides.
        near_completion: tokens; a candidate that probably ends within so many is spared, except in
            the order ``"shortest"``, which prefers it.
        max_preemptions: evictions of one sequence, after which it is spared.
        block_size: tokens per block, to estimate the tokens held if no length is given.

    Raises:
        UnknownNameError: if there is no such order.
    """

    def __init__(
        self,
        lifetime_predictor: LifetimePredictorProtocol | None = None,
        *,
        order: str = "cost-aware",
        min_confidence: float = 0.0,
        near_completion: int = _PLAN.near_completion,
        max_preemptions: int = _PLAN.max_preemptions,
        block_size: int = 16,
    ) -> None:
        if order not in VALUES:
            raise UnknownNameError("order of eviction", order, list(VALUES))
        if lifetime_predictor is None:
            from sagellm_lifetime.predictor.builtin import LSTMLifetimePredictor

            lifetime_predictor = LSTMLifetimePredictor()
        self.lifetime_predictor = lifetime_predictor
        self.order = order
        self._min_confidence = min_confidence
        self._near_completion = near_completion
        self._max_preemptions = max_preemptions
        self._block_size = block_size
        self._counts = EvictionCounts()
        self._accesses: OrderedDict[SequenceId, int] = OrderedDict()
        self._access = 0

    def select_victims(
        self, candidates: Sequence[EvictionCandidate], required_blocks: int
    ) -> list[SequenceId]:
        """Return the ids to evict, first victim first.

        They are as few as free ``required_blocks``, or all that may be evicted if those free fewer.

        Args:
            candidates: sequences that hold memory, of any class with the fields of
                :class:`EvictionCandidate`.
            required_blocks: blocks needed; nothing is evicted for 0 or less.
        """
        self._counts.seen(candidate.sequence_id for candidate in candidates)
        if required_blocks <= 0 or not candidates:
            return []
        began = perf_counter()
        requests = [_request(candidate) for candidate in candidates]
        results = ask(self.lifetime_predictor, requests)
        _set_lifetimes(candidates, results)
        forecast = forecast_of(results, requests)
        order = eviction_order(
            self._sequences(candidates, requests),
            forecast,
            value=VALUES[self.order],
            near_completion=self._near_completion,
            near_probability=_CERTAINLY_NOT if self.order == "shortest" else 0.5,
            max_preemptions=self._max_preemptions,
            min_confidence=max(self._min_confidence, 0.0),
        )
        chosen, freed = choose(
            [candidate.block_ids for candidate in candidates], order, required_blocks
        )
        victims = [candidates[i].sequence_id for i in chosen]
        self._counts.evicted(victims, freed, perf_counter() - began)
        return victims

    def update_access(self, sequence_id: SequenceId) -> None:
        """Record an access to a sequence, which breaks ties of ``last_access_time``."""
        self._counts.seen([sequence_id])
        self._access += 1
        self._accesses[sequence_id] = self._access
        self._accesses.move_to_end(sequence_id)
        if len(self._accesses) > _REMEMBERED:
            self._accesses.popitem(last=False)

    def get_metrics(self) -> dict[str, Any]:
        """Return page 2.3's ``EvictionMetrics`` as a dict (NaN before the first eviction)."""
        return {"strategy": "predictive", "order": self.order, **self._counts.metrics()}

    def _sequences(
        self, candidates: Sequence[EvictionCandidate], requests: Sequence[PredictionRequest]
    ) -> Sequences:
        tokens = np.array([self._tokens(candidate) for candidate in candidates], dtype=np.int64)
        cached = np.array([getattr(candidate, "cached_tokens", 0) for candidate in candidates])
        evicted = [
            max(getattr(candidate, "preemptions", 0), self._counts.times(candidate.sequence_id))
            for candidate in candidates
        ]
        return Sequences(
            tokens=tokens,
            generated=np.array([request.current_length for request in requests]),
            recompute=np.maximum(tokens - cached, 1),
            # The policies evict the latest arrival first, so the sign makes that the oldest access.
            arrival=-self._ages(candidates),
            urgency=np.array([-int(candidate.priority) for candidate in candidates]),
            preemptions=np.array(evicted),
            pinned=np.array([bool(candidate.is_pinned) for candidate in candidates]),
        )

    def _tokens(self, candidate: EvictionCandidate) -> int:
        """Return the tokens that a candidate holds: at least the fewest that its blocks imply."""
        implied = (len(candidate.block_ids) - 1) * self._block_size + 1
        return max(candidate.sequence_length, implied if candidate.block_ids else 0)

    def _ages(self, candidates: Sequence[EvictionCandidate]) -> np.ndarray:
        """Return the rank of each candidate's last access, 0 for the oldest, shape ``(N,)``."""
        seconds = np.array(
            [candidate.last_access_time for candidate in candidates], dtype=np.float64
        )
        calls = np.array([self._accesses.get(candidate.sequence_id, 0) for candidate in candidates])
        ranks = np.empty(len(seconds))
        ranks[np.lexsort((calls, seconds))] = np.arange(len(seconds))
        return ranks


def _request(candidate: EvictionCandidate) -> PredictionRequest:
    prompt = getattr(candidate, "prompt_length", None)
    features = dict(getattr(candidate, "prompt_features", None) or {})
    if prompt is not None:
        features["prompt_length"] = prompt
    cap = max(candidate.max_length - (prompt or 0), 0) if candidate.max_length > 0 else None
    return PredictionRequest(
        sequence_id=candidate.sequence_id,
        token_ids=[],
        current_length=max(candidate.sequence_length - (prompt or 0), 0),
        max_length=cap,
        prompt_features=features or None,
    )


def _set_lifetimes(
    candidates: Sequence[EvictionCandidate], results: Sequence[PredictionResult | None]
) -> None:
    for candidate, result in zip(candidates, results, strict=True):
        if result is not None:
            candidate.estimated_lifetime = result.estimated_time
