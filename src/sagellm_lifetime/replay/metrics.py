"""The figures of a run: the keys of ``replay --json``, and measured ones."""

from __future__ import annotations

import numpy as np

from sagellm_lifetime.replay.result import RunResult

GOOD_SECONDS_PER_TOKEN = 0.2
"""Largest latency of a well-served request, in seconds per generated token."""


def metrics(result: RunResult) -> dict[str, float | int]:
    """Return the figures of one run by name; times in simulated seconds.

    The first eleven are those of the design. ``worst_normalised_latency_s`` is the largest latency
    per generated token; ``max_wait_s`` the longest time that a request waited or was preempted.
    """
    latency = result.finish - result.arrival
    makespan = float(result.finish.max() - result.arrival.min())
    normalised = latency / result.output
    ttft = result.first - result.arrival
    return {
        "mean_latency_s": float(latency.mean()),
        "p50_latency_s": float(np.quantile(latency, 0.5)),
        "p99_latency_s": float(np.quantile(latency, 0.99)),
        "mean_ttft_s": float(ttft.mean()),
        "tokens_per_s": float(result.output.sum() / makespan),
        "makespan_s": makespan,
        "preemptions": int(result.preemptions),
        "recomputed_tokens": int(result.recomputed_tokens),
        "reserved_unused_block_s": float(result.reserved_unused_block_s),
        "goodput": float((normalised <= GOOD_SECONDS_PER_TOKEN).mean()),
        "max_wait_s": float(result.waited.max()),
        "worst_normalised_latency_s": float(normalised.max()),
        "mean_normalised_latency_s": float(normalised.mean()),
        "p99_ttft_s": float(np.quantile(ttft, 0.99)),
        "max_preemptions_of_one": int(result.preempted.max()),
        "cached_tokens": int(result.cached_tokens),
        "prefill_tokens": int(result.prefill_tokens),
        "idle_block_s": float(result.idle_block_s),
        "steps": int(result.steps),
        "scheduler_cpu_s": float(result.scheduler_cpu_s),
        "steps_per_s": float(result.steps / result.wall_s) if result.wall_s else 0.0,
        "steps_per_cpu_s": float(result.steps / result.cpu_s) if result.cpu_s else 0.0,
    }


MEASURED = ("scheduler_cpu_s", "steps_per_s", "steps_per_cpu_s")
"""Keys that depend on the machine; all others are the same in every run."""
