"""Switchback: coverage of its interval without an effect, and what it finds how fast.

    PYTHONPATH=src python benchmarks/switchback.py [--experiments 400] [--output PATH]

No engine and no data: a queue in which everything wanders. The load of a minute has a daily wave
and an autocorrelation, requests come at random with heavy-tailed lengths, and their latency grows
with the load. Acting takes a share off the latency; for some minutes after a switch the rule before
is still felt. The estimator is the one of ``stats``, with its washout, and the same with none.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import code, say, table, write_page

from sagellm_lifetime.evaluation.switchback import Block, Design, effects

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "docs" / "lab" / "switchback.md"
HOURS = (2, 4, 8, 24)
EFFECTS = (0.0, -0.02, -0.05, -0.1, -0.2)
MEMORY_MIN = 20.0
"""Minutes after which the load has forgotten the most of what it was."""
CARRY_MIN = 1.0
"""Minutes after a switch in which the rule before is felt, on average."""
SPREAD = 0.25
"""Standard deviation of the load on the log scale."""


@dataclass(frozen=True)
class World:
    """What a run draws.

    Attributes:
        hours: length of the experiment.
        period_s: of a block.
        effect: share by which acting changes the latency.
        washout: share of a block that is left out.
        per_minute: requests.
    """

    hours: float
    period_s: float
    effect: float
    washout: float = 0.2
    per_minute: float = 60.0


def minutes(world: World, rng: np.random.Generator) -> np.ndarray:
    """The load of each minute: a wave of a day, and an autocorrelated part."""
    count = int(world.hours * 60) + 1
    keep = np.exp(-1.0 / MEMORY_MIN)
    noise = rng.standard_normal(count) * SPREAD * np.sqrt(1.0 - keep**2)
    load = np.empty(count)
    load[0] = rng.standard_normal() * SPREAD
    for i in range(1, count):
        load[i] = keep * load[i - 1] + noise[i]
    start = rng.uniform(0.0, 1440.0)
    return np.asarray(load + 0.3 * np.sin(2.0 * np.pi * (start + np.arange(count)) / 1440.0))


def experiment(world: World, rng: np.random.Generator) -> dict[str, object] | None:
    """The effect on latency that one experiment finds; None where it has no pair."""
    tail = 0.1 if world.washout else 0.0
    design = Design(world.period_s, washout=world.washout, tail=tail)
    first = 2 * int(rng.integers(0, 10**9))  # the coins depend on the number of the pair
    load = minutes(world, rng)
    blocks = []
    for index in range(int(world.hours * 3600 / world.period_s)):
        number = first + index
        acts, before = design.acts(number), design.acts(number - 1) if index else None
        measured = world.period_s * (1.0 - world.washout - tail)
        count = rng.poisson(world.per_minute * measured / 60.0)
        offset = rng.uniform(world.washout, 1.0 - tail, count) * world.period_s
        at = load[((index * world.period_s + offset) / 60.0).astype(int)]
        share = np.full(count, float(acts))
        if before is not None and before != acts:
            felt = np.exp(-offset / (60.0 * CARRY_MIN))
            share = share * (1.0 - felt) + before * felt
        lengths = rng.lognormal(0.0, 1.0, count)
        latency = 2.0 * np.exp(2.0 * at) * lengths * (1.0 + world.effect * share)
        blocks.append(Block(number, measured, count, float(latency.sum())))
    return effects(blocks, design).get("latency")


def share_and_width(world: World, experiments: int, seed: int) -> tuple[float, float, float]:
    """How often the interval leaves out 0, and holds the truth; its half width in per cent."""
    rng = np.random.default_rng(seed)
    found, held, widths = 0, 0, []
    truth = 0.0
    for _ in range(experiments):
        effect = experiment(world, rng)
        if effect is None or effect["low"] is None:
            continue
        low, high, off = (float(effect[key]) for key in ("low", "high", "off"))  # type: ignore[arg-type]
        truth = world.effect * off
        found += not low <= 0.0 <= high
        held += low <= truth <= high
        widths.append(50.0 * (high - low) / off)
    if not widths:
        return (float("nan"),) * 3
    return found / len(widths), held / len(widths), float(np.median(widths))


INTRODUCTION = """\
# Switchback: what it covers, and what it finds

