"""The outlook on traces: do its ranges hold what they say, and its probabilities come true?

    PYTHONPATH=src python benchmarks/outlook.py --runs runs.jsonl [--requests 400]

Needs the ``[vllm]`` extra and the data folder. Requests come in arrival order at the knee and at
overload, through vLLM's scheduler in its own order; the predictor learns on the way. Now and then
the replay is looked at as a running engine is, and the outlook is compared with what follows. The
test part of a trace is cut in two: on the first half the correlation of the draws is chosen, the
second half is reported.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict, deque
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, code, load, read_lines, run_all, say, single_thread, table, write_page

single_thread()

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "outlook.md"
MEMORY = {"servegen_reasoning": 3000, "azure_conv": 1000, "servegen_chat": 4000}
LOADS = ("knee", "overload")
SHARED = (0.0, 0.05, 0.1, 0.2)
"""Correlations of the draws that are tried."""
LOOKS = 60
"""Looks at one replay."""
DEADLINES_S = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0)
PLACES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles of the time of a free place at which its probability is compared with what came."""
BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
PACE_S = 30.0


class Everything:
    """A container of every id: all sequences of a replay are predicted at once."""

    def __contains__(self, name: object) -> bool:
        return True


class Watch:
    """Looks at a replay, and keeps when each request was admitted and ended."""

    def __init__(self, run: Any, every_s: float) -> None:
        self.run, self.every = run, every_s
        self.looks: list[tuple[float, Any, list[str], dict[str, int]]] = []
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
        self._on_events(events)

    def schedule(self, *args: Any) -> Any:
        """One step, and a look before it when it is time."""
        now, scheduler = self.run.now, self.run.scheduler
        if self._last is not None:
            self._steps.append((now, now - self._last))
            while self._steps[0][0] < now - PACE_S:
                self._steps.popleft()
        if now >= self._due and self._steps and scheduler.running:
            self._due = now + self.every
            self._look(now)
        answer = self._schedule(*args)
        self._last = now if scheduler.running else None
        return answer

    def _look(self, now: float) -> None:
        from sagellm_lifetime.vllm.live_outlook import situation_of

        scheduler = self.run.scheduler
        guard = scheduler.advisor
        guard.flush()
        pace = float(np.mean([seconds for _, seconds in self._steps]))
        situation, names = situation_of(
            scheduler, guard._advisor._forecaster.forecast, Everything(), seconds_per_step=pace,
            reserve=scheduler.kv_cache_manager.watermark_blocks,
        )  # fmt: skip
        ages = {r.request_id: r.num_output_tokens for r in [*scheduler.running, *scheduler.waiting]}
        self.looks.append((now, situation, names, ages))


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
    requests = cut.test[half * each : half * each + min(each, options.requests)]
    engine = EngineSettings(blocks=MEMORY[name], prefix_caching="prefix_hashes" in frame.columns)
    predictor = create_predictor(options.predictor, seed=0).fit(cut.train)
    trace = at_load(at, make_trace(requests, seed=half), engine, cost).trace
    plan = Plan(order="fcfs", evict="")
    policy = planned_policy("", "", plan, lambda _: PredictedLengths(predictor.clone()), 0.0)
    run = Run(trace, engine, cost, policy)
    watch = Watch(run, trace[-1].arrival / LOOKS)
    run.execute()
    return watch, trace


