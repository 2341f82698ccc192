"""Whether decisions pay where half of the clients were never met; used by ``strangers.py``.

The reasoning trace at overload through vLLM's scheduler: trained on the earlier 70 % of the rows of
half of the clients, replayed with requests of all clients from the later 30 %, which it learns from
as it goes. Needs the ``[vllm]`` extra.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.history.splits import split

TRACE = "servegen_reasoning"
BLOCKS = 3000
REQUESTS = 300
COST = "a100-7b"
TUNED, OURS, ORACLE = "fcfs-watermark", "lifetime", "lifetime-oracle"
COMPARED = (
    ("mean_latency_s", "mean", 0.5),
    ("p99_latency_s", "p99", 1.03),
    ("max_wait_s", "longest wait", 1.10),
)


def has_vllm() -> bool:
    """Say whether vLLM is installed."""
    return find_spec("vllm") is not None


def half_of_the_clients(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Rows of a random half of the clients."""
    clients = sorted(frame["client_id"].drop_nulls().unique().to_list())
    chosen = np.random.default_rng(seed).permutation(clients)[: len(clients) // 2]
    return frame.filter(pl.col("client_id").is_in(chosen.tolist()))


def replayed(
    predictor: Any, frame: pl.DataFrame, seed: int, requests: int = REQUESTS
) -> dict[str, tuple[float, float]]:
    """Metrics as ratios to the tuned watermark's: of the predictor, and of known lengths."""
    from sagellm_lifetime.replay.compare import replay
    from sagellm_lifetime.replay.cost import cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.load import at_load
    from sagellm_lifetime.replay.planned import planned_policies
    from sagellm_lifetime.replay.policies import POLICIES
    from sagellm_lifetime.replay.trace import make_trace, sample

    cut = split(frame)
    trace = make_trace(sample(cut.test, requests, seed=seed), seed=seed)
    cost, engine = cost_model(COST), EngineSettings(blocks=BLOCKS, prefix_caching=False)
    trace = at_load("overload", trace, engine, cost).trace
    known = POLICIES | planned_policies(predictor.fit(half_of_the_clients(cut.train, seed)))
    tuned, ours, oracle = (
        replay(trace, engine, cost, known[policy]).metrics for policy in (TUNED, OURS, ORACLE)
    )
    return {
        name: (ours[metric] / tuned[metric], oracle[metric] / tuned[metric])
        for metric, name, _ in COMPARED
    }
