"""The order of requests, and which way a priority counts, by name and never by a bare number."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.values import number


class Order(Enum):
    """Who goes first among waiting requests of one priority."""

    SHORTEST_FIRST = "shortest-first"
    LONGEST_FIRST = "longest-first"
    """What the package's own ``LifetimeAwarePolicy`` does."""
    ARRIVAL = "arrival"


class Polarity(Enum):
    """Which way a number of priority counts.

    The packages disagree: in ``sagellm_control`` (``RequestPriority``, ``TaskNode.priority``) 0 is
    the most urgent, in ``sagellm_protocol`` (``SchedulerRequest.priority``), ``sagellm_core``'s
    ``PriorityPolicy`` and ``PriorityEviction`` the higher number is.

    >>> Polarity.LOWER_FIRST.urgency(2) > Polarity.LOWER_FIRST.urgency(0)
    True
    >>> Polarity.HIGHER_FIRST.urgency(2) < Polarity.HIGHER_FIRST.urgency(0)
    True
    """

    LOWER_FIRST = "lower-first"
    HIGHER_FIRST = "higher-first"

    def urgency(self, priority: Any) -> float:
        """Return the class of a priority; the lowest goes first, and is evicted last.

        What is no finite number counts as 0: a priority may come from a client.
        """
        value = number(priority) or 0.0
        return value if self is Polarity.LOWER_FIRST else -value


MOST_OVERTAKEN: Final = 64
"""Default number of later requests of its class that may go before a request."""


def overtaking_order(
    service: np.ndarray, urgency: np.ndarray, overtaken: np.ndarray, most: int
) -> list[int]:
    """Return indices in the order to start them; no index is overtaken more than ``most`` times.

    Args:
        service: what counts, the lowest first, shape ``(N,)`` in the order of arrival.
        urgency: priority class, the lowest first, shape ``(N,)``.
        overtaken: later requests that went before each one already, shape ``(N,)``.
        most: bound on them, within a class; 0 is the order of arrival.

    >>> import numpy as np
    >>> urgency, before = np.zeros(4, dtype=int), np.zeros(4, dtype=int)
    >>> overtaking_order(np.array([9.0, 1.0, 2.0, 3.0]), urgency, before, 2)
    [1, 2, 0, 3]
    """
    order: list[int] = []
    for kind in np.unique(urgency):
        waiting = urgency == kind
        budget = most - overtaken
        by_service = iter(sorted(np.flatnonzero(waiting).tolist(), key=lambda i: (service[i], i)))
        following = next(by_service)
        for _ in range(int(waiting.sum())):
            while not waiting[following]:
                following = next(by_service)
            due = np.flatnonzero(waiting & (budget <= 0))
            # The earliest that may not be overtaken again, so that nobody before it is affected.
            chosen = int(due[0]) if len(due) else following
            waiting[chosen] = False
            budget[:chosen] -= waiting[:chosen]
            order.append(chosen)
    return order
