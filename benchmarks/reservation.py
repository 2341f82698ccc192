"""Memory set aside and not used, at an equal rate of preemptions: ours against its rivals.

    PYTHONPATH=src python benchmarks/reservation.py --runs runs.jsonl [--requests 1000] [--drawn]

Needs the ``[vllm]`` extra and the data folder. Requests come in arrival order at overload; what
differs is how much memory is set aside for the growth of what runs. A rule that sets more aside
preempts less, so each is tried over a range, and all are read off their curves at the same
rates of preemption. The test part of a trace is cut into as many windows as asked for, which have
no request in common.

With ``--drawn`` the lengths are not those of the trace but drawn from the predictor's own
distributions at arrival: a world in which it is right. What is missed there, no better predictor
gets that knows no more about a request.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import DATA, code, load, read_lines, run_all, say, single_thread, table

single_thread()

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "reservation.md"
MEMORY = {"servegen_reasoning": 3000, "mooncake_conversation": 8000, "azure_conv": 1000}
# Surer and farther together, as on the training parts: neither alone does on both ends.
FIT = (
    (0.5, 32),
    (0.6, 48),
    (0.7, 64),
    (0.78, 96),
    (0.84, 128),
    (0.88, 192),
    (0.92, 256),
    (0.96, 512),
    (0.98, 1024),
    (0.99, 2048),
    (0.995, 4096),
    (0.997, 8192),
    (0.998, 16384),
    (0.999, 65536),
)
# What is known, times a factor, and how far ahead it is looked at; 0: to the end.
KNOWN = ((1.0, 4), (1.0, 16), (1.0, 32), (1.0, 128), (1.0, 0), (0.8, 0))
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Of a quantile of its own that each sequence is taken to live to."""
SHARES = (0.001, 0.002, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)
FACTORS = (1.0, 4.0, 8.0)
WATERMARKS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
RATES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LITTLE = 0.2
"""Per cent of the pool; parts of less are not worth a comparison."""
ONE_NUMBER = ("one share of max_tokens", "one average")
RULES = ("ours", "lengths known", "own quantile", *ONE_NUMBER, "watermark")

Point = tuple[float, ...]
"""Preemptions per request; waste and idle in per cent of the pool; mean latency; tokens/s."""
Curve = Mapping[str, Point]
"""A point per setting of a rule's knob."""


