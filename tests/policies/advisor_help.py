"""What an advisor sees of an engine: sequences, their queue and a clock."""

from dataclasses import dataclass

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.policies.events import Admitted, Arrived, Finished, Preempted, Progressed
from sagellm_lifetime.policies.plan import Plan
from sagellm_lifetime.policies.plan_advisor import PlanAdvisor


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@dataclass(eq=False)
class View:
    """A sequence that a test changes as it likes."""

    id: str
    tokens: int
    arrival: float = 0.0
    priority: int = 0
    generated: int = 0
    preemptions: int = 0
    is_prefilling: bool = False
    cached: object = staticmethod(lambda view: 0)

    def cached_tokens(self):
        return self.cached(self)

    def arrival_request(self):
        return PredictionRequest(self.id, [], 0, None)

    updated_request = arrival_request


class Desk:
    """An advisor, told and asked as the mixin does it."""

    def __init__(self, advisor, clock, cached=lambda view: 0):
        self.advisor, self.clock, self.cached = advisor, clock, cached

    def arrived(self, view):
        view.cached = self.cached
        self.advisor.on_events([Arrived(view, self.clock())])

    def admitted(self, name, at=None):
        self.advisor.on_events([Admitted(name, self.clock() if at is None else at)])

    def preempted(self, name, at=None):
        self.advisor.on_events([Preempted(name, self.clock() if at is None else at)])

    def finished(self, view, reason="stop"):
        self.advisor.on_events([Finished(view.id, view.generated, 1.0, reason, self.clock())])

    def step(self, seconds=None):
        self.advisor.on_events([Progressed(seconds, self.clock())])

    def order(self, waiting, free=1 << 40):
        """Ask for an order and carry it out on the list."""
        order = self.advisor.order(waiting, free)
        if order is not None:
            waiting[: len(order)] = [waiting[place] for place in order]

    def record(self, name):
        return self.advisor._records[name]


def desk(clock, forecaster, plan=None, *, cached=lambda view: 0, **options):
    options = {"total_blocks": 100, "block_size": 16, **options}
    return Desk(PlanAdvisor(plan or Plan(), forecaster, clock=clock, **options), clock, cached)
