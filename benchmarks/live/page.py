"""The report: a table for each load and clock, and what the replay says beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common import table

from live.arms import ARMS
from live.figures import disagreements, order

CLOCKS = {
    "fitted": "in fitted time: every step at what such a step costs",
    "wall": "as the client saw it",
    "steps": "in steps of the engine",
}


def head(model: str, taught: int, served: float, cost: str, arms: Sequence[str]) -> str:
    """What was done, before the tables."""
    return f"""# A real model under load

Made by `benchmarks/live_load.py`; what is compared, and how, stands in docs/lab/live.md. The model
is {model}, the engine vLLM behind `sage llm engine start`, asked over HTTP, every answer streamed.
The predictor has learned from {taught:,} answers recorded before, none of them to a prompt of the
load. vLLM's own scheduler gets {served:.3f} requests a second done.

{legend(arms)}

Fitted time: every step counts what such a step costs on average over all runs: {cost}.
Preempted: times that a sequence lost its memory; recomputed: tokens. Goodput: requests finished
within 0.2 s per output token. Pace: how long the steps of a run took, measured by what such steps
cost in the run that found the capacity. One run an arm: differences of a few percent say nothing.
"""


def section(load: Mapping[str, Any]) -> str:
    """Everything about one load.

    Args:
        load: ``title``; ``live``: figures by arm; ``replayed``: the same by policy, on the fitted
            clock alone; ``came``: the same at the arrivals of the runs; ``stats``: of the servers
            that had any, by arm.
    """
    parts = [f"## {load['title']}"]
    live, replayed = load["live"], load["replayed"]
    for clock, says in CLOCKS.items():
        parts += [f"{says[0].upper()}{says[1:]}:", clock_table(live, clock)]
    if replayed:
        parts += [
            "The same requests, replayed without the model at the fitted cost:",
            clock_table(replayed, "fitted"),
            *orders(live, replayed),
            accuracy(live, load["came"]),
        ]
    parts += [worth(arm, stats) for arm, stats in load["stats"].items()]
    return "\n\n".join(parts) + "\n"


def worth(arm: str, stats: Mapping[str, Any]) -> str:
    """What a server says of its predictions."""
    share = stats["overhead_seconds"] / stats["step_seconds"] if stats["step_seconds"] else 0.0
    faults = {kind: count for kind, count in stats["faults"].items() if count}
    said = f"{arm}: {share:.2%} of the steps' time spent on predictions and policy; " + (
        f"faults: {faults}" if faults else "no fault"
    )
    admissions, differing = stats["decisions"]["admission"]
    preemptions, others = stats["decisions"]["preemption"]
    if admissions:
        said += (
            f"; {differing} of {admissions} admissions and {others} of {preemptions} preemptions "
            "would have been others"
        )
    return said + "."


def clock_table(found: Mapping[str, Any], clock: str) -> str:
    """One clock's figures, an arm a row."""
    unit = "steps" if clock == "steps" else "s"
    head = ["", f"mean {unit}", f"median {unit}", f"p99 {unit}", f"TTFT {unit}"]
    names = ("mean_latency", "p50_latency", "p99_latency", "mean_ttft")
    if clock != "steps":
        head.append("goodput %")
    if clock != "wall":
        head += ["preempted", "recomputed"]
    else:
        head += ["tokens/s", "pace"]
    rows = []
    for arm, figures in found.items():
        row: list[Any] = [arm, *(_short(figures[clock][name]) for name in names)]
        if clock != "steps":
            row.append(f"{100 * figures[clock]['goodput']:.0f}")
        counts = figures["counts"]
        if clock != "wall":
            row += [f"{counts['preemptions']:,}", f"{counts['recomputed_tokens']:,}"]
        else:
            row += [_short(counts["tokens_per_s"]), _short(counts["pace"])]
        rows.append(row)
    return table(head, rows)


def orders(live: Mapping[str, Any], replayed: Mapping[str, Any]) -> list[str]:
    """Both orders of the policies by mean latency and by time to first token."""
    lines = []
    for name, says in (("mean_latency", "mean latency"), ("mean_ttft", "TTFT")):
        both = [
            {arm: found[arm]["fitted"][name] for arm in replayed if arm in live}
            for found in (live, replayed)
        ]
        differing = disagreements(*both)
        verdict = "the same order" if not differing else "not the same: " + "; ".join(differing)
        lines.append(
            f"By {says}, live: {' < '.join(order(both[0]))}; replayed: "
            f"{' < '.join(order(both[1]))}: {verdict}."
        )
    if "fcfs" in live and "shadow" in live:
        lines.append(f"The same schedule, measured twice: {twice(live)}.")
    return lines


def accuracy(live: Mapping[str, Any], came: Mapping[str, Any]) -> str:
    """How near the replay comes where each policy has the arrivals of its own run."""
    said = []
    for arm, found in came.items():
        ours, theirs = (each["fitted"]["mean_latency"] for each in (found, live[arm]))
        counts = [each["counts"]["preemptions"] for each in (found, live[arm])]
        said.append(f"{arm} {ours / theirs - 1:+.1%} ({counts[0]} preemptions, live {counts[1]})")
    return (
        "Mean latency replayed against live, arrivals as the engine saw them on the fitted clock: "
        + ", ".join(said)
        + "."
    )


def twice(live: Mapping[str, Any]) -> str:
    """Shadow against vLLM's own: what differs there is no policy's doing."""
    said = []
    for clock, says in (("fitted", "in fitted time"), ("wall", "by the wall")):
        theirs, ours = (live[arm][clock]["mean_latency"] for arm in ("fcfs", "shadow"))
        said.append(f"shadow {ours / theirs - 1:+.1%} in the mean {says}")
    return ", ".join(said)


def left_out(disturbed: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    """Runs that were made and are not counted, and arms without a run."""
    said = [f"{run['load']}, {run['arm']} (pace {run['pace']:.2f})" for run in disturbed]
    lines = []
    if said:
        lines.append(f"Not counted, the machine had too much else to do: {'; '.join(said)}.")
    if missing:
        lines.append(f"Not run to an end that counts: {'; '.join(missing)}.")
    return "\n\n".join(lines) + "\n" if lines else ""


def legend(arms: Sequence[str]) -> str:
    """What the arms are."""
    return "\n".join(f"- `{arm}`: {ARMS[arm]}" for arm in arms)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
