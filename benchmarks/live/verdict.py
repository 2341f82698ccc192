"""What a soak has to show: nothing leaks, nothing is lost, everything adds up, all are answered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from live.mixture import REFUSED, Asked
from live.vitals import adds_up, slope

WARM_S = 180.0
"""After its start a server still grows: libraries, caches, the first of each kind of request."""
LAST_S = 1.0
"""Lost at most before a kill −9: the record is written twice a second, and that takes a moment."""
MORE_FILES = 16
"""Open files at the end beyond those after the warm-up; connections come and go."""
_NAME = re.compile(r"soak-\d{7}")

Check = tuple[str, bool | None, str]
"""Name; whether it holds, ``None`` where that cannot be told; the figures."""


@dataclass
class Life:
    """A server from its first answer to its end.

    Attributes:
        began: ``time.time``.
        samples: memory, files, statistics and metrics, in their order.
        silent: when it did not answer the watch, and why.
        killed: when it was killed, if it was.
    """

    began: float
    samples: list[dict[str, Any]] = field(default_factory=list)
    silent: list[tuple[float, str]] = field(default_factory=list)
    killed: float | None = None


def checks(
    lives: Sequence[Life], asked: Sequence[Asked], recorded: Sequence[str], *, leak: float
) -> Iterator[Check]:
    """All of them.

    Args:
        lives: of the server.
        asked: all requests of the clients.
        recorded: the names in the record.
        leak: most growth of the resident memory, MiB a minute.
    """
    yield from of_any_server(lives, asked, leak=leak)
    yield _sums(lives)
    yield _settled(lives[-1])
    yield _nothing_lost(asked, recorded, [life.killed for life in lives if life.killed])
    twice = [name for name, count in Counter(recorded).items() if count > 1]
    yield "nothing recorded twice", not twice, f"{len(recorded):,} rows, {len(twice)} names twice"
    lost = sum(life.samples[-1]["stats"]["record_lost"] for life in lives if life.samples)
    yield "no row was refused by the disk", lost == 0, f"{lost} lost"
    faults = Counter[str]()
    for life in lives:
        faults.update(life.samples[-1]["stats"]["faults"] if life.samples else {})
    yield "no fault in predictor or policy", not any(faults.values()), str(dict(faults))


def of_any_server(lives: Sequence[Life], asked: Sequence[Asked], *, leak: float) -> Iterator[Check]:
    """Those that do not ask what a server predicts."""
    for i, life in enumerate(lives, 1):
        yield from _steady(f"life {i}", life, leak)
    yield _answered(asked, [life.killed for life in lives if life.killed])
    silent = [s for life in lives for s in life.silent if not life.killed or s[0] < life.killed]
    yield "the watch was always answered", not silent, f"{len(silent)} times not"


def _steady(name: str, life: Life, leak: float) -> Iterator[Check]:
    span = life.samples[-1]["time"] - life.began if life.samples else 0.0
    if span < 2 * WARM_S:
        yield f"{name}: memory", None, f"{span:.0f} s are too short to tell"
        return
    late = [s for s in life.samples if s["time"] - life.began >= WARM_S]
    times = [s["time"] for s in late]
    grown = slope(times, [s["resident"] for s in late]) * 60 / 2**20
    minutes = (times[-1] - times[0]) / 60
    parts = [
        f"{who} {slope(times, [s['each'].get(who, 0) for s in late]) * 60 / 2**20:+.2f}"
        for who in late[0]["each"]
    ]
    yield (
        f"{name}: memory",
        grown <= leak,
        f"{grown:+.2f} MiB a minute over {minutes:.1f} minutes (bound {leak:g}), "
        f"{late[0]['resident'] / 2**20:,.0f} -> {late[-1]['resident'] / 2**20:,.0f} MiB; "
        f"by process {', '.join(parts)}",
    )
    files = [s["files"] for s in late]
    yield (
        f"{name}: open files",
        files[-1] <= files[0] + MORE_FILES,
        f"{files[0]} -> {files[-1]}, {max(files)} at most",
    )


def _sums(lives: Sequence[Life]) -> Check:
    samples = [sample for life in lives for sample in life.samples]
    wrong = sum(not adds_up(sample["metrics"]) for sample in samples)
    for sample in samples:
        stats = sample["stats"]
        ended = stats["completions"] + stats["censored"] + stats["running"]
        wrong += stats["total_predictions"] != ended
    says = f"{wrong} of {2 * len(samples)} times not (statistics and Prometheus)"
    return "predictions = completions + censored + running", wrong == 0 < len(samples), says


def _settled(life: Life) -> Check:
    last = life.samples[-1]["stats"] if life.samples else {"running": -1}
    return "nothing is left running", last["running"] == 0, f"{last['running']} at the end"


def _answered(asked: Sequence[Asked], kills: Sequence[float]) -> Check:
    """Except what was under way when the server was killed."""
    cut = [each for each in asked if any(each.sent <= kill <= each.ended + 1.0 for kill in kills)]
    names = {each.name for each in cut if not each.answered}
    wrong = [each for each in asked if not each.answered and each.name not in names]
    refused = sum(each.kind in REFUSED for each in asked)
    says = (
        f"{len(asked) - refused:,} well-formed and {refused:,} others, {len(wrong)} answered "
        f"otherwise, {len(names)} cut off by the kill"
    )
    if wrong:
        says += f"; the first: {wrong[0]}"
    return "everybody was answered as they should be", not wrong, says


def _nothing_lost(asked: Sequence[Asked], recorded: Sequence[str], kills: Sequence[float]) -> Check:
    """Who got the whole answer is in the record, up to the last moment before a kill."""
    rows = Counter(match[0] for name in recorded if (match := _NAME.search(name)))
    lost, excused = [], 0
    for each in asked:
        if each.kind in REFUSED or not each.answered or each.kind == "disconnect":
            continue
        if rows[each.name] >= len(each.reasons):
            continue
        if any(kill - LAST_S <= each.ended <= kill for kill in kills):
            excused += 1
        else:
            lost.append(each)
    says = f"{len(lost)} lost, beside {excused} in the last {LAST_S:g} s before the kill"
    if lost:
        says = f"{says}; the first: {lost[0]}"
    return "every completion was recorded", not lost, says
