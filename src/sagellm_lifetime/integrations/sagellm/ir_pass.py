"""An optimisation pass for ``sagellm_control.ir.IROptimizer``: start short tasks first."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.integrations.sagellm.orders import (
    MOST_OVERTAKEN,
    Order,
    Polarity,
    overtaking_order,
)
from sagellm_lifetime.integrations.sagellm.packages import CONTROL_PLANE, require
from sagellm_lifetime.integrations.sagellm.running import RunningSequences, sequences_or_new

require(CONTROL_PLANE, "a pass of the IR optimizer")

from sagellm_control.ir.optimizer import OptimizationPass  # noqa: E402

_REMAINING: Final = "lifetime_remaining_tokens"
_SECONDS: Final = "lifetime_remaining_s"


class LifetimeIRPass(OptimizationPass):
    """Order the tasks of a ``SchedulerIR`` by priority, then by predicted remaining tokens.

    A task moves with its prefill and decode nodes; edges and parallelism stay as they are. Its
    decode node gets the predicted latency, its task node the prediction as metadata. The order
    depends on when tasks were made and not on where they stand, so a second run changes nothing,
    and no task is overtaken by more than ``most_overtaken`` later ones of its priority. The pass
    never changes what a request may generate or what KV is allocated for it.

    Args:
        sequences: the running sequences, for requests that are known there; others are predicted
            from the fields of their nodes.
        order: who goes first.
        polarity: of ``TaskNode.priority``, where 0 is the most urgent.
        most_overtaken: bound on overtaking.
    """

    def __init__(
        self,
        sequences: RunningSequences | None = None,
        *,
        order: Order = Order.SHORTEST_FIRST,
        polarity: Polarity = Polarity.LOWER_FIRST,
        most_overtaken: int = MOST_OVERTAKEN,
    ) -> None:
        self.sequences = sequences_or_new(sequences)
        self.order = Order(order)
        self.polarity = Polarity(polarity)
        self._most_overtaken = most_overtaken

    @property
    def name(self) -> str:
        """Name of the pass in the optimizer's list."""
        return "lifetime_order"

    def optimize(self, ir: Any) -> Any:
        """Return ``ir`` with its tasks in the new order; the object is changed, as by its peers."""
        # The package gives two requests of one id the same node id: they move together.
        tasks = list({task.node_id: task for task in ir.get_task_nodes()}.values())
        if not tasks:
            return ir
        parts: dict[str, list[Any]] = {task.node_id: [] for task in tasks}
        others: list[Any] = []
        for node in ir.nodes:
            owner = node.node_id if node.node_id in parts else getattr(node, "task_id", "")
            parts.get(owner, others).append(node)
        line = sorted(tasks, key=lambda task: (task.created_at, task.node_id))
        requests = [self._request(task, parts[task.node_id]) for task in line]
        results = self.sequences.predictions(requests)
        remaining = self.sequences.forecast(requests).expected()
        for task, result in zip(line, results, strict=True):
            _annotate(task, parts[task.node_id], result)
        service = {
            Order.SHORTEST_FIRST: remaining,
            Order.LONGEST_FIRST: -remaining,
            Order.ARRIVAL: np.zeros(len(line)),
        }[self.order]
        urgency = np.array([self.polarity.urgency(task.priority) for task in line])
        overtaken = np.zeros(len(line), dtype=np.int64)
        order = overtaking_order(service, urgency, overtaken, self._most_overtaken)
        ir.nodes = [node for i in order for node in parts[line[i].node_id]] + others
        ir.optimization_hints["lifetime_order"] = [line[i].request_id for i in order]
        return ir

    def _request(self, task: Any, nodes: list[Any]) -> PredictionRequest:
        known = self.sequences.request(task.request_id)
        if known is not None:
            return known
        prompt = max((getattr(node, "input_token_count", 0) for node in nodes), default=0)
        return PredictionRequest(
            sequence_id=str(task.request_id),
            token_ids=[],
            current_length=0,
            max_length=int(task.max_tokens) if task.max_tokens > 0 else None,
            prompt_features={
                "prompt_length": int(prompt) or max(len(task.prompt) // 4, 1),
                "model": str(task.model_id),
                "arrival_time": task.created_at.timestamp(),
            },
        )


def _annotate(task: Any, nodes: list[Any], result: Any) -> None:
    if result is None:
        return
    task.metadata[_REMAINING] = int(result.estimated_remaining_tokens)
    task.metadata[_SECONDS] = float(result.estimated_time)
    for node in nodes:
        if getattr(node, "operation", "") == "decode":
            node.estimated_latency_ms = 1e3 * float(result.estimated_time)
