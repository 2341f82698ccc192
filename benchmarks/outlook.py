"""The outlook on traces: do its ranges hold what they say, and its probabilities come true?

    PYTHONPATH=src python benchmarks/outlook.py --runs runs.jsonl

Needs the ``[vllm]`` extra and the data folder. Requests come in arrival order at the knee and at
overload, through vLLM's scheduler in its own order; the predictor learns on the way. Now and then,
while requests come, the replay is looked at as a running engine is, and the outlook is compared
with what follows: as drawn, and calibrated by what came of the outlooks before it. The test part of
a trace is cut in two: on the first half (``--half 0``) the correlation of the draws and how the
calibration remembers were chosen, the second half is reported.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, code, load, read_lines, run_all, say, single_thread, table, write_page

single_thread()

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "outlook.md"
MEMORY = {"servegen_reasoning": 3000, "azure_conv": 1000, "servegen_chat": 4000}
LOADS = ("knee", "overload")
REQUESTS = {"servegen_reasoning": 1500, "azure_conv": 3000, "servegen_chat": 3000}
LOOKS = 240
"""Looks at one replay while requests come."""
KINDS = ("as drawn", "calibrated")
DEADLINES_S = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0)
PLACES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of the time of a free place at which its probability is compared with what came."""
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
PACE_S = 30.0


class Everything:
    """A container of every id: all sequences of a replay are predicted at once."""

    def __contains__(self, name: object) -> bool:
        return True


@dataclass
class Look:
    """One look at a replay, and the outlooks made then, one for each of ``KINDS``."""

    now: float
    situation: Any
    names: list[str]
    ages: dict[str, int]
    outlooks: tuple[Any, ...]


class Watch:
    """Looks at a replay, and keeps when each request was admitted and ended."""

    def __init__(self, run: Any, every_s: float, until_s: float) -> None:
        from sagellm_lifetime.policies.outlook_calibration import OutlookCalibration

        self.run, self.every, self.until = run, every_s, until_s
        self.looks: list[Look] = []
        self.calibration = OutlookCalibration()
        self.admitted: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self._due = every_s
        self._steps: deque[tuple[float, float]] = deque()
        self._last: float | None = None
        scheduler = run.scheduler
        self._schedule, scheduler.schedule = scheduler.schedule, self.schedule
        guard = scheduler.advisor
        self._on_events, guard.on_events = guard.on_events, self.on_events

    def on_events(self, events: Any) -> None:
        """Keep the first admission and the end."""
        from sagellm_lifetime.policies.events import Admitted, Finished

        for event in events:
            if isinstance(event, Admitted):
                self.admitted.setdefault(event.sequence_id, event.at)
            elif isinstance(event, Finished):
                self.ended[event.sequence_id] = event.at
        self.calibration.on_events(events, self.run.now)
        self._on_events(events)

    def schedule(self, *args: Any) -> Any:
        """One step, and a look before it when it is time."""
        now, scheduler = self.run.now, self.run.scheduler
        if self._last is not None:
            self._steps.append((now, now - self._last))
            while self._steps[0][0] < now - PACE_S:
                self._steps.popleft()
        if self._due <= now <= self.until and self._steps and scheduler.running:
            self._due = now + self.every
            self._look(now)
        answer = self._schedule(*args)
        self._last = now if scheduler.running else None
        return answer

    def _look(self, now: float) -> None:
        from sagellm_lifetime.policies.outlook import look_ahead
        from sagellm_lifetime.vllm.live_outlook import situation_of

        scheduler = self.run.scheduler
        guard = scheduler.advisor
        guard.flush()
        pace = float(np.mean([seconds for _, seconds in self._steps]))
        situation, names, generated = situation_of(
            scheduler, guard._advisor._forecaster.forecast, Everything(), seconds_per_step=pace,
            reserve=scheduler.kv_cache_manager.watermark_blocks,
        )  # fmt: skip
        ages = {r.request_id: r.num_output_tokens for r in [*scheduler.running, *scheduler.waiting]}
        seed = len(self.looks)
        drawn = look_ahead(situation, seed)
        self.calibration.look(dict(zip(names, generated, strict=True)), now)
        calibrated = look_ahead(situation, seed, correct=self.calibration.correct)
        self.calibration.remember(now, situation, calibrated, names, generated)
        self.looks.append(Look(now, situation, names, ages, (drawn, calibrated)))