{answer}

Made by `benchmarks/switchback.py`, {code},

    {command}

No engine: {experiments} simulated experiments a cell. The load wanders (a wave of a day, an
autocorrelation of {memory:g} minutes, a standard deviation of a quarter), {rate:g} requests a
minute with log-normal lengths (σ = 1), latency growing with the square of the load; after a switch
the rule before is felt for a minute on average. Blocks of ten minutes, the first fifth and the last
tenth left out, the interval by randomization of the pairs. Standard error of a cell: {error:.1f}
points at most. How to run one on a server: [prove it helps](../how-to/prove-it-helps.md).
"""


def _answer(power: list[list[str]], coverage: list[list[str]]) -> str:
    """The first paragraph."""
    day, working = power[-1], power[-2]
    worst = min(int(row[1]) for row in coverage)
    return (
        f"Without an effect the 95 % interval holds 0 in {worst} % of the experiments or more, "
        f"however the load wanders. A mean latency 20 % lower is found in {working[-1]} % of the "
        f"experiments of {working[0]} and {day[-1]} % of those of {day[0]}, one 10 % lower in "
        f"{working[-2]} and {day[-2]} %. Blocks of two minutes are too short where a switch is "
        f"felt for a minute."
    )


def main() -> None:
    """Simulate, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    made = code()
    power, coverage = [], []
    for hours in HOURS:
        cells, widths = [], []
        for effect in EFFECTS:
            found, held, width = share_and_width(World(hours, 600.0, effect), options.experiments,
                                                 seed=hours)  # fmt: skip
            cells.append(f"{100 * found:.0f}")
            widths.append(width)
            if effect == 0.0:
                # The last two: blocks of two minutes, and nothing left out of them.
                short = share_and_width(World(hours, 120.0, effect), options.experiments // 2, 1)
                rough = [
                    share_and_width(World(hours, period, -0.1, washout=washout),
                                    options.experiments // 2, seed=2)[1]
                    for period, washout in ((600.0, 0.2), (120.0, 0.2), (120.0, 0.0))
                ]  # fmt: skip
                coverage.append(
                    [f"{hours} h", *(f"{100 * c:.0f}" for c in (held, short[1], *rough))]
                )
        power.append([f"{hours} h", str(int(hours * 3)), f"{np.mean(widths):.1f} %", *cells])
        say(f"{hours} hours")
    command = "PYTHONPATH=src python benchmarks/switchback.py " + shlex.join(sys.argv[1:])
    text = INTRODUCTION.format(
        answer=_answer(power, coverage),
        code=made, command=command.strip(), experiments=options.experiments, memory=MEMORY_MIN,
        rate=World(1, 1, 0).per_minute, error=50.0 / np.sqrt(options.experiments),
    )  # fmt: skip
    text += (
        "\n## Power\n\nPer cent of experiments whose 95 % interval leaves out 0, by the true "
        "change of the mean latency; in the column of 0 % that is the error, which may be 5.\n\n"
        + table(["length", "pairs", "half width", *(f"{100 * e:+.0f} %" if e else "0 %"
                                                    for e in EFFECTS)], power)
        + "\n\n## Coverage\n\n"
        + "Per cent of experiments whose interval holds the truth; 95 is right.\n\n"
        + table(["length", "no effect, 10 min", "no effect, 2 min", "−10 %, 10 min", "−10 %, 2 min",
                 "−10 %, 2 min, nothing left out"], coverage)
    )  # fmt: skip
    write_page(options.output, text)


if __name__ == "__main__":
    main()
