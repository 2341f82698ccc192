"""The plug-in of ``sagellm_core``'s schedulers: entry point ``lifetime`` of ``sagellm.schedulers``.

Being installed changes nothing: ``ContinuousBatchingScheduler(policy_name="lifetime")`` uses it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError, reason_of, shown
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import whole
from sagellm_lifetime.integrations.sagellm.orders import (
    MOST_OVERTAKEN,
    Order,
    Polarity,
    overtaking_order,
)
from sagellm_lifetime.integrations.sagellm.packages import CORE, require
from sagellm_lifetime.integrations.sagellm.running import RunningSequences
from sagellm_lifetime.policies.reservation import Peak

require(CORE, "a scheduler of sageLLM's core")

from sagellm_core.plugin.scheduler_plugin import SchedulerPlugin, SchedulerPluginMeta  # noqa: E402

NAME: Final = "lifetime"
_LOG: Final = logging.getLogger(__name__)


class LifetimePolicy:
    """Admit waiting requests by priority and predicted length, as far as memory will suffice.

    The registry makes a policy without arguments, so what it uses are attributes of the class; set
    them before the scheduler is built. ``sequences`` is where the engine reports progress and ends:
    the scheduler tells a policy neither.
    """

    sequences: RunningSequences | None = None
    order: Order = Order.SHORTEST_FIRST
    polarity: Polarity = Polarity.HIGHER_FIRST
    """Of ``priority``; the higher number goes first in ``sagellm_core``'s ``PriorityPolicy``."""
    most_overtaken: int = MOST_OVERTAKEN
    fit: float = 0.95
    """Required probability that the predicted peak of memory fits into the pool."""

    def __init__(self) -> None:
        if self.sequences is None:
            type(self).sequences = RunningSequences()
        assert self.sequences is not None
        self._known = self.sequences
        self._overtaken: OrderedDict[str, int] = OrderedDict()

    def select_next(
        self, waiting: list[Any], running: list[Any], kv_bridge: Any, config: Any
    ) -> list[Any]:
        """Return the requests to admit, in their order; the lists are not changed.

        Args:
            waiting: requests in the order of arrival.
            running: requests that run.
            kv_bridge: ``can_alloc(tokens)`` and ``get_stats()`` of the pool.
            config: ``max_batch_size`` and ``max_num_seqs``.
        """
        room = min(config.max_batch_size, config.max_num_seqs) - len(running)
        if room <= 0 or not waiting:
            return []
        requests = [self._arrived(request) for request in waiting]
        forecast = self._known.forecast(requests)
        remaining = forecast.expected()
        service = {
            Order.SHORTEST_FIRST: remaining,
            Order.LONGEST_FIRST: -remaining,
            Order.ARRIVAL: np.zeros(len(waiting)),
        }[Order(self.order)]
        urgency = np.array([self.polarity.urgency(_priority(request)) for request in waiting])
        before = np.array([self._overtaken.get(request.request_id, 0) for request in waiting])
        line = overtaking_order(service, urgency, before, self.most_overtaken)
        prompts = np.array([_prompt_length(request) for request in requests])
        ahead = Peak(1, self.fit)
        terms = ahead.terms(prompts, forecast)
        available = float(kv_bridge.get_stats()["available_tokens"])
        self._count_running(ahead, running)
        admitted: list[int] = []
        for i in line:
            tokens = int(prompts[[*admitted, i]].sum())
            newcomers = terms[[*admitted, i]].sum(axis=0)
            alone = not running and not admitted
            if len(admitted) >= room or not kv_bridge.can_alloc(tokens):
                break
            if not ahead.fits(newcomers, available) and not alone:
                break
            admitted.append(i)
        self._count(waiting, admitted)
        return [waiting[i] for i in admitted]

    def _count_running(self, ahead: Peak, running: Sequence[Any]) -> None:
        requests = [self._arrived(request) for request in running]
        if requests:
            held = np.array([_prompt_length(r) + r.current_length for r in requests])
            ahead.add(ahead.terms(held, self._known.forecast(requests)).sum(axis=0))

    def _arrived(self, request: Any) -> PredictionRequest:
        known = self._known.request(request.request_id)
        if known is not None:
            return known
        question = _question(request)
        try:
            self._known.arrived(question)
        except Exception as error:  # noqa: BLE001 - neither a client nor a predictor stops the engine
            _LOG.warning("Request %s: %s", shown(request.request_id), reason_of(error))
            question = replace(question, prompt_features=_bare(question))
            if isinstance(error, RequestError):  # what the client said of it is left out
                self._known.arrived(question)
        return question

    def _count(self, waiting: Sequence[Any], admitted: Sequence[int]) -> None:
        gone = set(admitted)
        self._overtaken = OrderedDict(
            (
                request.request_id,
                self._overtaken.get(request.request_id, 0) + sum(1 for j in gone if j > i),
            )
            for i, request in enumerate(waiting)
            if i not in gone
        )


def _priority(request: Any) -> Any:
    metadata = request.metadata if isinstance(getattr(request, "metadata", None), Mapping) else {}
    return getattr(request, "priority", metadata.get("priority", 0))


def _bare(request: PredictionRequest) -> dict[str, Any]:
    """Return only the prompt features that the adapter itself has set."""
    features = request.prompt_features or {}
    return {"prompt_length": features["prompt_length"], "model": features["model"]}


def _prompt_length(request: PredictionRequest) -> int:
    return int((request.prompt_features or {}).get("prompt_length", 0))


def _question(request: Any) -> PredictionRequest:
    """Return the question to the predictor about a request of ``sagellm_protocol``."""
    metadata = request.metadata if isinstance(getattr(request, "metadata", None), Mapping) else {}
    words = len((getattr(request, "prompt", "") or "").split())
    features = {
        **metadata,
        # The scheduler itself counts words where it has no token ids.
        "prompt_length": max(whole(metadata.get("prompt_length")) or words, 1),
        "model": str(getattr(request, "model", "")),
    }
    return PredictionRequest(
        sequence_id=str(request.request_id),
        token_ids=[],
        current_length=0,
        max_length=int(request.max_tokens),
        prompt_features=features,
    )


class LifetimeSchedulerPlugin(SchedulerPlugin):
    """Bring the policy ``lifetime`` to ``sagellm_core``."""

    @classmethod
    def meta(cls) -> Any:
        """Return what the registry shows."""
        from sagellm_lifetime import __version__

        return SchedulerPluginMeta(
            name=NAME,
            display_name="Lifetime prediction",
            description="Shortest predicted first, bounded overtaking, memory ahead of need.",
            vendor="isagellm-lifetime",
            version=__version__,
        )

    @classmethod
    def policy_classes(cls) -> dict[str, type]:
        """Return the policies by name."""
        return {NAME: LifetimePolicy}
