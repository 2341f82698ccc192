"""The figures of a replay as rows of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence

from sagellm_lifetime.assessment.capacity import Highest
from sagellm_lifetime.assessment.replay_part import CURVE, ReplayPart
from sagellm_lifetime.assessment.replays import DEFAULT, ORACLE, OURS, PROMPTS, TUNED

LABELS = {
    DEFAULT: "default",
    TUNED: "tuned",
    PROMPTS: "prompts",
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
    """Return a row for each policy: requests a second within the objective, range, multiple.

    With one window there is no range, and no such column.
    """
    rows = []
    for name in CURVE:
        served, mark = replay.served(name), replay.watermarks[name]
        none = ", no watermark" if name == TUNED else ""
        between = [_between(replay.capacity[name], replay.unit)] if replay.windows > 1 else []
        rows.append(
            [
                LABELS[name] + (f", watermark {mark:g}" if mark else none),
                _bounded(served, replay.unit),
                *between,
                _bounded(served),
            ]
        )
    return rows


def _bounded(highest: Highest, unit: float = 1.0) -> str:
    """Return a load, with a sign if it is a bound.

    >>> _bounded(Highest(0.1, "less"), 5.0)
    '< 0.50'
    >>> _bounded(Highest(0.0012))
    '0.0012'
    """
    sign = {"more": "≥ ", "less": "< "}.get(highest.end, "")
    load = highest.load * unit
    return f"{sign}{short(load) if load >= 0.01 else f'{load:.2g}'}"


def _between(several: Sequence[Highest], unit: float) -> str:
    """Return the least and the largest load; nothing if they are the same."""
    low, high = (
        _bounded(end(several, key=lambda highest: highest.load), unit) for end in (min, max)
    )
    return "" if low == high else f"{low} to {high}"


def short(value: float) -> str:
    """Return a number with about three digits.

    >>> short(0.1234), short(12.34), short(1234.5)
    ('0.12', '12.3', '1,234')
    """
    if abs(value) < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
