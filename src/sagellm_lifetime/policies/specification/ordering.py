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
from sagellm_lifetime.policies.specification.settled import Settled
from sagellm_lifetime.policies.state import Sequences, SurvivalForecast

_PATIENCE: Final = 100.0
"""Seconds per second of service."""
_SECONDS_PER_TOKEN: Final = 0.02
"""As the predictors have it before they learned the pace."""
_NO_AGEING: Final = 1e9
"""Seconds per second of service: no arrival counts."""
_SERVICE: Final = {"cost-aware": "area", "shortest": "length"}
"""Orders by other names than in ``ordering.SERVICES``."""
ORDERS: Final = (*_SERVICE, *SERVICES)


class LifetimeAwarePass(OptimizationPass):
    """Puts waiting requests in the order in which they should start.

    What differs from the specification's example, and why:

    - Ids go to the predictor as they are. The example calls ``int`` on them, which fails on most
      ids of engines, takes "7" and "007" for one, and files the prediction under an id that the
      engine's ``update`` never names.
    - No request is left behind: it is overtaken only by requests that arrive within ``patience``
      times its own expected service. In the example a long request waits as long as shorter ones
      keep coming. ``order="shortest"`` does that, too.
    - The default order counts memory-time, since a long prompt holds memory as a long answer does.
    - Urgent requests go first; the example does not look at the priority.
    - What the predictor does not know (it failed, or learned nothing yet) or is not confident of
      (FAQ 2), takes the place of an average request: among such requests arrival decides.
    - The order stands: a later sort by arrival alone, which is the last step of page 2.4's own
      scheduler, leaves it as it is (:class:`Settled`).
    - With ``fit`` only those are returned that fit into the memory together with what runs; the
      example does not look at ``running`` and ``available_memory``.
    - The caller's list keeps its order. ``estimated_remaining_tokens`` is still set on requests.

    Args:
        lifetime_predictor: any predictor of the protocol.
        order: ``"cost-aware"``, the specification's ``"shortest"``, or a key of
            ``ordering.SERVICES``.
        patience: seconds a request may be overtaken for, per second of its expected service; 100 by
            default, and without bound for ``"shortest"``.
        min_confidence: below it a prediction is not believed.
        fit: probability with which the predicted peak of memory is to fit, below 1; 0 returns all.
        memory_per_token: in units of ``available_memory``; page 2.4 has 1 MB.

    Raises:
        UnknownNameError: no such order.
        RequestError: a probability or a size that cannot be.
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
        """As the specification calls it."""
        return "LifetimeAware"

    def apply(
        self,
        pending: Sequence[ScheduleRequest],
        running: Sequence[ScheduleRequest],
        available_memory: float,
    ) -> list[ScheduleRequest]:
        """The waiting requests, the one to start next first.

        Args:
            pending: waiting, of any class with the fields of :class:`ScheduleRequest`.
            running: running; they count for ``fit``.
            available_memory: free, in any unit (see ``memory_per_token``).
        """
        if not pending:
            self._places = {}
            return Settled()
        requests = [_request(each) for each in pending]
        results = ask(self.lifetime_predictor, requests)
        for request, result in zip(pending, results, strict=True):
            if result is not None:
                request.estimated_remaining_tokens = result.estimated_remaining_tokens
        forecast = forecast_of(results, requests)
        sequences = _sequences(pending)
        pool = available_memory / self._memory_per_token + sum(_tokens(each) for each in running)
        unit = _pace(results) / (max(pool, 1.0) if self._service == "area" else 1.0)
        spots = self._settle(pending, self._spots(sequences, forecast, self._patience * unit))
        order = in_line(sequences, spots)
        if self._fit:
            order = order[: self._room(sequences, forecast.take(order), order, running, pool)]
        return Settled(pending[i] for i in order.tolist())

    def _spots(
        self, sequences: Sequences, forecast: SurvivalForecast, patience: float
    ) -> np.ndarray:
        return places(
            sequences,
            forecast,
            service=SERVICES[self._service],
            patience=patience,
            min_confidence=max(self._min_confidence, 0.0),
        )

    def _settle(self, pending: Sequence[ScheduleRequest], spots: np.ndarray) -> np.ndarray:
        """Places as they were when each request was first seen.

        The bound on overtaking holds for places that do not move. One that was preempted has
        generated more since and gets a new one.
        """
        keys = [(each.request_id, each.arrived_time, each.num_decoded_tokens) for each in pending]
        known = self._places
        self._places = {key: known.get(key, spot) for key, spot in zip(keys, spots, strict=True)}
        return np.array([self._places[key] for key in keys])

    def _room(
        self,
        sequences: Sequences,
        forecast: SurvivalForecast,
        order: np.ndarray,
        running: Sequence[ScheduleRequest],
        pool: float,
    ) -> int:
        """How many of the line fit, in its order; the first, at least, where nothing runs."""
        peak = Peak(1, self._fit)
        # Without a threshold one of whom nothing is known counts, too: it runs into its cap.
        least = self._min_confidence if self._min_confidence > 0.0 else -np.inf
        free = int(pool) - sum(_tokens(each) for each in running)
        if running:
            requests = [_request(each) for each in running]
            tokens = np.array([_tokens(each) for each in running])
            ahead = forecast_of(ask(self.lifetime_predictor, requests), requests)
            peak.add(peak.terms(tokens, ahead, least).sum(axis=0))
        count = 0
        believed = forecast.confidence >= least
        each_adds = peak.terms(sequences.tokens[order], forecast, least)
        for terms, sure in zip(np.cumsum(each_adds, axis=0), believed, strict=True):
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
    tokens = np.array([_tokens(each) for each in requests])
    cached = np.array([each.prefix_cache_hit or 0 for each in requests])
    return Sequences(
        tokens=tokens,
        generated=np.array([each.num_decoded_tokens for each in requests]),
        recompute=np.maximum(tokens - cached, 1),
        arrival=np.array([each.arrived_time for each in requests], dtype=np.float64),
        # Page 2.4: the higher goes sooner. The policies: the lower.
        urgency=np.array([-int(each.priority) for each in requests]),
        preemptions=np.zeros(len(requests), dtype=np.int64),
        pinned=np.zeros(len(requests), dtype=bool),
    )


def _pace(results: Sequence[PredictionResult | None]) -> float:
    """Seconds per token, as the predictor's own answers have it."""
    told = [each for each in results if each is not None and each.estimated_remaining_tokens > 0]
    tokens = sum(each.estimated_remaining_tokens for each in told)
    seconds = sum(each.estimated_time for each in told)
    return seconds / tokens if tokens and seconds > 0.0 else _SECONDS_PER_TOKEN
