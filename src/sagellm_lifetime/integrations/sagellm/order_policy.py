"""The control plane's ``LifetimeAwarePolicy`` with the order as a parameter.

The package's own puts the longest request first and looks at no priority.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from math import nan
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import LifetimeError, reason_of, shown
from sagellm_lifetime.integrations.sagellm.orders import (
    MOST_OVERTAKEN,
    Order,
    Polarity,
    overtaking_order,
)
from sagellm_lifetime.integrations.sagellm.packages import CONTROL_PLANE, require

require(CONTROL_PLANE, "ordering requests in the control plane")

from sagellm_control.policies.lifetime_aware import LifetimeAwarePolicy  # noqa: E402
from sagellm_control.predictor.types import RequestInfo  # noqa: E402

_LOG: Final = logging.getLogger(__name__)
_REMEMBERED: Final = 65_536


class LifetimeOrderPolicy(LifetimeAwarePolicy):
    """Order waiting requests by priority, then by predicted seconds, with bounded overtaking.

    Args:
        predictor: seconds per request.
        order: who goes first.
        polarity: of ``RequestMetadata.priority``; in the control plane 0 is the most urgent.
        most_overtaken: later requests of its class that may go before a request.
        options: of the package's ``LifetimeAwarePolicy``.
    """

    def __init__(
        self,
        predictor: Any,
        *,
        order: Order = Order.SHORTEST_FIRST,
        polarity: Polarity = Polarity.LOWER_FIRST,
        most_overtaken: int = MOST_OVERTAKEN,
        **options: Any,
    ) -> None:
        super().__init__(predictor=predictor, **options)
        self.order = Order(order)
        self.polarity = Polarity(polarity)
        self._lifetimes = predictor
        self._most_overtaken = most_overtaken
        self._overtaken: OrderedDict[str, int] = OrderedDict()

    def reorder_queue(self, requests: Sequence[Any]) -> list[Any]:
        """Return the waiting requests in the order to start them; the argument is not changed.

        The position in ``requests`` breaks ties, and the overtaking of a request is counted when it
        is still waiting at the next call while a later one is gone.
        """
        line = sorted(requests, key=lambda request: request.arrival_time.timestamp())
        if len(line) < 2:
            # The manager asks so about each request that it places, whatever else waits.
            return line
        self._count(line)
        service = np.array([self._service(request) for request in line])
        unknown = np.isnan(service)
        if unknown.any():  # they count as an average request
            service[unknown] = 0.0 if unknown.all() else service[~unknown].mean()
        urgency = np.array([self.polarity.urgency(request.priority) for request in line])
        before = np.array([self._overtaken.get(request.request_id, 0) for request in line])
        order = overtaking_order(service, urgency, before, self._most_overtaken)
        return [line[i] for i in order]

    def _service(self, request: Any) -> float:
        if self.order is Order.ARRIVAL:
            return 0.0
        try:
            seconds = float(self._lifetimes.predict(_info(request)))
        except Exception as error:  # noqa: BLE001 - as in the package: the queue goes on
            _LOG.warning("No prediction for %s: %s", shown(request.request_id), reason_of(error))
            return nan
        return seconds if self.order is Order.SHORTEST_FIRST else -seconds

    def _count(self, line: Sequence[Any]) -> None:
        """Count, for each waiting request, the later ones that have left since the last call."""
        known, present = self._overtaken, {request.request_id for request in line}
        behind_gone, counts = 0, {}
        for request_id in reversed(known):
            if request_id in present:
                counts[request_id] = known[request_id] + behind_gone
            else:
                behind_gone += 1
        self._overtaken = OrderedDict(
            (request.request_id, counts.get(request.request_id, 0))
            for request in line[:_REMEMBERED]
        )


def _info(request: Any) -> Any:
    prompt = request.prompt or ""
    return RequestInfo(
        request_id=request.request_id,
        model_name=request.model_id,
        prompt_length=request.prompt_tokens or max(len(prompt) // 4, 1),
        max_output_length=request.max_tokens,
        priority=int(request.priority),
        arrival_time=request.arrival_time,
        request_type=request.request_type.value,
        metadata=dict(request.metadata),
    )


def use_order(manager: Any, order: Order, **options: Any) -> LifetimeOrderPolicy:
    """Give a ``ControlPlaneManager`` an order of its own, and return the policy that it uses now.

    Args:
        manager: built with ``predictor=`` and ``enable_predictor=True``.
        order: who goes first.
        options: of :class:`LifetimeOrderPolicy`.

    Raises:
        LifetimeError: the manager has no predictor, or is none of the known version.
    """
    if not hasattr(manager, "_policy") or getattr(manager, "_predictor", None) is None:
        raise LifetimeError(
            "order needs a ControlPlaneManager with a predictor: "
            'ControlPlaneManager(scheduling_policy="lifetime_aware", '
            "predictor=RequestLifetimePredictor(), enable_predictor=True)"
        )
    options = {"scheduler_bridge": getattr(manager, "_scheduler_bridge", None), **options}
    policy = LifetimeOrderPolicy(manager._predictor, order=order, **options)
    manager._policy = policy
    return policy
