"""The page of the measurements: ``docs/lab/sagellm.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import table, write_page

STRATEGIES = (
    "lru",
    "lru, free memory first",
    "fifo",
    "ttl",
    "reuse alone",
    "lifetime",
    "lifetime, shortest first",
)
Runs = list[dict[str, Any]]


def write(path: Path, runs: Runs) -> None:
    """Write the page from all runs."""
    commits = sorted({run["commit"] for run in runs})
    text = "\n\n".join(
        [
            "# sageLLM's packages with our predictor",
            answer(runs),
            f"Made by `benchmarks/sagellm_lab.py` ({'; '.join(commits)}) with isagellm-protocol "
            "0.5.4.16, isagellm-kv-cache 0.5.4.15 and isagellm-control-plane 0.5.4.14, one run "
            "each; the engine around them is simulated, their own code decides and counts:",
            "    python benchmarks/sagellm_lab.py --runs runs.jsonl eviction pool orders",
            "How to use it: [eviction](../how-to/sagellm-eviction.md), "
            "[control plane](../how-to/sagellm-control-plane.md), "
            "[KV pool](../how-to/sagellm-kv-pool.md). What the packages lack: "
            "[findings](sagellm-findings.md).",
            *evictions(runs),
            *pools(runs),
            *orders(runs),
        ]
    )
    write_page(path, text)


def answer(runs: Runs) -> str:
    """Return the sentences that open the page."""
    said = []
    for trace in traces(runs, "eviction"):
        rows = by_rule(runs, "eviction", trace)
        lru, ours = rows["lru"], rows["lifetime"]
        alone = rows.get("reuse alone")
        share = f" ({change(ours['mean_s'], alone['mean_s'])})" if alone else ""
        said.append(
            f"{trace} {change(ours['prefill_s'], lru['prefill_s'])} prefill and "
            f"{change(ours['mean_s'], lru['mean_s'])} mean latency{share}"
        )
    kept = []
    for trace in traces(runs, "pool"):
        rows = by_rule(runs, "pool", trace)
        ours = rows["planner, fit 0.95"]
        best = best_ratio(rows, ours["overflows"])
        kept.append(
            f"{trace} {change(ours['idle'], rows['ratio 1.0']['idle'])} and "
            f"{change(ours['idle'], best[1]['idle'])}"
        )
    ordered = []
    for trace in traces(runs, "orders"):
        rows = by_rule(runs, "orders", trace)
        first, last = rows["shortest first"], rows["longest first"]
        ordered.append(
            f"{trace} {change(first['mean_s'], rows['arrival']['mean_s'])} and "
            f"{change(last['mean_s'], rows['arrival']['mean_s'])}"
        )
    return (
        f"**Eviction by lifetime and reuse against LRU in sageLLM's `KVCacheManager`: "
        f"{'; '.join(said)}; in brackets against the same without predictions: most comes from "
        f"knowing who runs, and the predictions add to it where answers are long. Pool memory that "
        f"holds no token while somebody waits, against "
        f"`max_tokens` and against the best single ratio: {'; '.join(kept)}. Mean latency of "
        f"shortest first and of longest first against arrival order: {'; '.join(ordered)}.**"
    )


def evictions(runs: Runs) -> list[str]:
    """Return the part on eviction."""
    parts = [
        "## Eviction",
        "`KVCacheManager.alloc` evicts where it must. *hit*: share of prompt tokens read from kept "
        "handles; *recomputed*: tokens per request that were computed once and lost; *preempted*: "
        "times a request lost memory that it ran on; *prefill*: seconds of all prefill, lost work "
        "included. A step costs 30 ms, a token of prefill 0.1 ms. Predictors were fitted on other "
        "rows and learn on. The package asks a strategy for all tokens of an allocation, free ones "
        "included; *lru, free memory first* is its LRU without that. *reuse alone* is ours without "
        "a prediction: idle handles by reuse, then the newest of those that run. The package's "
        "strategies take the oldest of those that run, which has most to compute again, and it "
        "does so again and again. TTL is 300 s.",
    ]
    for trace in traces(runs, "eviction"):
        rows = [
            [rule, f"{100 * r['hit']:.1f} %", r["recomputed"], r["preempted"], r["prefill_s"],
             r["mean_s"], r["p99_s"]]
            for rule, r in by_rule(runs, "eviction", trace).items()
        ]  # fmt: skip
        header = ("strategy", "hit", "recomputed", "preempted", "prefill s", "mean s", "p99 s")
        parts += [f"### {trace}", table(header, rows)]
    return parts


def pools(runs: Runs) -> list[str]:
    """Return the part on the pool."""
    parts = [
        "## KV pool",
        "All requests wait from the start, in arrival order; `max_tokens` is the longest answer of "
        "the training part, up to a power of two. *idle*: share of the pool that holds no token "
        "while somebody waits, whatever it is kept for; *allocated*: the part of it that was "
        "given to a sequence; *last blocks*: the part of that in half-filled blocks "
        "(fragmentation; blocks of 16 tokens need not be neighbours, so there is no other). "
        "*overflows*: preemptions per request because the pool was full. *stalls*: allocations "
        "that the engine waited for, per 1,000 tokens. *stalled*: their seconds per 1,000 tokens "
        "at 1 ms each, the stated cost of an allocation (the Python pool itself takes 0.1–0.3 ms).",
    ]
    for trace in traces(runs, "pool"):
        found = by_rule(runs, "pool", trace)
        rows = [
            [rule, f"{100 * r['idle']:.1f} %", f"{100 * r['unused']:.1f} %",
             f"{100 * r['tail']:.2f} %", r["overflows"], r["stalls"], r["stalls"] / 1000,
             r["steps"]]
            for rule, r in found.items()
        ]  # fmt: skip
        header = ("rule", "idle", "allocated", "last blocks", "overflows", "stalls", "stalled s",
                  "steps")  # fmt: skip
        ours = found["planner, fit 0.95"]
        name, best = best_ratio(found, ours["overflows"])
        saved = 1 - ours["stalls"] / max(found["planner, nothing ahead"]["stalls"], 1e-9)
        parts += [
            f"### {trace}",
            f"The best ratio with no more overflows than `fit 0.95` is {name}: "
            f"{100 * best['idle']:.1f} % idle against {100 * ours['idle']:.1f} %. Allocating ahead "
            f"saves {100 * saved:.1f} % of the stalls.",
            table(header, rows),
        ]
    return parts


def orders(runs: Runs) -> list[str]:
    """Return the part on orders."""
    parts = [
        "## Order of the control plane's queue",
        "The manager never holds a queue, so it stands in front of it: 32 slots at 1.1 times what "
        "they can serve, 2,000 requests; the policy orders the queue whenever a slot is free, and "
        "the manager learns from each end. Nothing was learned before. *Its own policy* is the "
        "package's `LifetimeAwarePolicy`, with its heuristic predictor and with ours. In our "
        "orders at most 64 later requests overtake one, where nothing else is said.",
    ]
    for trace in traces(runs, "orders"):
        rows = [
            [rule, r["mean_s"], r["p50_s"], r["p99_s"], r["max_wait_s"]]
            for rule, r in by_rule(runs, "orders", trace).items()
        ]
        header = ("order", "mean s", "p50 s", "p99 s", "longest wait s")
        parts += [f"### {trace}", table(header, rows)]
    return parts


def traces(runs: Runs, part: str) -> list[str]:
    """Return the traces of a part."""
    return list(dict.fromkeys(run["trace"] for run in runs if run["part"] == part))


def by_rule(runs: Runs, part: str, trace: str) -> dict[str, dict[str, Any]]:
    """Return the runs of a part and a trace by their rules, those of eviction in one order."""
    found = {run["rule"]: run for run in runs if (run["part"], run["trace"]) == (part, trace)}
    if part != "eviction":
        return found
    return {rule: found[rule] for rule in STRATEGIES if rule in found}


def best_ratio(rows: dict[str, dict[str, Any]], overflows: float) -> tuple[str, dict[str, Any]]:
    """Return the ratio that leaves least idle among those with no more overflows."""
    fair = {
        rule: row
        for rule, row in rows.items()
        if rule.startswith("ratio") and row["overflows"] <= overflows
    }
    return min(fair.items(), key=lambda item: item[1]["idle"])


def change(new: float, old: float) -> str:
    """Return a change in per cent, with its sign."""
    return f"{100 * (new / old - 1):+.0f} %".replace("-", "−")
