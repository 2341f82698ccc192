"""What online learning costs the engine's thread: inline, and in a process of its own.

    PYTHONPATH=src python benchmarks/online_learning.py [--output PAGE] [--json FILE] [--quick]

Three tables, one run:

* CPU time of the calling thread per ``update``, the same stream of completions for both, taking
  turns, at 500 a second or fewer, so that lessons are sent and not dropped. Every predictor is
  fitted on a small history. Prompts carry 200 tokens; every fourth sequence is asked about once
  more.
* How late an engine's thread is that predicts every millisecond, while 100 sequences a second end,
  the process learns (networks: gradient steps) and its state is swapped in every half second. A
  thread is late when the machine is busy: the time it was ready to run and waited for a core
  (Linux, ``/proc/thread-self/schedstat``) is taken off, and the same thread without any learning
  stands beside it. What is left is waiting for the GIL and the lock, and work.
* How long a swap keeps a thread that computes all the time from doing so at a stretch, at worst.
  That is the GIL and, where other work keeps the cores busy, the wait for one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from common import code, say, single_thread, table, write_json, write_page
from latency import Calls, history

from sagellm_lifetime import PREDICTORS, create_predictor
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.predictor.background_learner import BackgroundLearner
from sagellm_lifetime.predictor.registry import has_network
from sagellm_lifetime.predictor.worker import LEARNED

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "online-learning.md"
SWAPS = 60
EVERY_S = 0.5
"""Between two swaps: ten times as often as by default."""
TICK_S = 0.001
ENDS_EVERY = 10
"""Ticks between two completions."""
TURN = 40
"""Completions in a row: one that trains leaves cold caches behind, which an engine's thread that
learns elsewhere does not have."""
TARGET_US = 20.0
_DRAIN_S = 120.0


@dataclass(frozen=True)
class Cost:
    """CPU time of ``update`` on the calling thread, µs."""

    predictor: str
    learns: str
    median: float
    p99: float
    calls: int


@dataclass(frozen=True)
class Lateness:
    """Of a thread that predicts every millisecond, ms late per tick."""

    predictor: str
    learns: str
    median: float
    p999: float
    longest: float
    ticks: int
    swaps: int
    training_steps: int


@dataclass(frozen=True)
class Stretch:
    """The longest time for which a swap kept a thread from computing, ms; and its own CPU time."""

    predictor: str
    median: float
    p90: float
    longest: float
    cpu: float
    swaps: int


def fitted(name: str) -> Any:
    """A predictor that knows a small history."""
    options = {"epochs": 2} if has_network(name) else {}
    return create_predictor(name, **options).fit(history())


def crowded(nodes: int = 20_000) -> Any:
    """``survival`` with as many nodes as it keeps."""
    predictor = fitted("survival")
    for i in range(nodes):
        features = RequestFeatures(client_key=1 + i, prompt_length=i % 3000)
        predictor.model.tables.learn(features, 0, 1 + i % 900, censored=False)
    return predictor


def end_one(predictor: Any, calls: Calls, i: int) -> float:
    """CPU nanoseconds of this thread in the ``update`` of a new sequence."""
    request = calls.start()
    predictor.predict(request)
    if i % 4 == 0:
        predictor.predict(calls.later(request, 16))
    start = time.thread_time_ns()
    predictor.update(request.sequence_id, 20 + i * 37 % 900, 4.0)
    return time.thread_time_ns() - start


def costs(name: str, count: int) -> list[Cost]:
    """``update`` of one predictor, inline and elsewhere."""
    inline = fitted(name)
    away = inline.clone()
    found: dict[str, list[float]] = {"inline": [], "elsewhere": []}
    calls = {learns: Calls() for learns in found}
    with BackgroundLearner(away, every=EVERY_S) as learner:
        learner.drain(_DRAIN_S)
        for start in range(0, count, TURN):
            for learns, predictor in (("inline", inline), ("elsewhere", away)):
                for i in range(start, start + TURN):
                    found[learns].append(end_one(predictor, calls[learns], i))
            time.sleep(TURN * 0.002)
    return [
        Cost(name, learns, float(np.median(ns)) / 1e3, float(np.quantile(ns, 0.99)) / 1e3, len(ns))
        for learns, ns in found.items()
    ]


def ticks(predictor: Any, seconds: float) -> np.ndarray:
    """Milliseconds by which each tick ended later than it should have, on an idle core."""
    calls = Calls()
    running = [calls.start() for _ in range(64)]
    for each in running:
        predictor.predict(each)
    late, last = [], waited_for_core()
    # What asks is made beforehand: an engine has it.
    fresh = iter([calls.start() for _ in range(int(seconds / TICK_S / ENDS_EVERY) + 2)])
    until, tick = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        start = time.perf_counter()
        time.sleep(TICK_S)
        predictor.predict(running[tick % len(running)])
        if tick % ENDS_EVERY == 0:
            ended = running[tick // ENDS_EVERY % len(running)]
            predictor.update(ended.sequence_id, 20 + tick * 37 % 900, 4.0)
            running[tick // ENDS_EVERY % len(running)] = next(fresh)
        took = time.perf_counter() - start
        waited = waited_for_core()
        late.append((took - TICK_S - (waited - last)) * 1e3)
        last = waited
        tick += 1
    return np.array(late)


def waited_for_core() -> float:
    """Seconds for which this thread was ready to run and did not, since it began."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


