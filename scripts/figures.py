"""Figures of README and docs, rendered from the pages that the benchmarks write.

    scripts/figures           # write them anew
    scripts/figures --check   # exit 1 if a page differs from what it is made from

A page calls a function of this module between ``[[[cog`` and ``[[[end]]]``; cog replaces what
stands below. The sources are the tables that a command wrote: ``docs/results.md``
(benchmarks/results.py), ``docs/replay.md`` (benchmarks/decisions.py), ``docs/live.md`` and
``docs/live-again.md`` (benchmarks/live_load.py). Each function returns Markdown.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
LIVE = ("live.md", "live-again.md")
TRACES = {
    "azure_conv": "Azure conversation",
    "mooncake_conversation": "Mooncake conversation",
    "servegen_reasoning": "ServeGen reasoning",
    "servegen_chat": "ServeGen chat",
    "claude_code": "Claude Code",
}
COLUMNS = {  # column of the README: predictor and mode of docs/results.md
    "constant median": ("constant_median", "frozen"),
    "residual life": ("residual_life", "frozen"),
    "LightGBM": ("lightgbm", "frozen"),
    "survival": ("survival", "online"),
    "lstm": ("lstm", "online"),
    "transformer": ("transformer", "online"),
}
OURS = ("survival", "lstm", "transformer")
ARMS = {
    "fcfs": "vLLM",
    "fcfs-watermark": "watermark tuned",
    "shadow": "`lifetime`, shadow",
    "lifetime": "`lifetime`, act",
    "lifetime-oracle": "the same, lengths known",
}

Row = dict[str, str]


@cache
def table(page: str, heading: str, nth: int = 0) -> tuple[Row, ...]:
    """Return the rows of the ``nth`` table below a heading that starts with ``heading``.

    Raises:
        ValueError: the page has no such heading or no such table.
    """
    lines = iter((DOCS / page).read_text(encoding="utf-8").splitlines())
    if not any(re.match(rf"#+ {re.escape(heading)}", line) for line in lines):
        raise ValueError(f"docs/{page} has no heading '{heading}'")
    tables: list[list[list[str]]] = []
    inside = False
    for line in lines:
        if line.startswith("#"):
            break
        if line.startswith("|"):
            if not inside:
                tables.append([])
            tables[-1].append([cell.strip(" *") for cell in line.strip("|").split("|")])
        inside = line.startswith("|")
    if nth >= len(tables):
        raise ValueError(f"docs/{page} has {len(tables)} tables below '{heading}'")
    head, _, *rows = tables[nth]
    return tuple(dict(zip(head, row, strict=True)) for row in rows)


def number(text: str) -> float:
    """Return the number in a cell such as ``1,234`` or ``-5.9 %``."""
    return float(text.replace(",", "").replace("%", "").replace("−", "-"))


def percent(value: float, digits: int = 0) -> str:
    """Return a change in per cent with its sign, as ``−12`` or ``+1``."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−")


# -- quality: docs/results.md ----------------------------------------------------------------


def quality() -> str:
    """Return the README's table: MAE at the steps on each trace, the best of ours in bold."""
    by = {(row["predictor"], row["mode"]): row for row in table("results.md", "Traces")}
    lines = [
        "| trace | " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * len(COLUMNS) + "|",
    ]
    for trace, title in TRACES.items():
        values = [by[key][trace] for key in COLUMNS.values()]
        best = min(values, key=number)
        cells = [f"**{value}**" if value == best else value for value in values]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def coverage() -> str:
    """Return the range of what the 90 % intervals of our predictors cover at the steps."""
    covered = [
        number(row["steps cov. 90"])
        for trace in TRACES
        for row in table("results.md", trace)
        if row["predictor"] in OURS and row["mode"] == "online"
    ]
    return f"The 90 % intervals cover {min(covered):.0f}–{max(covered):.0f} %."


# -- decisions: docs/replay.md ---------------------------------------------------------------


def _against_watermark(load: str) -> list[Row]:
    rows = table("replay.md", "`lifetime` against the tuned watermark")
    return [row for row in rows if row["setting"].endswith(load)]


def overload() -> str:
    """Return what ``lifetime`` gains against the tuned watermark at overload, over all settings."""
    rows = _against_watermark("overload")
    mean, p99 = ([number(row[name]) for row in rows] for name in ("mean", "p99"))
    return (
        "On three public traces at overload, two sizes of memory each, against first come, first\n"
        "served with the best watermark, mean latency falls by "
        f"{-max(mean):.0f}–{-min(mean):.0f} % and p99 changes by {percent(min(p99))} to\n"
        f"{percent(max(p99))} % (medians over seeds). "
        "Where prediction does not pay stands in [decisions](docs/decisions.md)."
    )


