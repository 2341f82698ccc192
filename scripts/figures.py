"""Figures of README and docs, rendered from the pages that the benchmarks write.

    scripts/figures           # write them anew
    scripts/figures --check   # exit 1 if a page differs from what it is made from

A page calls a function of this module between ``[[[cog`` and ``[[[end]]]``; cog replaces what
stands below. The sources are the tables that a command wrote: ``docs/lab/replay.md``
(benchmarks/decisions.py), ``docs/lab/live.md`` (benchmarks/live_load.py) and the other pages of
``docs/lab`` that a benchmark writes. Each function returns Markdown.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from statistics import median

DOCS = Path(__file__).resolve().parents[1] / "docs"
LIVE = "lab/live.md"
RUNS = ("", "Second run. ")
"""What the headings of the two runs begin with."""
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
        seeds = f" ({row['mean, by seed'].replace('-', '−')})" if "mean, by seed" in row else ""
        lines.append(f"| {NAMES[trace]}, {blocks} | {mean} %{seeds} | {p99} % | {row['goodput']} |")
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


def replay_answer() -> str:
    """Return the first lines of docs/lab/replay.md."""
    rows = _against_watermark("overload")
    mean, p99 = ([number(row[k]) for row in rows] for k in ("mean", "p99"))
    knee = [number(row["TTFT"]) for row in _against_watermark("knee")]
    return f"""\
**At overload, mean latency falls by {-max(mean):.0f}–{-min(mean):.0f} % against first come, first served with the watermark tuned for the very
setting; p99 changes by {percent(min(p99))} to {percent(max(p99))} %. At the knee, the time to first token falls by {-max(knee):.0f}–{-min(knee):.0f} %.
Where nobody waits, nothing is gained.**"""


# -- other studies: each page's first lines, from its own tables -----------------------------


def results_answer() -> str:
    """Return the first lines of docs/lab/results.md."""
    rows = {(row["predictor"], row["mode"]): row for row in table("lab/results.md", "Traces")}
    traces = [name for name in rows["survival", "online"] if name not in ("predictor", "mode")]

    def below(row: Row, other: Row) -> list[float]:
        return [100 * (1 - number(row[each]) / number(other[each])) for each in traces]

    constant, age = (rows[name, "frozen"] for name in ("constant_median", "residual_life"))
    ours = rows["survival", "online"]
    prompts = {row["predictor"]: row for row in table("lab/results.md", "vicuna7b_alpaca")}
    table_, network, trees = (
        prompts[name]["steps MAE"] for name in ("survival", "lstm", "lightgbm")
    )
    return f"""\
**Over all steps of {len(traces)} traces, `survival`, learning online, is wrong by {min(below(ours, constant)):.0f}–{max(below(ours, constant)):.0f} % fewer tokens than the constant
median, and by {min(below(ours, age)):.0f}–{max(below(ours, age)):.0f} % fewer than a table that knows the age alone.
Where nothing but the prompt tells the length (vicuna7b_alpaca), a network that reads it pays: {network} tokens against {table_} (LightGBM: {trees}).**"""


def batches_answer() -> str:
    """Return the first lines of docs/lab/batches.md."""
    gains: dict[str, list[float]] = {}
    known = []
    for row in table("lab/batches.md", "Batches"):
        (batch,) = [value for name, value in row.items() if name.startswith("batch")]
        cost = batch.rsplit(", ", 1)[1]
        gains.setdefault(cost, []).append(number(row["longest-first over fcfs-watermark"]))
        known.append(number(row["longest-first-oracle"]) - number(row["longest-first"]))
    said = "; ".join(
        f"{percent(min(each), 1)} to {percent(max(each), 1)} % at the step cost `{cost}`"
        for cost, each in gains.items()
    )
    return f"""\
**`longest-first` against first come, first served with the watermark tuned for the very batch, tokens a second:
{said}.
Known lengths bring {median(known):.1f} points more (median), {max(known):.1f} at most.**"""


def reservation_answer() -> str:
    """Return the first lines of docs/lab/reservation.md."""
    names = ("servegen_reasoning, 3,000", "azure_conv, 1,000")
    found = []
    for name in names:
        rows = {row["preempted per request"]: row for row in table("lab/reservation.md", name)}
        found.append([number(rows[rate]["ours against one number"].split("(")[0])
                      for rate in ("0.002", "0.02")])  # fmt: skip
    reasoning, azure = (
        f"{percent(seldom)} % at one preemption in 500 requests and {percent(often)} % at one in 50"
        for seldom, often in found
    )
    return f"""\
**Memory set aside and not used, against the better of one share of `max_tokens` and one average for all: on reasoning
{reasoning}; on Azure {azure}.
On Mooncake next to nothing need be set aside by anybody.**"""


# -- a live engine: docs/lab/live.md ---------------------------------------------------------


def _live(load: str) -> list[dict[str, Row]]:
    return [{row[""]: row for row in table(LIVE, f"{run}{load}")} for run in RUNS]


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
    text = (DOCS / LIVE).read_text(encoding="utf-8")
    for run in RUNS:
        section = text.split(f"## {run}{load}")[1].split("\n## ")[0]
        (share,) = re.findall(r"^lifetime: ([\d.]+)% of the steps' time", section, re.M)
        found.append(share)
    return " and ".join(found)


def live_answer() -> str:
    """Return the first lines of docs/lab/live.md."""
    default, tuned = "fcfs", "fcfs-watermark"
    return f"""\
**On a model of 135 million parameters, at 1.5 times the load it can serve, `act` changes mean latency by
{_changes("Overload", "mean s", default)} % against vLLM's default, and by {_changes("Overload", "mean s", tuned)} % against the best watermark.
Known lengths would change it by {_changes("Overload", "mean s", tuned, "lifetime-oracle")} % against that watermark.**"""


def live_table() -> str:
    """Return the table of docs/lab/live.md: all arms at overload, both runs in each cell."""
    columns = ["mean s", "median s", "p99 s", "TTFT s", "goodput %", "preempted", "recomputed"]
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    runs = _live("Overload")
    for arm, title in ARMS.items():
        cells = [", ".join(run[arm][column] for run in runs) for column in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def live_changes() -> str:
    """Return the bullets of docs/lab/live.md on what acting changes, at both loads."""
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
  [noise floor](content.md)).
- At the knee (0.9 × capacity) against the default: mean {change("mean s", default, "Knee")}, time to
  first token {change("TTFT s", default, "Knee")}, p99 {change("p99 s", default, "Knee")}. Against the
  tuned watermark: mean {change("mean s", tuned, "Knee")}, time to first token
  {change("TTFT s", tuned, "Knee")}, p99 {change("p99 s", tuned, "Knee")}; known lengths change its
  mean by {change("mean s", tuned, "Knee", known)}.
- Predictions and policy took {_shares("Overload")} % of the steps' time at overload,
  {_shares("Knee")} % at the knee, without a fault."""
