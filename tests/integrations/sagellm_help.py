"""Running sequences of known remaining lengths."""

from __future__ import annotations

from sagellm_lifetime import LifetimePredictorProtocol, PredictionRequest, PredictionResult
from sagellm_lifetime.integrations.sagellm import RunningSequences


class Tells(LifetimePredictorProtocol):
    """Total lengths by id; fails for an id that it was not told."""

    def __init__(self, totals):
        self.totals = totals
        self.learned = []

    def predict(self, request):
        left = max(self.totals[request.sequence_id] - request.current_length, 1)
        return PredictionResult(left, 0.9, left * 0.02)

    def update(self, sequence_id, actual_length, actual_time, *, finish_reason="stop"):
        self.learned.append((sequence_id, actual_length, actual_time, finish_reason))

    def get_metrics(self):
        return {}


def running(totals, **ages):
    """Sequences that run, each with a prompt of 10 tokens."""
    sequences = RunningSequences(Tells(totals))
    for name in totals:
        sequences.arrived(PredictionRequest(name, [], 0, None, {"prompt_length": 10}))
        sequences.progressed(name, ages.get(name, 0))
    return sequences