def lateness(name: str, predictor: Any, seconds: float) -> list[Lateness]:
    """Of one predictor: learning nothing, inline and elsewhere, taking turns."""
    found: dict[str, list[np.ndarray]] = {"nothing": [], "inline": [], "elsewhere": []}
    inline, away, still = predictor, predictor.clone(), predictor.clone()
    still.hand_over_to(_Nobody())
    with BackgroundLearner(away, every=EVERY_S) as learner:
        # Until the network is being trained: importing PyTorch takes seconds.
        ticks(away, seconds / 4)
        learner.drain(_DRAIN_S)
        ticks(inline, seconds / 8)
        for _ in range(4):
            for learns, each in (("nothing", still), ("inline", inline), ("elsewhere", away)):
                found[learns].append(ticks(each, seconds / 4))
        learner.drain(_DRAIN_S)
        metrics = {"nothing": {}, "inline": inline.get_metrics(), "elsewhere": away.get_metrics()}
    return [
        Lateness(
            name,
            learns,
            float(np.median(ms)),
            float(np.quantile(ms, 0.999)),
            float(ms.max()),
            len(ms),
            metrics[learns].get("learner_swaps", 0),
            metrics[learns].get("training_steps", 0),
        )
        for learns, ms in ((learns, np.concatenate(parts)) for learns, parts in found.items())
    ]


def stretch(name: str, predictor: Any, swaps: int) -> Stretch:
    """Of the checkpoint of one predictor, swapped in again and again while this thread computes."""
    taken: list[tuple[float, float, float]] = []

    def swap() -> None:
        for _ in range(swaps):
            time.sleep(0.02)
            start, used = time.perf_counter(), time.thread_time()
            learner._on_message({LEARNED: 0})
            taken.append((start, time.perf_counter(), time.thread_time() - used))

    gaps: list[tuple[float, float]] = []
    with BackgroundLearner(predictor, every=3600.0) as learner:
        learner.drain(_DRAIN_S)
        thread = Thread(target=swap)
        thread.start()
        last = time.perf_counter()
        while thread.is_alive():
            now = time.perf_counter()
            if now - last > 2e-5:
                gaps.append((last, now))
            last = now
    longest = [
        max((end - start for start, end in gaps if start < ended and end > began), default=0.0)
        for began, ended, _ in taken
    ]
    ms = np.array(longest[1:]) * 1e3  # the first frees what was never swapped in
    cpu = float(np.median([used for *_, used in taken])) * 1e3
    median, p90 = (float(np.quantile(ms, q)) for q in (0.5, 0.9))
    return Stretch(name, median, p90, float(ms.max()), cpu, len(ms))


class _Nobody:
    """Learns nothing."""

    def take(self, completion: Any) -> None:
        """Drop it."""

    def counts(self) -> dict[str, Any]:
        """None."""
        return {}


PAGE = """# Learning online: what it costs the engine's thread

{made}. With a learner in a process of its own, `update` takes {away} µs in the median instead of
{inline} µs (limit: {limit:g} µs, {met}). A thread that predicts every millisecond is {away_late}
ms late in the worst of 1,000 ticks (p99.9), learning inline {inline_late} ms, and {still_late} ms
where nothing is learned. A swap of what was learned keeps a thread from computing for {kept} ms at
a stretch (median).

    PYTHONPATH=src python benchmarks/online_learning.py

CPU time of `update` on the calling thread right after a first prediction, µs. *Inline*: the
predictor learns in the call. *Elsewhere*: a process of its own learns:

{costs}

How late a thread is that predicts every millisecond while 100 sequences a second end and the state
is swapped in every {every:g} s (ten times as often as by default); the time that the thread waited
for a core is taken off:

{late}

How long a swap keeps a thread that computes all the time from doing so, at a stretch; *CPU*: of
the swap itself:

{stretches}

How it works: [background learning](../explanation/background-learning.md).
"""