def watched(name: str, half: int, at: str, options: argparse.Namespace) -> tuple[Watch, Any]:
    """A watched replay of one half of the test part."""
    from sagellm_lifetime import create_predictor
    from sagellm_lifetime.history.splits import split
    from sagellm_lifetime.policies.forecast import PredictedLengths
    from sagellm_lifetime.policies.plan import Plan
    from sagellm_lifetime.replay.cost import DEFAULT, cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.load import at_load
    from sagellm_lifetime.replay.planned import planned_policy
    from sagellm_lifetime.replay.run import Run
    from sagellm_lifetime.replay.trace import make_trace

    frame = load(options.data, name)
    assert frame is not None
    cut, cost = split(frame), cost_model(DEFAULT)
    each = len(cut.test) // 2
    requests = cut.test[half * each : half * each + min(each, options.requests or REQUESTS[name])]
    engine = EngineSettings(blocks=MEMORY[name], prefix_caching="prefix_hashes" in frame.columns)
    predictor = create_predictor(options.predictor, seed=0).fit(cut.train)
    trace = at_load(at, make_trace(requests, seed=half), engine, cost).trace
    plan = Plan(order="fcfs", evict="")
    policy = planned_policy("", "", plan, lambda _: PredictedLengths(predictor.clone()), 0.0)
    run = Run(trace, engine, cost, policy)
    watch = Watch(run, trace[-1].arrival / LOOKS, trace[-1].arrival)
    run.execute()
    return watch, trace


def scores(watch: Watch, trace: Any, kind: int) -> dict[str, Any]:
    """What was expected, beside what came, look by look."""
    from sagellm_lifetime.policies.outlook import peak_blocks

    lengths = {request.id: request.output_length for request in trace}
    arrivals = np.array([request.arrival for request in trace])
    rng = np.random.default_rng(0)
    found: dict[str, list[Any]] = defaultdict(list)
    for look in watch.looks:
        now, situation, names, ages = look.now, look.situation, look.names, look.ages
        outlook = look.outlooks[kind]
        count = len(situation.running)
        left = np.array([lengths[name] - ages[name] for name in names[:count]])
        queued = sum(lengths[n] - age for n, age in ages.items()) - int(left.sum())
        peak = peak_blocks(left[:, None], situation.running_tokens, situation.block_size)
        for part, truth, (expected, p90) in (
            ("running", left.sum(), outlook.running_tokens),
            ("waiting", queued, outlook.waiting_tokens),
            ("peak", float(peak[0]), outlook.peak_blocks),
        ):
            if part != "waiting" or situation.queue_length:
                found[part].append([float(truth), expected, float(truth <= p90)])
        done = max(watch.ended[name] for name in names[:count]) - now
        assert outlook.done_s is not None
        found["done"].append([float(done <= limit) for limit in outlook.done_s])
        _place(watch, trace, arrivals, now, outlook, found)
        for index in rng.choice(len(names), min(len(names), 12), replace=False):
            for deadline in DEADLINES_S:
                came = watch.ended[names[index]] - now <= deadline
                found["ends"].append([outlook.ends_within(int(index), deadline), float(came)])
    return dict(found)


def independent(looks: list[Look]) -> float:
    """The number of looks, each counted by its share of sequences that the one before had not."""
    total, before = 0.0, frozenset[str]()
    for look in looks:
        present = frozenset(look.names[: len(look.situation.running)])
        total += len(present - before) / max(len(present), 1)
        before = present
    return total


