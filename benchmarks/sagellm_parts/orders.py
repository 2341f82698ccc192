"""Orders of a queue in front of sageLLM's real ``ControlPlaneManager``, measured.

The manager itself never reorders: it gives each request to an engine at once. So the queue stands
in front of it, as in a gateway with a bound on concurrent requests: whenever a slot is free, the
manager's policy orders the queue and the first goes to the manager, which learns from its end.
"""

from __future__ import annotations

import asyncio
import heapq
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from sagellm_control.manager import ControlPlaneManager
from sagellm_control.types import EngineState, RequestMetadata

from sagellm_lifetime.integrations.sagellm import Order, RequestLifetimePredictor
from sagellm_lifetime.integrations.sagellm.order_policy import use_order

STEP_S, PREFILL_S = 0.03, 0.0001
CASES = (
    "arrival",
    "longest first, its own policy and heuristic",
    "longest first, its own policy, our predictor",
    "longest first",
    "shortest first",
    "shortest first, without a bound",
)
_START = datetime(2026, 1, 1)


def _manager(case: str) -> Any:
    predictor = None if "heuristic" in case else RequestLifetimePredictor()
    manager = ControlPlaneManager(
        scheduling_policy="lifetime_aware", predictor=predictor, enable_predictor=True
    )
    manager.register_engine("engine", model_id="m", host="localhost", port=1)
    manager.update_engine_state("engine", EngineState.READY)
    if "its own" not in case:
        names = {"arrival": Order.ARRIVAL, "longest": Order.LONGEST_FIRST}
        order = names.get(case.partition(" ")[0].strip(","), Order.SHORTEST_FIRST)
        bound = {"most_overtaken": 10**9} if "without a bound" in case else {}
        use_order(manager, order, **bound)
    return manager


async def _serve(
    rows: list[dict[str, Any]], case: str, slots: int, load: float
) -> dict[str, float]:
    manager = _manager(case)
    seconds = np.array([STEP_S * r["actual_length"] + PREFILL_S * r["prompt_length"] for r in rows])
    arrivals = np.array([row["arrival_time"] for row in rows])
    arrivals = (arrivals - arrivals[0]) * (seconds.sum() / slots / load) / np.ptp(arrivals)
    waiting: list[Any] = []
    busy: list[tuple[float, int]] = []
    now, coming, latency, wait = 0.0, 0, np.zeros(len(rows)), np.zeros(len(rows))
    while coming < len(rows) or waiting or busy:
        if waiting and len(busy) < slots:
            first = manager._get_policy().reorder_queue(waiting)[0]
            waiting.remove(first)
            i = int(first.request_id)
            await manager.schedule_request(
                first.request_id, "t", "m", "x" * 4 * rows[i]["prompt_length"], max_tokens=2048
            )
            wait[i] = now - arrivals[i]
            heapq.heappush(busy, (now + seconds[i], i))
            continue
        if coming < len(rows) and (not busy or arrivals[coming] <= busy[0][0]):
            now = arrivals[coming]
            row = rows[coming]
            waiting.append(
                RequestMetadata(str(coming), model_id="m", prompt="", max_tokens=2048,
                                prompt_tokens=row["prompt_length"],
                                arrival_time=_START + timedelta(seconds=float(now)))
            )  # fmt: skip
            coming += 1
        else:
            now, i = heapq.heappop(busy)
            latency[i] = now - arrivals[i]
            manager.complete_request(str(i), "engine", actual_lifetime=float(seconds[i]))
    return {
        "mean_s": float(latency.mean()),
        "p50_s": float(np.median(latency)),
        "p99_s": float(np.quantile(latency, 0.99)),
        "max_wait_s": float(wait.max()),
        "makespan_s": now,
    }


def run(frame: pl.DataFrame, case: str, *, slots: int = 32, load: float = 1.1) -> dict[str, float]:
    """Serve the rows of a history, at ``load`` times what the slots can do, and return figures."""
    return asyncio.run(_serve(frame.to_dicts(), case, slots, load))
