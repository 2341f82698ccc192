"""The ``LifetimePredictor`` of ``sagellm_control.predictor``: seconds per request.

The control plane tells seconds and never a number of tokens, so this predictor learns durations
themselves, in ticks: what is a token to a predictor of this package is a tick of time here.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any, Final

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import LifetimePredictorProtocol, PredictionRequest
from sagellm_lifetime.integrations.sagellm.packages import CONTROL_PLANE, require
from sagellm_lifetime.integrations.sagellm.running import RunningSequences

require(CONTROL_PLANE, "predicting seconds for the control plane")

from sagellm_control.predictor.base import LifetimePredictor  # noqa: E402
from sagellm_control.predictor.types import PredictionResult  # noqa: E402

_SLOWEST_TICKS: Final = 10
"""Ticks per token allowed for, so that a request's cap on tokens is a cap on ticks: 5 tokens/s."""
_FEATURES: Final = ("model_name", "prompt_length", "max_output_length", "arrival_time", "metadata")


class RequestLifetimePredictor(LifetimePredictor):
    """Predict the seconds from the start of a request to its end.

    Use it as ``ControlPlaneManager(scheduling_policy="lifetime_aware", predictor=…,
    enable_predictor=True)``. It learns from ``manager.complete_request(id, engine,
    actual_lifetime=seconds)``. The manager passes on no metadata of a request, so what else is
    known of it (``client_id`` and other ``prompt_features``) is joined by its id from
    ``sequences``.

    Args:
        config: the package's dictionary; ``predictor`` names one of this package (``survival``)
            and ``tick_s`` sets the resolution (0.02 s).
        predictor: an object instead; it learns ticks, so share it with nothing that learns tokens.
        sequences: the running sequences, for their ``prompt_features``.

    Raises:
        RequestError: ``tick_s`` is not positive.
    """

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        *,
        predictor: LifetimePredictorProtocol | None = None,
        sequences: RunningSequences | None = None,
    ) -> None:
        super().__init__(config)
        options = dict(config or {})
        self.tick_s = float(options.get("tick_s", 0.02))
        if not (math.isfinite(self.tick_s) and self.tick_s > 0.0):
            raise RequestError(f"tick_s must be positive, got {shown(self.tick_s)}")
        if predictor is None:
            from sagellm_lifetime.predictor.registry import create_predictor

            predictor = create_predictor(options.get("predictor", "survival"))
        self.predictor = predictor
        self._sequences = sequences
        self._caps: dict[str, int] = {}
        self._confidence = 0.0
        self._lock = Lock()

    def predict(self, request_info: Any) -> float:
        """Return the expected seconds of a request, above 0: the median.

        Raises:
            ValueError: the request has an impossible value.
        """
        return self._ask(request_info)[0]

    def predict_detailed(self, request_info: Any) -> Any:
        """Return the package's ``PredictionResult``, with the confidence of this prediction."""
        seconds, confidence = self._ask(request_info)
        return PredictionResult(
            request_id=request_info.request_id,
            predicted_lifetime=seconds,
            confidence=confidence,
            features_used=self.get_features_used(),
            metadata={"confidence": "probability that the prediction is within 10 %"},
        )

    def update(self, request_id: str, actual_lifetime: float) -> None:
        """Learn from a completed request; one that was never predicted is left out.

        Args:
            request_id: of the request.
            actual_lifetime: seconds from its start to its end.

        Raises:
            ValueError: the seconds are not positive and finite.
        """
        if not (math.isfinite(actual_lifetime) and actual_lifetime > 0.0):
            raise RequestError(f"actual_lifetime must be positive, got {shown(actual_lifetime)}")
        with self._lock:
            cap = self._caps.pop(str(request_id), None)
            if cap is None:
                return
            ticks = max(round(actual_lifetime / self.tick_s), 1)
            if ticks < cap:
                self.predictor.update(str(request_id), ticks, actual_lifetime)
            else:  # slower than allowed for: all that is known is that it took at least so long
                self.predictor.update(str(request_id), cap, actual_lifetime, finish_reason="length")

    def get_confidence(self) -> float:
        """Return the confidence of the newest prediction, the calibrated chance to be within 10 %.

        The package asks for one figure for all requests; :meth:`predict_detailed` has each its own.
        """
        return self._confidence

    def get_features_used(self) -> list[str]:
        """Return the fields of ``RequestInfo`` that count."""
        return list(_FEATURES)

    def get_statistics(self) -> dict[str, Any]:
        """Return the predictor's running metrics; lengths in ticks of ``tick_s`` seconds."""
        return {**self.predictor.get_metrics(), "tick_s": self.tick_s, "open": len(self._caps)}

    def _ask(self, info: Any) -> tuple[float, float]:
        request_id = str(info.request_id)
        cap = int(info.max_output_length) * _SLOWEST_TICKS
        hints = dict(info.metadata) if isinstance(info.metadata, dict) else {}
        known = None if self._sequences is None else self._sequences.request(request_id)
        if known is not None:
            hints |= known.prompt_features or {}
        request = PredictionRequest(
            sequence_id=request_id,
            token_ids=[],
            current_length=0,
            max_length=cap,
            prompt_features={
                "prompt_length": int(info.prompt_length),
                **hints,
                "model": str(info.model_name),
                "arrival_time": info.arrival_time.timestamp(),
            },
        )
        with self._lock:
            result = self.predictor.predict(request)
            self._caps[request_id] = cap
            while len(self._caps) > 65_536:
                del self._caps[next(iter(self._caps))]
            self._confidence = result.confidence
        return max(result.estimated_remaining_tokens, 1) * self.tick_s, result.confidence