def scores(watch: Watch, trace: Any, shared: float) -> dict[str, Any]:
    """What was expected, beside what came: sums to be added over replays."""
    from sagellm_lifetime.policies.outlook import _peaks, look_ahead

    lengths = {request.id: request.output_length for request in trace}
    arrivals = np.array([request.arrival for request in trace])
    rng = np.random.default_rng(0)
    found: dict[str, list[Any]] = defaultdict(list)
    for number, (now, situation, names, ages) in enumerate(watch.looks):
        outlook = look_ahead(situation, seed=number, shared=shared)
        count = len(situation.running)
        left = np.array([lengths[name] - ages[name] for name in names[:count]])
        queued = sum(lengths[n] - age for n, age in ages.items()) - int(left.sum())
        peak = float(_peaks(situation, np.repeat(left[:, None], 1, axis=1)).max())
        for part, truth, (expected, p90) in (
            ("running", left.sum(), outlook.running_tokens),
            ("waiting", queued, outlook.waiting_tokens),
            ("peak", peak, outlook.peak_blocks),
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


def one(name: str, half: int, at: str, options: argparse.Namespace) -> dict[str, Any]:
    """All correlations on one replay; runs in its own process."""
    watch, trace = watched(name, half, at, options)
    tried = SHARED if half == 0 else (options.shared,)
    return {
        "trace": name, "half": half, "load": at, "requests": len(trace),
        "looks": len(watch.looks), "predictor": options.predictor,
        "found": {f"{shared:g}": scores(watch, trace, shared) for shared in tried},
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


def together(runs: list[dict[str, Any]], shared: str) -> dict[str, Any]:
    """The samples of several replays, thinned so that each has about as many looks."""
    answer: dict[str, Any] = defaultdict(list)
    for run in runs:
        every = max(round(run["looks"] / LOOKS), 1)
        for name, values in run["found"][shared].items():
            answer[name] += values[::every]
    return answer


INTRODUCTION = """\
# The outlook: do its ranges hold, and its probabilities come true?

{answer}

Made by `benchmarks/outlook.py`, {code}, last by this command ({sizes}),

    {command}

Requests in vLLM's own order, through vLLM's scheduler, at the knee and at overload; lengths
predicted by `{predictor}`, which learns on the way; step cost `a100-7b`. Some {looks} times in a
replay the engine is looked at as a live one is. *Expected ÷ came* is the sum of what was expected
over the sum of what came (1 is right); *within p90* the share of looks at which no more came than
the 0.9 quantile (90 is right); *done by* the share at which all that ran was done by the 0.5 and
the 0.95 quantile; *placed by Retry-After* the share at which the next request to come had a place
by then (90 or more is right), where one was not free at once. Looks at one replay follow each
other and are not independent: of sixty, an effective number of ten to twenty. What it is for:
[look ahead](../how-to/look-ahead.md).
"""


def _answer(found: dict[str, Any]) -> str:
    """The first paragraph."""
    running, inside, waiting, queued, _, peak, half, nearly, placed, _ = row(found)
    return (
        f"Over the replays together, {running} times as many tokens are expected of what runs "
        f"as come, and {waiting} times of what waits; the 0.9 quantile is not exceeded in "
        f"{inside} and {queued} %, that of the peak of memory in {peak} %. What runs is done by "
        f"the median in {half} % and by the 0.95 quantile in {nearly} %; after Retry-After a "
        f"place is free in {placed} %."
    )


def page(runs: list[dict[str, Any]], options: argparse.Namespace, made: str) -> str:
    """The whole page."""
    chosen = f"{options.shared:g}"
    held = [run for run in runs if run["half"] == 1]
    choice = [run for run in runs if run["half"] == 0]
    sizes = {run["trace"]: run["requests"] for run in held}
    command = "PYTHONPATH=src python benchmarks/outlook.py " + shlex.join(sys.argv[1:])
    text = INTRODUCTION.format(
        answer=_answer(together(held, chosen)),
        sizes=", ".join(f"{t} {n} requests" for t, n in sizes.items()),
        code=made,
        command=command,
        predictor=options.predictor,
        looks=LOOKS,
    )
    rows = [[f"{run['trace']}, {run['load']}", *row(run["found"][chosen])] for run in held]
    rows.append(["all, equal weight", *row(together(held, chosen))])
    text += "\n## Ranges, second halves\n\n" + table(["replay", *HEADER], rows)
    bins = [f"{low:g}–{high:g}" for low, high in pairwise(BINS)]
    rows = [
        [f"{words}, {load}", *reliability(together([r for r in held if r["load"] == load],
                                                   chosen).get(kind, []))]
        for kind, words in (("place", "a place is free"), ("ends", "a request ends"))
        for load in LOADS
    ]  # fmt: skip
    text += (
        "\n\n## Probabilities, second halves\n\n"
        "Of a place for the next request to come, at times between which the probability rises "
        "from 0.1 to 0.9, and of the end of a present one within 1 to 120 s. In each bin the mean "
        "probability, how often it came true, and the number.\n\n" + table(["", *bins], rows)
    )
    rows = (
        [[shared, *row(together(choice, shared))] for shared in choice[0]["found"]]
        if choice
        else []
    )
    text += f"\n\n## The correlation of the draws, first halves\n\nChosen: {chosen}.\n\n" + table(
        ["correlation", *HEADER], rows
    )
    return text


def main() -> None:
    """Run what is missing, and write the page."""
    from sagellm_lifetime.policies.outlook import SHARED as CHOSEN

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(MEMORY), choices=list(MEMORY))
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--shared", type=float, default=CHOSEN)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    made = code()
    there = {(run["trace"], run["half"], run["load"]) for run in read_lines(options.runs)}
    todo = [
        key for name in options.only for half in (0, 1) for at in LOADS
        if (key := (name, half, at)) not in there
    ]  # fmt: skip
    for run in run_all(one, todo, options):
        say(f"{run['trace']}, half {run['half']}, {run['load']}: {run['looks']} looks")
    write_page(options.output, page(read_lines(options.runs), options, made))


if __name__ == "__main__":
    main()
