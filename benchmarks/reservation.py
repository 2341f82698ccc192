"""Memory set aside and not used, at an equal rate of preemptions: ours against four rivals.

    PYTHONPATH=src python benchmarks/reservation.py [--output docs/reservation.md]

Needs the ``[vllm]`` extra and the data folder. Requests come in arrival order at overload; what
differs is how much memory is set aside for the growth of what runs. A rule that sets more aside
preempts less, so each is tried over its whole range, and the waste of each rival is read off its
curve where it preempts as often as ours does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, load, say, single_thread, table

single_thread()

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "reservation.md"
MEMORY = {"servegen_reasoning": 3000, "mooncake_conversation": 8000, "azure_conv": 1000}
FIT = (0.5, 0.7, 0.9, 0.95, 0.99)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
WATERMARKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
RIVALS = ("max_tokens", "one share of max_tokens", "one average", "watermark")


class Scaled:
    """A forecaster whose lengths are multiplied: the knob of rules that have only one number."""

    def __init__(self, inner: Any, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.arrived, self.finished = inner.arrived, inner.finished

    def outlook(self, ids: Sequence[Any], ages: np.ndarray) -> Any:
        """As the inner one's, for sequences ``factor`` times as long."""
        from sagellm_lifetime.policies.state import Outlook

        said = self.inner.outlook(ids, ages).expected()
        return Outlook.exact(np.maximum(said * self.factor, 1.0))


def curves(name: str, options: argparse.Namespace) -> dict[str, list[tuple[float, ...]]]:
    """Of each rule, one point per setting of its knob: preemptions, waste, idle, latency, pace."""
    from sagellm_lifetime import create_predictor
    from sagellm_lifetime.core.splits import split
    from sagellm_lifetime.policies.forecast import GlobalAverage, MaxTokens, PredictedLengths
    from sagellm_lifetime.policies.plan import Plan
    from sagellm_lifetime.replay.compare import replay
    from sagellm_lifetime.replay.cost import DEFAULT, cost_model
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.load import at_load
    from sagellm_lifetime.replay.planned import _planned, known
    from sagellm_lifetime.replay.trace import make_trace, sample

    frame = load(options.data, name)
    assert frame is not None
    cut, cost = split(frame), cost_model(DEFAULT)
    engine = EngineSettings(blocks=MEMORY[name], prefix_caching="prefix_hashes" in frame.columns)
    trace = make_trace(sample(cut.test, options.requests, seed=0), seed=0)
    trace = at_load("overload", trace, engine, cost).trace
    predictor = create_predictor(options.predictor, seed=0).fit(cut.train)
    # What a careful user caps at: the longest answer seen so far, rounded up.
    cap = 1 << int(cut.train["actual_length"].max()).bit_length()  # type: ignore[arg-type]

    def run(asked: Callable[[Any], Any], fit: float, watermark: float = 0.0) -> tuple[float, ...]:
        plan = Plan(order="fcfs", evict="", fit=fit)
        policy = _planned("", "", plan, asked, {"watermark": watermark})
        done = replay(trace, engine, cost, policy).metrics
        share = 100.0 / (engine.blocks * done["makespan_s"])
        return (
            done["preemptions"] / len(trace),
            done["reserved_unused_block_s"] * share,
            done["idle_block_s"] * share,
            done["mean_latency_s"],
            done["tokens_per_s"],
        )

    found = {
        "ours": [run(lambda _: PredictedLengths(predictor.clone()), fit) for fit in FIT],
        "lengths known": [run(known, 0.5)],
        "max_tokens": [run(lambda _: MaxTokens(cap), 0.5)],
        "one share of max_tokens": [
            run(lambda _, f=share: Scaled(MaxTokens(cap), f), 0.5) for share in SHARES
        ],
        "one average": [
            run(lambda _, f=factor: Scaled(GlobalAverage(), f), 0.5) for factor in FACTORS
        ],
        "watermark": [run(known, 0.0, share) for share in WATERMARKS],
    }
    say(f"{name} done")
    return found


def waste_at(points: list[tuple[float, ...]], preemptions: float) -> float:
    """Waste where a rule preempts so often; NaN where it never does."""
    curve = sorted((p[0], p[1]) for p in points)
    if not curve[0][0] <= preemptions <= curve[-1][0]:
        return float("nan")
    # Of settings that preempt equally often, the one that wastes least.
    best: dict[float, float] = {}
    for rate, waste in curve:
        best[rate] = min(waste, best.get(rate, np.inf))
    return float(np.interp(preemptions, list(best), list(best.values())))


def report(name: str, found: dict[str, list[tuple[float, ...]]]) -> str:
    """Two tables: ours against the rivals, and all points."""
    rows = []
    for fit, point in zip(FIT, found["ours"], strict=True):
        # The cap has no knob: it never preempts, at any waste.
        waste = {rival: waste_at(found[rival], point[0]) for rival in RIVALS[1:]}
        waste["max_tokens"] = found["max_tokens"][0][1]
        cells = [
            "–"
            if np.isnan(waste[r])
            else f"{waste[r]:.1f} % ({100 * (point[1] / waste[r] - 1):+.0f} %)"
            for r in RIVALS
        ]
        rows.append([f"{fit:g}", f"{point[0]:.2f}", f"{point[1]:.1f} %", *cells])
    every = [
        [rule, f"{p[0]:.2f}", f"{p[1]:.1f} %", f"{p[2]:.1f} %", f"{p[3]:.1f}", f"{p[4]:.0f}"]
        for rule, points in found.items()
        for p in points
    ]
    return (
        f"## {name}, {MEMORY[name]:,} blocks\n\n"
        + table(["fit", "preempted per request", "ours", *RIVALS], rows)
        + "\n\n"
        + table(["rule", "preempted", "set aside, unused", "idle", "mean s", "tokens/s"], every)
    )


INTRODUCTION = """\
# Reservation: memory set aside and not used

Made by `benchmarks/reservation.py --requests {requests}`: arrival order at overload, through vLLM's
scheduler, lengths predicted by `{predictor}`, step cost `a100-7b`, one seed. Waste is the share of
the pool, over time, that a rule keeps free for the growth of what runs and that stays free. `fit`
is the chance with which the predicted peak of memory is to fit. In brackets: ours against the rival
at the same rate of preemptions, interpolated between the settings of its knob; a dash where no
setting of it preempts as often. `max_tokens` has no knob. *Idle* is all that is free while somebody
waits, set aside or not.

"""


def main() -> None:
    """Replay, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", default=list(MEMORY), choices=list(MEMORY))
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--predictor", default="survival")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    parts = [report(name, curves(name, options)) for name in options.only]
    head = INTRODUCTION.format(requests=options.requests, predictor=options.predictor)
    options.output.write_text(head + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
