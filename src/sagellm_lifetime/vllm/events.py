"""What happens to sequences: written to one list, and dealt with many at a time.

Code that runs once in a while runs cold, at two to five times its cost, and the time limit of a
call costs two system calls. So a burst is gone through three times: the planner notes all of it;
the predictor is asked and told, in their order, in one call; then it is counted what came of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.vllm.circuit_breaker import Breaker
from sagellm_lifetime.vllm.prediction_statistics import Tally

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.forecaster import LiveForecaster
    from sagellm_lifetime.vllm.planner import Planner

CAME: Final = "came"
"""``(CAME, request, how it is described, None)``; not described, nobody is asked about it"""
RUNS: Final = "runs"
"""``(RUNS, its id, since when, None)``"""
WAITS: Final = "waits"
"""``(WAITS, request, since when, None)``"""
OVER: Final = "over"
"""``(OVER, request, seconds since it came, why)``"""
BEAM_STEP: Final = "beam step"
"""Why a request is over that was a step of beam search and no sequence."""
Event = tuple[str, Any, Any, Any]
Heard = list[tuple[int, float] | None]
"""What the predictor said to each event of a burst, as far as it got: the total length and the
confidence, where it was asked."""


class Burst:
    """Events of one engine core that are not dealt with.

    Args:
        breaker: goes round every call.
        tally: counts.
        forecaster: whom to ask; ``None`` where completions are only counted.

    Attributes:
        events: in their order.
        gone: who ended while nobody told the predictor.
    """

    def __init__(self, breaker: Breaker, tally: Tally, forecaster: LiveForecaster | None) -> None:
        self.events: list[Event] = []
        self.gone: list[str] = []
        self._breaker = breaker
        self._tally = tally
        self._forecaster = forecaster

    def deal(self, planner: Planner | None) -> None:
        """Deal with all; without a planner they are only counted."""
        events, self.events = self.events, []
        if planner is not None and planner.plan.fit:
            # Who starts to run is looked at, after it was asked about and before it is forgotten.
            for event in events:
                self._deal([event], planner)
        elif events:
            self._deal(events, planner)

    def _deal(self, events: Sequence[Event], planner: Planner | None) -> None:
        breaker = self._breaker
        heard: Heard = []
        if planner is not None and self._forecaster is not None:
            if planner.plan.fit:
                breaker.call(None, planner.note, events)
            else:
                breaker.quick(planner.note, events)
            breaker.call(None, self._forecaster.hear, events, heard)
        told = len(heard)
        tally = self._tally
        for i, (kind, request, seconds, why) in enumerate(events):
            if why is BEAM_STEP:
                tally.beam_step()
            elif kind is OVER:
                name = request.request_id
                predicted = tally.ended(name, request.num_output_tokens, seconds, why)
                if predicted and i >= told and breaker.state != "stuck":
                    self.gone.append(name)
            elif i < told and (answer := heard[i]) is not None:
                tally.predicted(request.request_id, *answer)
