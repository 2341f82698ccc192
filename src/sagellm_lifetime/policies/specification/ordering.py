"""``LifetimeAwarePass`` of the specification, repaired."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError, UnknownNameError
from sagellm_lifetime.core.protocol import (
    LifetimePredictorProtocol,
    PredictionRequest,
    PredictionResult,
)
from sagellm_lifetime.policies.ordering import SERVICES, in_line, places
from sagellm_lifetime.policies.reservation import Peak
from sagellm_lifetime.policies.specification.asking import ask, forecast_of
from sagellm_lifetime.policies.specification.contract import OptimizationPass, ScheduleRequest
from sagellm_lifetime.policies.specification.fixed_order import FixedOrderList
from sagellm_lifetime.policies.state import Sequences, SurvivalForecast

_PATIENCE: Final = 100.0
"""Seconds per second of service."""
_SECONDS_PER_TOKEN: Final = 0.02
"""Default pace of an untrained predictor."""
_NO_AGEING: Final = 1e9
"""Patience in seconds per second of service, so large that arrival does not count."""
_SERVICE: Final = {"cost-aware": "area", "shortest": "length"}
"""Names of orders that differ from those in ``ordering.SERVICES``."""
ORDERS: Final = (*_SERVICE, *SERVICES)


class LifetimeAwarePass(OptimizationPass):
    """A pass that sorts waiting requests into the order in which to start them.

    Differences from the specification's example, with reasons:

    - Ids go to the predictor unchanged. The example calls ``int`` on them, which fails on most ids
      of engines, merges "7" and "007", and stores the prediction under an id that the engine's
      ``update`` does not use.
    - No request starves: it is overtaken only by requests that arrive within ``patience`` times its
      own expected service. In the example, and with ``order="shortest"``, a long request waits as
      long as shorter ones keep coming.
    - The default order counts memory-time, since a long prompt holds memory as a long answer does.
    - Urgent requests go first; the example ignores the priority.
    - A request without a prediction (the predictor failed or is untrained) or with a low confidence
      (FAQ 2) takes the place of an average request: among such requests arrival decides.
    - The order is kept by a later sort by arrival alone, which is the last step of page 2.4's own
      scheduler (:class:`FixedOrderList`).
    - With ``fit`` only requests are returned that fit into memory beside the running ones; the
      example ignores ``running`` and ``available_memory``.
    - The caller's list keeps its order. ``estimated_remaining_tokens`` is still set on requests.

    Args:
        lifetime_predictor: any predictor of the protocol.
        order: ``"cost-aware"``, the specification's ``"shortest"``, or a key of
            ``ordering.SERVICES``.
        patience: seconds a request may be overtaken for, per second of its expected service; 100 by
            default, and without bound for ``"shortest"``.
        min_confidence: confidence below which a prediction is ignored.
        fit: required probability that the predicted peak of memory fits, below 1; 0 returns all.
        memory_per_token: in units of ``available_memory``; page 2.4 has 1 MB.

    Raises:
        UnknownNameError: if there is no such order.
        RequestError: if a probability or a size is out of range.
    """

    def __init__(
        self,
        lifetime_predictor: LifetimePredictorProtocol,
        *,
        order: str = "cost-aware",
        patience: float | None = None,
        min_confidence: float = 0.0,
        fit: float = 0.0,
        memory_per_token: float = 1.0,
    ) -> None:
        if order not in ORDERS:
            raise UnknownNameError("order of requests", order, list(ORDERS))
        if not 0.0 <= fit < 1.0:
            raise RequestError(f"fit must be a probability below 1, got {fit}")
        if not memory_per_token > 0.0:
            raise RequestError(f"memory_per_token must be above 0, got {memory_per_token}")
        if patience is None:
            patience = _NO_AGEING if order == "shortest" else _PATIENCE
        if not 0.0 <= patience < inf:
            raise RequestError(f"patience must be a finite number of 0 or more, got {patience}")
        self.lifetime_predictor = lifetime_predictor
        self.order = order
        self._service = _SERVICE.get(order, order)
        self._patience = patience
        self._min_confidence = min_confidence
        self._fit = fit
        self._memory_per_token = memory_per_token
        self._places: dict[tuple[Any, ...], float] = {}

    def name(self) -> str:
        """Return the name that the specification gives the pass."""
        return "LifetimeAware"

    def apply(
        self,
        pending: Sequence[ScheduleRequest],
        running: Sequence[ScheduleRequest],
        available_memory: float,
    ) -> list[ScheduleRequest]:
        """Return the waiting requests, the one to start next first.

        Args:
            pending: waiting requests, of any class with the fields of :class:`ScheduleRequest`.
            running: running requests, which count for ``fit``.
            available_memory: free memory, in any unit (see ``memory_per_token``).
        """
        if not pending:
            self._places = {}
            return FixedOrderList()
        requests = [_request(request) for request in pending]
        results = ask(self.lifetime_predictor, requests)
        for request, result in zip(pending, results, strict=True):
            if result is not None:
                request.estimated_remaining_tokens = result.estimated_remaining_tokens
        forecast = forecast_of(results, requests)
        sequences = _sequences(pending)
        pool = available_memory / self._memory_per_token + sum(
            _tokens(request) for request in running
        )
        unit = _pace(results) / (max(pool, 1.0) if self._service == "area" else 1.0)
        present_places = self._first_places(
            pending, self._present_places(sequences, forecast, self._patience * unit)
        )
        order = in_line(sequences, present_places)
        if self._fit:
            order = order[: self._room(sequences, forecast.take(order), order, running, pool)]
        return FixedOrderList(pending[i] for i in order.tolist())

    def _present_places(
        self, sequences: Sequences, forecast: SurvivalForecast, patience: float
    ) -> np.ndarray:
        return places(
            sequences,
            forecast,
            service=SERVICES[self._service],
            patience=patience,
            min_confidence=max(self._min_confidence, 0.0),
        )

    def _first_places(
        self, pending: Sequence[ScheduleRequest], present_places: np.ndarray
    ) -> np.ndarray:
        """Return the places of the requests' first appearance, shape ``(N,)``.

        The bound on overtaking needs places that do not move. A preempted request has generated
        tokens since, and gets a new place.
        """
        keys = [
            (request.request_id, request.arrived_time, request.num_decoded_tokens)
            for request in pending
        ]
        known = self._places
        self._places = {
            key: known.get(key, place) for key, place in zip(keys, present_places, strict=True)
        }
        return np.array([self._places[key] for key in keys])

    def _room(
        self,
        sequences: Sequences,
        forecast: SurvivalForecast,
        order: np.ndarray,
        running: Sequence[ScheduleRequest],
        pool: float,
    ) -> int:
        """Return how many of the queue fit, in its order; at least one if nothing runs."""
        peak = Peak(1, self._fit)
        # Without a threshold, a request without a prediction counts with its cap.
        threshold = self._min_confidence if self._min_confidence > 0.0 else -np.inf
        free = int(pool) - sum(_tokens(request) for request in running)
        if running:
            requests = [_request(request) for request in running]
            tokens = np.array([_tokens(request) for request in running])
            ahead = forecast_of(ask(self.lifetime_predictor, requests), requests)
            peak.add(peak.terms(tokens, ahead, threshold).sum(axis=0))
        count = 0
        confident = forecast.confidence >= threshold
        added_terms = peak.terms(sequences.tokens[order], forecast, threshold)
        for terms, sure in zip(np.cumsum(added_terms, axis=0), confident, strict=True):
            if sure and not peak.fits(terms, free):
                break
            count += 1
        return max(count, 0 if running else 1)


def _request(request: ScheduleRequest) -> PredictionRequest:
    features = {
        "prompt_length": len(request.token_ids),
        "arrival_time": request.arrived_time,
        **(getattr(request, "prompt_features", None) or {}),
    }
    return PredictionRequest(
        sequence_id=request.request_id,
        token_ids=request.token_ids,
        current_length=request.num_decoded_tokens,
        max_length=request.max_tokens or None,
        prompt_features=features,
    )


def _tokens(request: ScheduleRequest) -> int:
    return len(request.token_ids) + request.num_decoded_tokens


def _sequences(requests: Sequence[ScheduleRequest]) -> Sequences:
    tokens = np.array([_tokens(request) for request in requests])
    cached = np.array([request.prefix_cache_hit or 0 for request in requests])
    return Sequences(
        tokens=tokens,
        generated=np.array([request.num_decoded_tokens for request in requests]),
        recompute=np.maximum(tokens - cached, 1),
        arrival=np.array([request.arrived_time for request in requests], dtype=np.float64),
        # On page 2.4 the higher priority goes first, in the policies the lower.
        urgency=np.array([-int(request.priority) for request in requests]),
        preemptions=np.zeros(len(requests), dtype=np.int64),
        pinned=np.zeros(len(requests), dtype=bool),
    )


def _pace(results: Sequence[PredictionResult | None]) -> float:
    """Return the seconds per token implied by the predictions."""
    usable = [
        result for result in results if result is not None and result.estimated_remaining_tokens > 0
    ]
    tokens = sum(result.estimated_remaining_tokens for result in usable)
    seconds = sum(result.estimated_time for result in usable)
    return seconds / tokens if tokens and seconds > 0.0 else _SECONDS_PER_TOKEN