class Scaled:
    """A forecaster whose lengths are multiplied: the knob of rules that have only one number."""

    def __init__(self, inner: Any, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.arrived, self.finished = inner.arrived, inner.finished

    def forecast(self, ids: Sequence[Any], ages: np.ndarray) -> Any:
        """As the inner one's, for sequences ``factor`` times as long."""
        from sagellm_lifetime.policies.state import SurvivalForecast

        said = self.inner.forecast(ids, ages).expected()
        return SurvivalForecast.exact(np.maximum(said * self.factor, 1.0))


class OwnQuantile:
    """Every sequence lives to a quantile of its own distribution, given its age."""

    def __init__(self, inner: Any, level: float) -> None:
        self._predictor, self._level = inner.predictor, level
        self.arrived, self.finished = inner.arrived, inner.finished

    def forecast(self, ids: Sequence[Any], ages: np.ndarray) -> Any:
        """As if it were known."""
        from sagellm_lifetime.policies.state import SurvivalForecast

        said = self._predictor.distributions(ids, ages).quantile(self._level)
        return SurvivalForecast.exact(np.maximum(said, 1))


def window(frame: pl.DataFrame, number: int, options: argparse.Namespace) -> pl.DataFrame:
    """The first requests of one of the equal parts that a frame is cut into."""
    each = len(frame) // options.windows
    return frame[number * each : number * each + min(each, options.requests)]


def drawn(frame: pl.DataFrame, predictor: Any, seed: int) -> pl.DataFrame:
    """The same requests with lengths as the predictor expects them; none above the longest."""
    from sagellm_lifetime.evaluation.points import EvaluationRequests

    asker, asking, rng = predictor.clone(), EvaluationRequests(frame), np.random.default_rng(seed)
    lengths = []
    for row in range(len(frame)):
        asker.predict(asking.request(row, 0))
        said = asker.distributions([asking.sequence_id(row)], np.zeros(1, dtype=np.int64))
        lengths.append(int(said.quantile(float(rng.random()))[0]))
    longest = int(frame["actual_length"].max())  # type: ignore[arg-type]  # a number
    return frame.with_columns(actual_length=pl.Series(lengths).clip(1, longest))


def curves(
    name: str, options: argparse.Namespace, number: int
) -> tuple[int, dict[str, dict[str, Point]]]:
    """Requests of a window, and of each rule one point per setting of its knob."""
    from sagellm_lifetime import create_predictor
    from sagellm_lifetime.history.splits import split
    from sagellm_lifetime.policies.forecast import GlobalAverage, MaxTokens, PredictedLengths
    from sagellm_lifetime.policies.plan import Plan
    from sagellm_lifetime.policies.reservation import FARTHEST
    from sagellm_lifetime.replay.compare import replay
    from sagellm_lifetime.replay.cost import DEFAULT, cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.load import at_load
    from sagellm_lifetime.replay.planned import known, planned_policy
    from sagellm_lifetime.replay.trace import make_trace

    frame = load(options.data, name)
    assert frame is not None
    cut, cost = split(frame), cost_model(DEFAULT)
    engine = EngineSettings(blocks=MEMORY[name], prefix_caching="prefix_hashes" in frame.columns)
    predictor = create_predictor(options.predictor, seed=0).fit(cut.train)
    requests = window(cut.test, number, options)
    if options.drawn:
        requests = drawn(requests, predictor, number)
    trace = at_load("overload", make_trace(requests, seed=number), engine, cost).trace
    # What a careful user caps at: the longest answer seen so far, rounded up.
    cap = 1 << int(cut.train["actual_length"].max()).bit_length()  # type: ignore[arg-type]

    def run(
        asked: Callable[[Any], Any],
        fit: float = 0.5,
        horizon: int = FARTHEST,
        watermark: float = 0.0,
    ) -> Point:
        plan = Plan(order="fcfs", evict="", fit=fit, horizon=horizon)
        policy = planned_policy("", "", plan, asked, watermark)
        done = replay(trace, engine, cost, policy)
        share = 100.0 / (engine.blocks * done.result.backlog_s)
        return (
            done.metrics["preemptions"] / len(trace),
            done.result.withheld_block_s * share,
            done.result.idle_block_s * share,
            done.metrics["mean_latency_s"],
            done.metrics["tokens_per_s"],
        )

    def predicted(_: Any) -> Any:
        return PredictedLengths(predictor.clone())

    return len(trace), {
        "ours": {f"{fit:g}, {far} steps": run(predicted, fit, far) for fit, far in FIT},
        "lengths known": {
            f"{factor:g} of them, {far or FARTHEST} steps": run(
                lambda trace, f=factor: Scaled(known(trace), f), 0.5, far or FARTHEST
            )
            for factor, far in KNOWN
        },
        "own quantile": {
            f"{level:g}": run(lambda trace, q=level: OwnQuantile(predicted(trace), q))
            for level in LEVELS
        },
        "max_tokens": {"–": run(lambda _: MaxTokens(cap))},
        "one share of max_tokens": {
            f"{share:g}": run(lambda _, f=share: Scaled(MaxTokens(cap), f)) for share in SHARES
        },
        "one average": {
            f"{factor:g}": run(lambda _, f=factor: Scaled(GlobalAverage(), f)) for factor in FACTORS
        },
        "watermark": {f"{share:g}": run(known, 0.0, watermark=share) for share in WATERMARKS},
    }


def pooled(windows: Sequence[Mapping[str, Curve]]) -> dict[str, dict[str, Point]]:
    """The mean over the windows, setting by setting."""
    return {
        rule: {
            knob: tuple(np.mean([found[rule][knob] for found in windows], axis=0).tolist())
            for knob in curve
        }
        for rule, curve in windows[0].items()
    }


def least(curve: Curve, rate: float, column: int = 1) -> float:
    """The least waste (or idle) with which a rule preempts no more often; NaN where it cannot.

    Between two settings it is interpolated: a mixture of both does that.
    """
    points = sorted((point[0], point[column]) for point in curve.values())
    front: list[tuple[float, float]] = []
    for often, waste in points:
        # Below the line from the last but one to the new one, or it is of no use.
        if front and waste >= front[-1][1]:
            continue
        while len(front) > 1 and _right_turn(front[-2], front[-1], (often, waste)):
            front.pop()
        front.append((often, waste))
    if rate < front[0][0]:
        return float("nan")
    return float(np.interp(rate, *zip(*front, strict=True)))


def _right_turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


def change(found: Mapping[str, Curve], rate: float, rule: str, rivals: Sequence[str]) -> float:
    """Waste of a rule against the best of its rivals, in per cent; NaN where it is hardly any."""
    against = [least(found[rival], rate) for rival in rivals]
    best = min((each for each in against if not np.isnan(each)), default=float("nan"))
    return 100.0 * (least(found[rule], rate) / best - 1.0) if best >= LITTLE else float("nan")


def report(name: str, windows: Sequence[Mapping[str, Curve]]) -> str:
    """Three tables: waste and idle at equal rates, and all points."""
    found = pooled(windows)
    idle = [
        [f"{rate:g}", *(_cell(least(found[rule], rate, 2)) for rule in RULES)] for rate in RATES
    ]
    every = [
        [rule, knob, f"{p[0]:.4f}", f"{p[1]:.2f}", f"{p[2]:.1f}", f"{p[3]:.1f}", f"{p[4]:.0f}"]
        for rule, curve in found.items()
        for knob, p in curve.items()
    ]
    return (
        f"## {name}, {MEMORY[name]:,} blocks\n\n"
        + equal_rates(found, windows)
        + "\n\nIdle, per cent of the pool:\n\n"
        + table(["preempted per request", *RULES], idle)
        + "\n\nAll settings:\n\n"
        + table(["rule", "knob", "preempted", "waste", "idle", "mean s", "tokens/s"], every)
    )


def right(name: str, windows: Sequence[Mapping[str, Curve]]) -> str:
    """The first of these tables, for lengths that are drawn."""
    head = f"## {name}, {MEMORY[name]:,} blocks, were the predictor right\n\n"
    return head + equal_rates(pooled(windows), windows)


def equal_rates(found: Mapping[str, Curve], windows: Sequence[Mapping[str, Curve]]) -> str:
    """Waste of every rule at equal rates of preemption, of all windows and of each."""
    rows = []
    for rate in RATES:
        each = [_signed(change(one, rate, "ours", ONE_NUMBER)) for one in windows]
        rows.append(
            [
                f"{rate:g}",
                *(_cell(least(found[rule], rate)) for rule in RULES),
                _signed(change(found, rate, "ours", ONE_NUMBER)) + f" ({', '.join(each)})",
                _signed(change(found, rate, "lengths known", ONE_NUMBER)),
                _signed(change(found, rate, "ours", ["watermark"])),
            ]
        )
    top = found["max_tokens"]["–"]
    against = ["ours against one number", "known against it", "ours against watermark"]
    return (
        f"Reserving `max_tokens` wastes {top[1]:.1f} % of the pool ({top[2]:.1f} % idle, "
        f"{top[0]:.4f} preempted a request). Waste, per cent of the pool:\n\n"
        + table(["preempted per request", *RULES, *against], rows)
    )


def _cell(waste: float) -> str:
    return "–" if np.isnan(waste) else f"{waste:.2f}"


def _signed(percent: float) -> str:
    return "–" if np.isnan(percent) else f"{percent:+.0f} %"


COMMAND = "PYTHONPATH=src python benchmarks/reservation.py " + shlex.join(sys.argv[1:])
INTRODUCTION = """\
# Reservation: memory set aside and not used

<!-- [[[cog import figures; print(figures.reservation_answer()) ]]] -->
<!-- [[[end]]] -->

Made by `benchmarks/reservation.py`, last by this command, {code},

    {command}

Arrival order at overload, through vLLM's scheduler, lengths predicted by `{predictor}`, step cost
`a100-7b`; windows of the test part that have no request in common. All figures are shares of the
pool while somebody waits: *waste* is what a rule keeps free for the growth of what runs and what
stays free, *idle* all that is free, set aside or not. What vLLM keeps for the rest of prompts begun
counts for nobody. The knob of ours is `fit` with `horizon`; each rule is read off the lower hull of
its settings, so that all are compared at the same rates of preemption; a dash where no setting
preempts so seldom, or the rival wastes less than 0.2 %. Means over the windows; in brackets each
window. *Own quantile*: each sequence is taken to live to one of its own distribution, given its
age. *One number* is the better of one share of `max_tokens` and one average, *known* our rule
with known lengths. No trace says `max_tokens`: it is the longest answer of the training part,
rounded up to a power of two. *Were the predictor right*: lengths drawn from the predictor's own
distributions at arrival, so that what it says is true, and what is missed there is missed for want
of knowledge.
What follows from it: [policies](../explanation/policies.md#reservation).

"""


def window_of(name: str, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """All rules on one window; runs in its own process."""
    requests, found = curves(name, options, number)
    return {
        "trace": name,
        "window": number,
        "windows": options.windows,
        "requests": requests,
        "at_most": options.requests,
        "drawn": options.drawn,
        "predictor": options.predictor,
        "found": found,
    }


def pages(runs: Sequence[Mapping[str, Any]]) -> str:
    """The traces in turn, and then the same were the predictor right."""
    parts = []
    for drawn_too, say_it in ((False, report), (True, right)):
        for name in MEMORY:
            lines = [run for run in runs if (run["trace"], run["drawn"]) == (name, drawn_too)]
            lines.sort(key=lambda run: run["window"])
            if lines:
                requests = ", ".join(f"{run['requests']:,}" for run in lines)
                said = say_it(name, [run["found"] for run in lines])
                parts.append(f"{said}\n\nRequests of the windows: {requests}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Replay, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", default=list(MEMORY), choices=list(MEMORY))
    parser.add_argument("--requests", type=int, default=200, help="of a window, at most")
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--drawn", action="store_true", help="lengths as the predictor expects")
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--runs", type=Path, required=True, help="a line for every window done")
    parser.add_argument("--jobs", type=int, default=2, help="windows replayed at a time")
    options = parser.parse_args()
    made, runs = code(), read_lines(options.runs)
    asked = (options.windows, options.requests, options.predictor)
    mine = [run for run in runs if run["trace"] in options.only and run["drawn"] == options.drawn]
    if any((run["windows"], run["at_most"], run["predictor"]) != asked for run in mine):
        parser.error(f"{options.runs} holds runs with other --windows, --requests or --predictor")
    done = {(run["trace"], run["window"]) for run in mine}
    wanted = [(name, i) for name in options.only for i in range(options.windows)]
    for run in run_all(window_of, [each for each in wanted if each not in done], options):
        runs.append(run)
        say(f"{run['trace']}, window {run['window']}")
    head = INTRODUCTION.format(**vars(options), command=COMMAND, code=made)
    options.output.write_text(head + pages(runs))


if __name__ == "__main__":
    main()
