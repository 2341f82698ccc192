"""The comparison of policies: medians over seeds, the JSON of ``replay``, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.atomic import replacing, write_atomically
from sagellm_lifetime.core.extras import require_plots
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.evaluation.plots import COLOURS
from sagellm_lifetime.replay.compare import Replayed
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.metrics import GOOD_SECONDS_PER_TOKEN, MEASURED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: Final = (
    "policy",
    "mean",
    "p50",
    "p99",
    "TTFT",
    "wait",
    "worst",
    "goodput",
    "tokens/s",
    "makespan",
    "preempted",
    "recomputed",
    "set aside",
)
LEGEND: Final = (
    "Simulated seconds. TTFT: mean time to the first token; wait: the longest; worst: seconds per "
    f"output token; goodput: requests finished within {GOOD_SECONDS_PER_TOKEN:g} s per output "
    "token; preempted: how often; recomputed: tokens; set aside: share of the pool that was free "
    "but kept back by the policy."
)
_TIMES: Final = (
    "mean_latency_s",
    "p50_latency_s",
    "p99_latency_s",
    "mean_ttft_s",
    "max_wait_s",
    "worst_normalised_latency_s",
)
_COUNTS: Final = ("preemptions", "recomputed_tokens")
_LINES: Final = ("-", "--", ":", "-.")
LATENCY_PLOT: Final = "latency.png"
MEMORY_PLOT: Final = "memory.png"
PAGE: Final = "report.md"
FILES: Final = (PAGE, LATENCY_PLOT, MEMORY_PLOT)
"""Names of the files in the folder of a report."""


@dataclass
class Comparison:
    """Runs of several policies on the same requests.

    Attributes:
        settings: settings that all policies share; goes into the JSON unchanged.
        cost: model of the seconds of a step.
        blocks: KV blocks in the pool.
        runs: by name of the policy, one for each seed.
    """

    settings: dict[str, Any]
    cost: StepCost
    blocks: int
    runs: dict[str, list[Replayed]] = field(default_factory=dict)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the medians over seeds by policy, with each seed's values under ``seeds``."""
        figures: dict[str, dict[str, Any]] = {}
        for name, runs in self.runs.items():
            seeds = [_reproducible(run.metrics) for run in runs]
            medians = {key: median(values[key] for values in seeds) for key in seeds[0]}
            by_seed = [
                values | {"overrides": dict(run.overrides)}
                for values, run in zip(seeds, runs, strict=True)
            ]
            figures[name] = medians | {"seeds": by_seed}
        return figures

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``replay --json`` writes."""
        return {"settings": self.settings, "policies": self.figures()}

    def rows(self) -> list[list[str]]:
        """Return the text cells of each policy, one for each of :data:`COLUMNS`."""
        rows = []
        for name, values in self.figures().items():
            pool = values["makespan_s"] * self.blocks
            rows.append(
                [
                    name,
                    *(_short(values[key]) for key in _TIMES),
                    f"{values['goodput']:.1%}",
                    _short(values["tokens_per_s"]),
                    _short(values["makespan_s"]),
                    *(f"{values[key]:,.0f}" for key in _COUNTS),
                    f"{values['reserved_unused_block_s'] / pool:.1%}" if pool else "–",
                ]
            )
        return rows

    def says(self) -> list[str]:
        """Return a line for each policy: its explanation, and the choice if it was tuned."""
        lines = []
        for name, runs in self.runs.items():
            policy = runs[0].policy
            chosen = ""
            if policy.grid:
                keys = sorted({key for choice in policy.grid for key in choice})
                values = [
                    ", ".join(f"{key} {run.overrides[key]:g}" for key in keys) for run in runs
                ]
                chosen = f" ({'; '.join(dict.fromkeys(values))})"
            lines.append(f"{name}: {policy.says}{chosen}")
        return lines

    def pace(self) -> str:
        """Return the speed of the replay, which is not in the reproducible JSON."""
        results = [run.result for runs in self.runs.values() for run in runs]
        steps = sum(result.steps for result in results)
        seconds = sum(result.cpu_s for result in results)
        return f"Replay: {counted(steps, 'step')}, {steps / max(seconds, 1e-9):,.0f} a CPU second."


def cost_lines(cost: StepCost) -> list[str]:
    """Return the step cost, its source and its fit, a line each."""
    step = (
        f"Step cost {cost.name}: {1e3 * cost.base:.3g} ms"
        f" + {1e6 * cost.per_decode:.3g} µs a sequence"
        f" + {1e6 * cost.per_prefill_token:.3g} µs a prefill token"
        f" + {1e6 * cost.per_context_token:.3g} µs a token in the cache"
    )
    return [step, f"Source: {cost.source}", f"Fit: {cost.fit}"]


def write_report(folder: Path | str, comparison: Comparison, *, how: str = "") -> Path:
    """Write ``report.md`` and its two plots; return the path of ``report.md``.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    require_plots()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name, plot in ((LATENCY_PLOT, latency_cdf), (MEMORY_PLOT, memory)):
        with replacing(target / name) as file:
            plot(comparison.runs).savefig(file, format="png", dpi=130)
    page = target / PAGE
    write_atomically(page, markdown(comparison, how=how).encode())
    return page