def _place(
    watch: Watch, trace: Any, arrivals: np.ndarray, now: float, outlook: Any,
    found: dict[str, list[Any]],
) -> None:  # fmt: skip
    """Add whether the next request to arrive had a place in time."""
    following = int(np.searchsorted(arrivals, now, side="right"))
    if following == len(trace):
        return
    began = watch.admitted[trace[following].id] - now
    for seconds in np.quantile(outlook.place_s, PLACES, method="higher").tolist():
        if seconds > 0.0 and arrivals[following] - now <= seconds:
            found["place"].append([outlook.place_within(seconds), float(began <= seconds)])
    retry = max(outlook.retry_after_s, 0)
    if outlook.place_within(0.0) < 1.0 and arrivals[following] - now <= retry:
        found["retry"].append([float(began <= retry)])


def one(name: str, at: str, options: argparse.Namespace) -> dict[str, Any]:
    """One replay, its outlooks as drawn and calibrated; runs in its own process."""
    watch, trace = watched(name, options.half, at, options)
    return {
        "trace": name, "half": options.half, "load": at, "requests": len(trace),
        "looks": len(watch.looks), "independent": independent(watch.looks),
        "predictor": options.predictor, "code": options.code,
        "found": {kind: scores(watch, trace, i) for i, kind in enumerate(KINDS)},
    }  # fmt: skip


def reliability(pairs: list[list[float]]) -> list[str]:
    """Per bin of the probability: the mean one, how often it came true, and of how many."""
    expected, came = np.array(pairs or np.zeros((0, 2))).T
    cells = []
    for i, (low, high) in enumerate(pairwise(BINS)):
        last = i == len(BINS) - 2
        inside = (expected >= low) & ((expected <= high) if last else (expected < high))
        cells.append(
            f"{expected[inside].mean():.2f}: {came[inside].mean():.2f} ({inside.sum()})"
            if inside.sum() >= 20 else "–"
        )  # fmt: skip
    return cells


def row(found: dict[str, Any]) -> list[str]:
    """The ranges of one replay, or of several together."""

    def share(values: list[Any], column: int) -> str:
        return f"{100 * np.mean([v[column] for v in values]):.0f}" if values else "–"

    def ratio(values: list[Any]) -> str:
        truth, expected = (sum(v[i] for v in values) for i in (0, 1))
        return f"{expected / truth:.2f}" if truth else "–"

    parts = [found.get(name, []) for name in ("running", "waiting", "peak")]
    cells = [cell for values in parts for cell in (ratio(values), share(values, 2))]
    done, retry = found.get("done", []), found.get("retry", [])
    return [*cells, share(done, 0), share(done, 1), share(retry, 0), str(len(retry))]


HEADER = (
    *("running: expected ÷ came", "within p90"),
    *("waiting: expected ÷ came", "within p90"),
    *("peak: expected ÷ came", "within p90"),
    *("done by p50", "done by p95"),
    *("placed by Retry-After", "of"),
)


