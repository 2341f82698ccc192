"""Figures of README and docs, rendered from the pages that the benchmarks write.

    scripts/figures           # write them anew
    scripts/figures --check   # exit 1 if a page differs from what it is made from

A page calls a function of this module between ``[[[cog`` and ``[[[end]]]``; cog replaces what
stands below. The sources are the tables that a command wrote: ``docs/lab/replay.md``
(benchmarks/decisions.py), ``docs/lab/live.md`` and ``docs/lab/live-again.md`` (benchmarks/live_load.py).
Each function returns Markdown.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
LIVE = ("lab/live.md", "lab/live-again.md")
ARMS = {
    "fcfs": "vLLM",
    "fcfs-watermark": "watermark tuned",
    "shadow": "`lifetime`, shadow",
    "lifetime": "`lifetime`, act",
    "lifetime-oracle": "the same, lengths known",
}

NAMES = {
    "servegen_reasoning": "reasoning (ServeGen)",
    "mooncake_conversation": "long-context chat (Mooncake)",
    "azure_conv": "chat (Azure)",
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
    """Return a change in per cent with its sign, as ``−12``, ``0`` or ``+1``."""
    text = f"{value:+.{digits}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


# -- decisions: docs/lab/replay.md ---------------------------------------------------------------


def _against_watermark(load: str) -> list[Row]:
    rows = table("lab/replay.md", "`lifetime` against the tuned watermark")
    return [row for row in rows if row["setting"].endswith(load)]


def overload_table() -> str:
    """Return the README's table: what ``lifetime`` changes at overload, setting by setting."""
    lines = ["| trace, KV blocks | mean latency | p99 | served in time |", "|---|---:|---:|---:|"]
    for row in _against_watermark("overload"):
        trace, blocks, _ = row["setting"].rsplit(", ", 2)
        mean, p99 = (percent(number(row[name])) for name in ("mean", "p99"))
        lines.append(f"| {NAMES[trace]}, {blocks} | {mean} % | {p99} % | {row['goodput']} |")
    return "\n".join(lines)


def decisions() -> str:
    """Return the bullet of docs/explanation/policies.md on mean and goodput at overload."""
    rows = _against_watermark("overload")
    mean, gained = ([number(row[k]) for row in rows] for k in ("mean", "of the oracle's gain"))
    goodput = [[number(part) for part in row["goodput"].split("→")] for row in rows]
    times = [after / before for before, after in goodput]
    return f"""\
- **At overload** mean latency falls by {-max(mean):.0f}–{-min(mean):.0f} %, which is
  {min(gained):.0f}–{max(gained):.0f} % of what the oracle gains (the same policy with known lengths, not the
  best schedule there is). The share of requests served within 0.2 s per token rises
  {min(times):.1f}–{max(times):.1f} times."""


# -- a live engine: docs/lab/live.md and docs/lab/live-again.md---------------------------------


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


def live_table() -> str:
    """Return the table of docs/how-to/vllm.md: all arms at overload, both runs in each cell."""
    columns = ["mean s", "median s", "p99 s", "TTFT s", "goodput %", "preempted", "recomputed"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    runs = _live("Overload")
    for arm, title in ARMS.items():
        cells = [", ".join(run[arm][column] for run in runs) for column in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def live_changes() -> str:
    """Return the bullets of docs/how-to/vllm.md on what acting changes, at both loads."""
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
  [noise floor](../explanation/evaluation.md#what-content-and-the-models-own-signals-add)).
- At the knee (0.9 × capacity) against the default: mean {change("mean s", default, "Knee")}, time to
  first token {change("TTFT s", default, "Knee")}, p99 {change("p99 s", default, "Knee")}. Against the
  tuned watermark: mean {change("mean s", tuned, "Knee")}, time to first token
  {change("TTFT s", tuned, "Knee")}, p99 {change("p99 s", tuned, "Knee")}; known lengths change its
  mean by {change("mean s", tuned, "Knee", known)}.
- Predictions and policy took {_shares("Overload")} % of the steps' time at overload,
  {_shares("Knee")} % at the knee, without a fault."""