def decisions() -> str:
    """Return the bullet of docs/decisions.md on mean and goodput at overload."""
    rows = _against_watermark("overload")
    mean, gained = ([number(row[k]) for row in rows] for k in ("mean", "of the oracle's gain"))
    goodput = [[number(part) for part in row["goodput"].split("→")] for row in rows]
    times = [after / before for before, after in goodput]
    return f"""\
- **At overload** mean latency falls by {-max(mean):.0f}–{-min(mean):.0f} %, which is
  {min(gained):.0f}–{max(gained):.0f} % of what the oracle gains (the same policy with known lengths, not the
  best schedule there is). The share of requests served within 0.2 s per token rises
  {min(times):.1f}–{max(times):.1f} times."""


# -- a live engine: docs/live.md and docs/live-again.md --------------------------------------


def _live(load: str) -> list[dict[str, Row]]:
    return [{row[""]: row for row in table(page, load)} for page in LIVE]


def _changes(load: str, column: str, against: str, arm: str = "lifetime") -> str:
    """Return the change of a figure in both runs, in per cent, as ``−12 and −13``."""
    changes = []
    for run in _live(load):
        ours, theirs = number(run[arm][column]), number(run[against][column])
        if theirs == 0:
            raise ValueError(f"{against} has 0 in {column}: no ratio")
        changes.append(percent(100 * (ours / theirs - 1)))
    return " and ".join(changes)


def _shares(load: str) -> str:
    """Return the share of the steps' time spent on predictions and policy, in both runs."""
    found = []
    for page in LIVE:
        text = (DOCS / page).read_text(encoding="utf-8")
        section = text.split(f"## {load}")[1].split("\n## ")[0]
        (share,) = re.findall(r"^lifetime: ([\d.]+)% of the steps' time", section, re.M)
        found.append(share)
    return " and ".join(found)


def live_summary() -> str:
    """Return the README's paragraph on a small model behind HTTP."""
    default, tuned = "fcfs", "fcfs-watermark"
    return f"""\
On that small model, behind HTTP on one core, at 1.5 times what vLLM gets done and in a KV pool of
4,096 tokens (two runs with other arrivals, in per cent):

| `act` against | mean latency | median | p99 | time to first token | recomputed tokens |
|---|---:|---:|---:|---:|---:|
| vLLM's default | {_row(default)} |
| a watermark tuned for that load | {_row(tuned)} |

Recomputed tokens beside the tuned watermark: {_counts("recomputed")}. Predictions and policy took
{_shares("Overload")} % of the time. [All tables](docs/engine.md#on-a-real-model)."""


def _row(against: str) -> str:
    columns = ["mean s", "median s", "p99 s", "TTFT s"]
    cells = [_changes("Overload", column, against) for column in columns]
    cells.append(_changes("Overload", "recomputed", against) if against == "fcfs" else "–")
    return " | ".join(cells)


def _counts(column: str) -> str:
    """Return a count of ``lifetime`` and of the tuned watermark, in both runs."""
    pairs = [(run["lifetime"][column], run["fcfs-watermark"][column]) for run in _live("Overload")]
    return " and ".join(f"{ours} against {theirs}" for ours, theirs in pairs)


def live_table() -> str:
    """Return the table of docs/engine.md: all arms at overload, both runs in each cell."""
    columns = ["mean s", "median s", "p99 s", "TTFT s", "goodput %", "preempted", "recomputed"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    runs = _live("Overload")
    for arm, title in ARMS.items():
        cells = [", ".join(run[arm][column] for run in runs) for column in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def live_changes() -> str:
    """Return the bullets of docs/engine.md on what acting changes, at both loads."""
    default, tuned, known = "fcfs", "fcfs-watermark", "lifetime-oracle"

    def change(column: str, against: str, load: str = "Overload", arm: str = "lifetime") -> str:
        return _changes(load, column, against, arm)

    goodput = " and ".join(
        f"{run['lifetime']['goodput %']} instead of {run[tuned]['goodput %']}"
        for run in _live("Overload")
    )
    return f"""\
- At overload against vLLM's default, in per cent: mean {change("mean s", default)}, median
  {change("median s", default)}, time to first token {change("TTFT s", default)}, p99
  {change("p99 s", default)}, recomputed tokens {change("recomputed", default)}. Against the tuned watermark:
  mean {change("mean s", tuned)}, median {change("median s", tuned)}, time to first token
  {change("TTFT s", tuned)}, p99 {change("p99 s", tuned)}, goodput {goodput} %. Known lengths
  change the mean by {change("mean s", tuned, arm=known)}: most of what prediction could buy on this
  model is lost to answers that nobody can foresee (its
  [noise floor](evaluation.md#what-content-and-the-models-own-signals-add)).
- At the knee (0.9 × capacity) against the default: mean {change("mean s", default, "Knee")}, time to
  first token {change("TTFT s", default, "Knee")}, p99 {change("p99 s", default, "Knee")}. Against the
  tuned watermark: mean {change("mean s", tuned, "Knee")}, time to first token
  {change("TTFT s", tuned, "Knee")}, p99 {change("p99 s", tuned, "Knee")}; known lengths change its
  mean by {change("mean s", tuned, "Knee", known)}.
- Predictions and policy took {_shares("Overload")} % of the steps' time at overload,
  {_shares("Knee")} % at the knee, without a fault."""