def together(runs: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The samples of several replays."""
    answer: dict[str, Any] = defaultdict(list)
    for run in runs:
        for name, values in run["found"][kind].items():
            answer[name] += values
    return answer


INTRODUCTION = """\
# The outlook: do its ranges hold, and its probabilities come true?

{answer}

Made {code}, by

    {command}

Requests ({sizes}, of the {half} half of each test part) in vLLM's own order, through vLLM's
scheduler, at the knee and at overload; lengths predicted by `{predictor}`, which learns on the way;
step cost `a100-7b`. Some {looks} times while requests come the engine is looked at as a live one
is. *Expected ÷ came* is the sum of what was expected over the sum of what came (1 is right);
*within p90* the share of looks at which no more came than the 0.9 quantile (90 is right); *done by*
the share at which all that ran was done by the 0.5 and the 0.95 quantile; *placed by Retry-After*
the share at which the next request to come had a place by then (90 is right), where one was not
free at once. Looks share sequences: *independent* counts each by its share of new ones, and of 50
independent looks a share of 90 % is uncertain by 4 points. The calibration starts with nothing in
each replay. Which looks count, the correlation of the draws, and how much the calibration remembers
were chosen on the first halves. What it is for: [look ahead](../how-to/look-ahead.md).
"""


def _answer(runs: list[dict[str, Any]]) -> str:
    """The first paragraph."""
    drawn, now = (
        [row(run["found"][kind]) for run in runs] + [row(together(runs, kind))] for kind in KINDS
    )

    def span(rows: list[list[str]], column: int) -> str:
        cells = [int(cells[column]) for cells in rows[:-1] if cells[column] != "–"]
        return f"{min(cells)} to {max(cells)} % ({rows[-1][column]} % in all)"

    return (
        f"**Calibrated by what came of earlier ones, the 0.9 quantile of an outlook is not "
        f"exceeded in {span(now, 1)} of the looks for what runs, {span(now, 3)} for what waits, "
        f"{span(now, 5)} for the peak of memory; after Retry-After a place is free in "
        f"{span(now, 8)}.** As drawn it is {span(drawn, 1)}, {span(drawn, 3)}, {span(drawn, 5)} "
        f"and {span(drawn, 8)}. The range is that over the replays."
    )


def page(runs: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The whole page."""
    sizes = {run["trace"]: run["requests"] for run in runs}
    command = "PYTHONPATH=src python benchmarks/outlook.py " + shlex.join(sys.argv[1:])
    text = INTRODUCTION.format(
        answer=_answer(runs),
        sizes=", ".join(f"{t} {n:,}" for t, n in sizes.items()),
        half=("first", "second")[options.half],
        code=options.code,
        command=command,
        predictor=options.predictor,
        looks=LOOKS,
    ).rstrip()
    for kind in reversed(KINDS):
        rows = [
            [
                f"{run['trace']}, {run['load']}",
                f"{run['independent']:.0f}",
                *row(run["found"][kind]),
            ]
            for run in runs
        ]
        rows.append(["all", "", *row(together(runs, kind))])
        text += f"\n\n## Ranges, {kind}\n\n" + table(["replay", "independent", *HEADER], rows)
    bins = [f"{low:g}–{high:g}" for low, high in pairwise(BINS)]
    rows = [
        [f"{words}, {load}, {kind}", *reliability(together([r for r in runs if r["load"] == load],
                                                           kind).get(name, []))]
        for name, words, kinds in (("place", "a place is free", KINDS),
                                   ("ends", "a request ends", KINDS[:1]))
        for kind in kinds
        for load in LOADS
    ]  # fmt: skip
    return text + (
        "\n\n## Probabilities\n\n"
        "Of a place for the next request to come, at times between which the probability rises "
        "from 0.1 to 0.9, and of the end of a present one within 1 to 120 s (never calibrated by "
        "past outlooks). In each bin the mean probability, how often it came true, and the "
        "number.\n\n" + table(["", *bins], rows)
    )


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MEMORY), choices=list(MEMORY))
    parser.add_argument("--half", type=int, default=1, choices=(0, 1))
    parser.add_argument("--requests", type=int, help="of each replay; by trace where not given")
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    options.code = code()
    runs = read_lines(options.runs)
    if any(run["code"] != options.code or run["half"] != options.half for run in runs):
        raise SystemExit(f"{options.runs}: of another commit or half: name another file")
    there = {(run["trace"], run["load"]) for run in runs}
    todo = [
        key for name in options.only for at in LOADS if (key := (name, at)) not in there
    ]  # fmt: skip
    for run in run_all(one, todo, options):
        say(f"{run['trace']}, {run['load']}: {run['looks']} looks")
    runs = sorted(
        read_lines(options.runs), key=lambda run: (run["trace"], LOADS.index(run["load"]))
    )
    write_page(options.output, page(runs, options))


if __name__ == "__main__":
    main()