def markdown(comparison: Comparison, *, how: str = "") -> str:
    """Return the text of ``report.md``."""
    cost = comparison.cost
    parameters = [
        ("every step", cost.base),
        ("per sequence that generates a token", cost.per_decode),
        ("per prefill token", cost.per_prefill_token),
        ("per token in the cache of what runs", cost.per_context_token),
    ]
    several = comparison.settings.get("seeds", 1) > 1
    parts = [
        "# Replay through vLLM's scheduler",
        how,
        f"Medians over {comparison.settings['seeds']} seeds. {LEGEND}" if several else LEGEND,
        _table(COLUMNS, comparison.rows()),
        "\n".join(f"- {line}" for line in comparison.says()),
        "## Latency",
        "Share of the requests that were finished within so many seconds"
        + (", all seeds together." if several else "."),
        f"![Latency]({LATENCY_PLOT})",
        "## Memory over time",
        "KV blocks in use, as a share of the pool" + (", first seed." if several else "."),
        f"![Memory over time]({MEMORY_PLOT})",
        "## Step cost",
        f"`{cost.name}`, linear in what a step holds:",
        _table(("part", "seconds"), [[label, f"{value:.3g}"] for label, value in parameters]),
        f"Source: {cost.source}.",
        f"Fit: {cost.fit}.",
        comparison.pace(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def latency_cdf(runs: Mapping[str, Sequence[Replayed]]) -> Figure:
    """Return a plot of the share of requests finished within a latency (seconds, log axis)."""
    figure, (axes,) = _figure(1, 4.2)
    for i, (name, several) in enumerate(runs.items()):
        latency = np.sort(
            np.concatenate([run.result.finish - run.result.arrival for run in several])
        )
        share = np.arange(1, len(latency) + 1) / len(latency)
        axes.step(latency, share, where="post", label=name, linewidth=1.4, **_style(i))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("latency (simulated seconds)")
    axes.set_ylabel("share of requests")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    return figure


def memory(runs: Mapping[str, Sequence[Replayed]]) -> Figure:
    """Return a plot of blocks in use over time, a panel for each policy, first seed."""
    figure, panels = _figure(len(runs), 1.3 * len(runs) + 0.8)
    for i, (axes, (name, several)) in enumerate(zip(panels, runs.items(), strict=True)):
        result = several[0].result
        times = [at for at, *_ in result.memory]
        used = [100 * blocks / result.blocks for _, blocks, *_ in result.memory]
        colour = _style(i)["color"]
        axes.fill_between(times, used, step="post", color=colour, alpha=0.35, linewidth=0)
        axes.step(times, used, where="post", color=colour, linewidth=0.8)
        axes.set_ylim(0, 102)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_ylabel("% of blocks", fontsize=8)
    panels[-1].set_xlabel("simulated seconds")
    return figure


def _reproducible(figures: Mapping[str, float | int]) -> dict[str, float | int]:
    """Return figures without those that depend on the machine."""
    return {key: value for key, value in figures.items() if key not in MEASURED}


def _short(value: float) -> str:
    if abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": _LINES[i // len(COLOURS) % len(_LINES)],
    }


def _plain(value: float, _place: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return vertically stacked panels with a shared axis, without pyplot and its display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for axes in all_axes:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(all_axes)
