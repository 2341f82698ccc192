"""Predictors, candidates and requests for the tests of the specification's examples."""

from __future__ import annotations

from dataclasses import replace

from policy_help import log_logistic

from sagellm_lifetime import LengthDistribution, LifetimePredictorProtocol, PredictionResult
from sagellm_lifetime.policies.specification import EvictionCandidate, ScheduleRequest


class Says(LifetimePredictorProtocol):
    """Remaining tokens by id; notes what it is asked, and fails for an id it was not told.

    Args:
        remaining: tokens, by id; 7 and "7" are one, as the examples call ``int`` on ids.
        confidence: of every answer.
        source: of every answer.
    """

    def __init__(self, remaining, *, confidence=0.9, source="model") -> None:
        self.remaining = {str(name): tokens for name, tokens in dict(remaining).items()}
        self.confidence = confidence
        self.source = source
        self.asked: list = []

    def predict(self, request) -> PredictionResult:
        self.asked.append(request)
        tokens = self.remaining[str(request.sequence_id)]
        return PredictionResult(tokens, self.confidence, tokens * 0.02, None, self.source)

    def update(self, *args, **kwargs) -> None:
        raise AssertionError("a policy never teaches")

    def get_metrics(self):
        return {}


class Spread(Says):
    """As :class:`Says`, with a distribution: log-logistic, of these standard deviations of the log.

    Args:
        remaining: medians, by id.
        log_sd: by id.
    """

    def __init__(self, remaining, log_sd) -> None:
        super().__init__(remaining)
        self.log_sd = log_sd

    def predict(self, request) -> PredictionResult:
        row = log_logistic(self.remaining[request.sequence_id], self.log_sd[request.sequence_id])
        return replace(super().predict(request), distribution=LengthDistribution(row))


class Broken(Says):
    """Fails always."""

    def __init__(self) -> None:
        super().__init__({})


def candidate(sequence_id, blocks=4, *, access=0.0, length=100, cap=2000, **more):
    """A candidate with blocks of its own: a count of them, or their ids."""
    if isinstance(blocks, int):
        blocks = [(sequence_id, i) for i in range(blocks)]
    fields = {"access_count": 1, "priority": 1, "is_pinned": False} | more
    return EvictionCandidate(
        sequence_id=sequence_id,
        block_ids=list(blocks),
        last_access_time=access,
        sequence_length=length,
        max_length=cap,
        **fields,
    )


def request(request_id, *, at=0.0, prompt=10, cap=1000, **more) -> ScheduleRequest:
    """A waiting request."""
    return ScheduleRequest(
        request_id=request_id,
        token_ids=list(range(prompt)),
        max_tokens=cap,
        arrived_time=at,
        **more,
    )


def ids(requests) -> list[str]:
    return [each.request_id for each in requests]