def page(spent: list[Cost], waited: list[Lateness], kept: list[Stretch], made: str) -> str:
    """Return the page of ``docs/lab``."""

    def span(values: list[float]) -> str:
        ends = [f"{value:.1f}" for value in (min(values), max(values))]
        return "–".join(dict.fromkeys(ends))

    cost = {how: [c.median for c in spent if c.learns == how] for how in ("inline", "elsewhere")}
    late = {
        how: span([each.p999 for each in waited if each.learns == how])
        for how in ("nothing", "inline", "elsewhere")
    }
    over = [c.predictor for c in spent if c.learns == "elsewhere" and c.median > TARGET_US]
    return PAGE.format(
        made=made,
        away=span(cost["elsewhere"]),
        inline=span(cost["inline"]),
        limit=TARGET_US,
        met=f"not kept by {', '.join(over)}" if over else "kept by all",
        away_late=late["elsewhere"],
        inline_late=late["inline"],
        still_late=late["nothing"],
        kept=span([each.median for each in kept]),
        every=EVERY_S,
        costs=costs_table(spent),
        late=lateness_table(waited),
        stretches=stretch_table(kept),
    )


def costs_table(spent: list[Cost]) -> str:
    """Return the CPU time of ``update``, a row a predictor."""
    by = {(cost.predictor, cost.learns): cost for cost in spent}
    rows = []
    for name in dict.fromkeys(cost.predictor for cost in spent):
        inline, away = by[name, "inline"], by[name, "elsewhere"]
        numbers = (inline.median, inline.p99, away.median, away.p99)
        rows.append([name, *(f"{n:,.1f}" for n in numbers), away.median <= TARGET_US])
    head = ["update, µs", "inline", "p99", "elsewhere", "p99", f"≤ {TARGET_US:g}"]
    return table(head, rows)


def lateness_table(waited: list[Lateness]) -> str:
    """Return how late ticks were, a row a predictor and way of learning."""
    rows = [
        [
            f"{each.predictor}, learns {each.learns}",
            *(f"{n:.2f}" for n in (each.median, each.p999, each.longest)),
            each.swaps or None,
            each.training_steps or None,
        ]
        for each in waited
    ]
    head = ["ms late per tick of 1 ms", "median", "p99.9", "longest", "swaps", "training steps"]
    return table(head, rows)


def stretch_table(kept: list[Stretch]) -> str:
    """Return how long swaps keep a thread from computing, a row a predictor."""
    rows = [
        [each.predictor, *(f"{n:.2f}" for n in (each.median, each.p90, each.longest, each.cpu))]
        for each in kept
    ]
    return table(["ms at a stretch", "median", "p90", "longest", "CPU"], rows)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description="Cost of online learning to an engine's thread.")
    parser.add_argument(
        "--output", type=Path, help="the page to write; with --quick none by default"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing")
    parser.add_argument("--predictors", nargs="+", default=list(PREDICTORS))
    options = parser.parse_args(arguments)
    made = code()
    output = options.output or (None if options.quick else DEFAULT_OUTPUT)
    single_thread()
    count, seconds = (40, 0.8) if options.quick else (1200, 12.0)
    spent = []
    for name in options.predictors:
        say(f"update, {name}")
        spent += costs(name, count)
    waited, kept = [], []
    for name in options.predictors:
        if name == "survival" or has_network(name):
            say(f"lateness, {name}")
            waited += lateness(name, fitted(name), seconds)
            kept.append(stretch(name, fitted(name), 4 if options.quick else SWAPS))
    if not options.quick:
        say("lateness, survival with 20,000 nodes")
        waited += lateness("survival, 20,000 nodes", crowded(), seconds)
        kept.append(stretch("survival, 20,000 nodes", crowded(), SWAPS))
    for part in (costs_table(spent), lateness_table(waited), stretch_table(kept)):
        print(part, end="\n\n")
    if set(options.predictors) == set(PREDICTORS):  # a page of some would mislead
        write_page(output, page(spent, waited, kept, made))
    found = {"update": spent, "late": waited, "kept": kept}
    write_json(options.json, {part: list(map(asdict, each)) for part, each in found.items()})


if __name__ == "__main__":
    main()
