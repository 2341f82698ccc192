"""A planner that comes to a running engine, and gets to know all that is there.

In pieces: a queue may be tens of thousands long, and a call that takes long counts as a hang, which
is for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.vllm.beam_search import is_beam_step
from sagellm_lifetime.vllm.circuit_breaker import Breaker
from sagellm_lifetime.vllm.forecaster import LiveForecaster
from sagellm_lifetime.vllm.planner import Planner

PIECE: Final = 256
"""Sequences described and asked about in one call."""
Describe = Callable[[Any], PredictionRequest]


def adopted(
    breaker: Breaker,
    make: Callable[[], Planner],
    forecaster: LiveForecaster,
    describe: Describe,
    waiting: Sequence[Any],
    running: Sequence[Any],
) -> Planner | None:
    """It, or nothing after a fault."""
    planner = breaker.call(None, make)
    for tell, requests in ((forecaster.foresee, waiting), (forecaster.grown, running)):
        for i in range(0, len(requests), PIECE):
            breaker.call(None, _introduce, forecaster, tell, describe, requests[i : i + PIECE])
    if planner is not None:
        breaker.call(None, planner.adopt, waiting, running)
    return planner if breaker.allows else None


def _introduce(
    forecaster: LiveForecaster,
    tell: Callable[[Sequence[PredictionRequest]], None],
    describe: Describe,
    requests: Sequence[Any],
) -> None:
    asked = []
    for request in requests:
        if is_beam_step(request):
            forecaster.step_of_beam(request.request_id)
        else:
            asked.append(describe(request))
    if asked:
        tell(asked)
