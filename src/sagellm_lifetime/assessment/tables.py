"""The figures of a replay as rows of text, for the terminal and the page."""

from __future__ import annotations

from sagellm_lifetime.assessment.replay_part import CURVE, ReplayPart
from sagellm_lifetime.assessment.replays import DEFAULT, ORACLE, OURS, TUNED

LABELS = {
    DEFAULT: "default",
    TUNED: "tuned",
    OURS: "lifetime",
    ORACLE: "oracle",
}
TIMES = ("mean_s", "p50_s", "p99_s", "ttft_s", "worst_wait_s")


def load_rows(replay: ReplayPart) -> list[list[str] | None]:
    """Return a row for each policy at each load, None between two loads.

    Columns: load or policy, five times in seconds, share within the objective, queue.
    """
    rows: list[list[str] | None] = []
    for load in replay.loads:
        rows += [None] if rows else []
        per_s = f"{load.multiple:g} x"
        for name in load.figures:
            times = [short(load.range(name, key).middle) for key in TIMES]
            mark = load.watermarks[name]
            label = LABELS[name] + (f" {mark:g}" if mark and name == TUNED else "")
            within = f"{100 * load.range(name, 'within').middle:.0f} %"
            queue = "" if load.keeps_up(name) else "grows"
            rows.append([f"{per_s} {label}", *times, within, queue])
    return rows


def capacity_rows(replay: ReplayPart) -> list[list[str]]:
    """Return a row for each policy: requests a second within the objective, range, multiple."""
    rows = []
    for name in CURVE:
        served = replay.served(name)
        mark = replay.watermarks[name]
        ends = {highest.end for highest in replay.capacity[name]}
        sign = {"more": "≥ ", "less": "< "}.get(next(iter(ends)), "") if len(ends) == 1 else ""
        rows.append(
            [
                LABELS[name] + (f", watermark {mark:g}" if mark else ""),
                f"{sign}{short(served.middle)}",
                f"{short(served.low)} to {short(served.high)}",
                f"{sign}{short(served.middle / replay.unit)}",
            ]
        )
    return rows


def short(value: float) -> str:
    """Return a number with about three digits.

    >>> short(0.1234), short(12.34), short(1234.5)
    ('0.12', '12.3', '1,234')
    """
    if abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
