"""The statistics of one engine core's predictions.

``predictions = completions + censored + running`` always holds, even after faults: sequences
without a prediction are counted apart, and so are steps of beam search.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Final

from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.forking import register
from sagellm_lifetime.core.scores import Scores
from sagellm_lifetime.vllm.recent_predictions import FirstPrediction, RecentPredictions

_MOST_DISTRIBUTIONS: Final = 4096
"""Present sequences whose whole predicted distribution is kept."""


class PredictionStatistics:
    """Counts of predictions and ends; the engine's thread writes, any thread reads.

    Attributes:
        recent: first predictions of the last completions, and their lengths.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self.recent = RecentPredictions()
        self._running: dict[str, FirstPrediction] = {}
        self._scores = Scores()
        self._predictions = 0
        self._unpredicted = 0
        self._beam_steps = 0
        self._reasons: dict[str, int] = {}
        self._tokens = 0
        self._seconds = 0.0
        register(self)

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self, *, whole: bool) -> None:
        # A new lock suffices: at worst a count of the child process is off by one.
        if not whole:
            self._lock = Lock()

    def predicted(
        self,
        request_id: str,
        total: int,
        confidence: float,
        distribution: LengthDistribution | None = None,
    ) -> None:
        """Record the first prediction of a sequence; later ones are ignored.

        Args:
            request_id: of the sequence.
            total: predicted total length, tokens.
            confidence: of the prediction, 0 to 1.
            distribution: of the tokens that remain, if the predictor gave one.
        """
        with self._lock:
            if request_id not in self._running:
                if len(self._running) >= _MOST_DISTRIBUTIONS:
                    distribution = None
                self._running[request_id] = FirstPrediction(total, confidence, distribution)
                self._predictions += 1

    def ended(self, request_id: str, length: int, seconds: float, reason: str) -> bool:
        """Record the end of a sequence; return True if it was predicted.

        Args:
            request_id: of the sequence.
            length: generated tokens.
            seconds: since its arrival.
            reason: ``stop``, ``length``, ``abort`` or ``error``.
        """
        with self._lock:
            prediction = self._running.get(request_id)
            if prediction is None:
                self._unpredicted += 1
                return False
            # Before the removal, so that after an error the sequence still counts as running.
            self._scores.ended(reason, length, (prediction.total, prediction.confidence))
            del self._running[request_id]
            if reason == "stop":
                self.recent.add(prediction, length)
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
            if reason in ("stop", "length"):
                self._tokens += length
                self._seconds += seconds
            return True

    def beam_step(self) -> None:
        """Count an ended step of beam search."""
        with self._lock:
            self._beam_steps += 1

    def first(self, request_id: str) -> FirstPrediction | None:
        """Return the first prediction of a sequence that has not ended."""
        # Without the lock: one look into a dictionary is consistent, and this thread may not wait.
        return self._running.get(request_id)

    def running(self) -> list[str]:
        """Return the ids of the predicted sequences that have not ended."""
        with self._lock:
            return list(self._running)

    def snapshot(self) -> dict[str, Any]:
        """Return all figures at one moment, under the names of ``get_metrics``."""
        with self._lock:
            scores = self._scores
            return {
                **scores.metrics(self._predictions),
                "completions": scores.completions,
                "censored": scores.censored,
                "scored": scores.scored,
                "capped": scores.capped,
                "running": len(self._running),
                "unpredicted": self._unpredicted,
                "beam_steps": self._beam_steps,
                "finish_reasons": dict(self._reasons),
                "seconds_per_token": self._seconds / self._tokens if self._tokens else None,
                "sums": {
                    "scored": scores.scored,
                    "absolute_error": scores.absolute,
                    "squared_error": scores.squared,
                    "within_10_percent": scores.hits,
                    "confidence": scores.confidence,
                    "tokens": self._tokens,
                    "seconds": self._seconds,
                },
            }
