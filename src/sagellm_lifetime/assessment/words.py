"""The sentences of a verdict, each from figures alone."""

from __future__ import annotations

from shlex import quote
from typing import Final

from sagellm_lifetime.assessment.intervals import Range
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.replay_part import Load, ReplayPart
from sagellm_lifetime.assessment.replays import DEFAULT, OURS, TUNED

SMALL: Final = 0.02
"""Least median change that is called one."""
NAMES: Final = {
    DEFAULT: "vLLM's default",
    TUNED: "vLLM's own order",
    OURS: "lifetime",
    "lifetime-oracle": "lifetime, lengths known",
}


def headline(replay: ReplayPart, objective: Objective) -> str:
    """Return the answer: how much more load, or nothing to gain, or worse."""
    if replay.never_met:
        return (
            f"This engine does not meet the objective at any load that was tried: no policy gives "
            f"{objective.says()}. Take a faster engine or another objective (--slo)."
        )
    text = ""
    if replay.free is not None:
        free = rate_words(replay.free.load * replay.unit)
        if replay.free.end == "more":
            text = f"Nothing to gain: nobody waits, up to {free} or more, the highest load tried."
        else:
            text = (
                f"Nothing to gain at {replay.loads[-1].multiple:g} times this load or less: nobody "
                f"waits below {free}."
            )
    more = _capacity(replay, objective)
    return f"{text} Beyond that: {more}" if text and more else text or more


def _capacity(replay: ReplayPart, objective: Objective) -> str:
    """Return how much more load the same hardware serves."""
    if replay.always_met:
        return ""
    gain, base = replay.more_load, replay.best_of_vllm
    theirs, ours = replay.served(base), replay.served(OURS)
    both = (
        f"{rate_words(ours.middle)} with {_named(replay, OURS)}, {rate_words(theirs.middle)} with "
        f"{_named(replay, base)}, at {objective.says()}"
    )
    step = replay.precision - 1
    alone = " (one window, so no range)" if replay.windows == 1 else ""
    if gain.sign > 0 and gain.middle >= step:
        return (
            f"The same hardware serves {percent(gain.middle)} more load at the same objective"
            f"{alone or spread(gain)}: {both}."
        )
    if gain.sign < 0 and gain.middle <= -step:
        less = Range(-gain.middle, -gain.high, -gain.low)
        return (
            f"Lifetime is WORSE here: it serves {percent(less.middle)} less load at the same "
            f"objective{alone or spread(less)}: {both}. Leave it off."
        )
    return (
        f"No more load at the same objective, as far as {percent(step)} steps"
        f"{'' if alone else f' over {replay.windows} windows'} can tell{alone or spread(gain)}: "
        f"{both}."
    )


def _named(replay: ReplayPart, name: str) -> str:
    """Return the name of a policy with the watermark of its capacity."""
    mark = replay.watermarks[name]
    return f"{NAMES[name]} (--watermark {mark:g})" if mark else NAMES[name]


def load_line(load: Load) -> str:
    """Return what changes at one load, against the better of vLLM's default and watermark."""
    at = "Today" if load.multiple == 1 else f"At {load.multiple:g} times the load"
    if load.nobody_waits:
        return f"{at} nobody waits and nothing changes."
    parts = [
        f"mean latency {change(load.change('mean_s'))}",
        f"median {change(load.change('p50_s'))}",
        f"p99 {change(load.change('p99_s'))}",
        f"first token {change(load.change('ttft_s'))}",
        f"longest wait {change(load.change('worst_wait_s'))}",
    ]
    base = max((DEFAULT, TUNED), key=lambda name: load.range(name, "within").middle)
    before, after = load.range(base, "within").middle, load.range(OURS, "within").middle
    text = (
        f"{at}: {', '.join(parts)}; within the objective {100 * before:.0f} → {100 * after:.0f} %."
    )
    mean = load.change("mean_s")
    if mean.sign > 0 and mean.middle >= SMALL:
        text += " Lifetime is WORSE here."
    elif not load.keeps_up(OURS):
        text += " The engine cannot keep up: the queue grows for as long as this lasts."
    return text


def change(value: Range) -> str:
    """Return a relative change with its range.

    >>> change(Range(-0.12, -0.2, -0.05))
    '-12 % (-20 to -5)'
    """
    low, middle, high = (_signed(100 * v) for v in (value.low, value.middle, value.high))
    return f"{middle} %" if low == high else f"{middle} % ({low} to {high})"


def percent(share: float) -> str:
    """Return a share in per cent.

    >>> percent(0.256)
    '26 %'
    """
    return f"{100 * share:.0f} %"


def spread(value: Range) -> str:
    """Return the range of a share in brackets; nothing if it has no width."""
    low, high = f"{100 * value.low:.0f}", f"{100 * value.high:.0f}"
    return "" if low == high else f" ({low} to {high} %)"


def rate_words(rate: float) -> str:
    """Return requests a second, or a minute where they are few.

    >>> rate_words(6.66), rate_words(0.05)
    ('6.7 requests/s', '3 requests/min')
    """
    if rate >= 0.5:
        return f"{rate:.0f} requests/s" if rate >= 99.5 else f"{rate:.2g} requests/s"
    return f"{60 * rate:.2g} requests/min"


def switch_on(replay: ReplayPart | None, predictor: str, source: str, program: str) -> list[str]:
    """Return the commands that switch prediction on, in shadow first, with comments."""
    if replay is not None and not _worth_it(replay):
        mark = _useful_watermark(replay)
        lines = ["# Nothing to switch on: lifetime gains nothing here."]
        if mark:
            lines += [
                "# vLLM's own watermark helps at high load:",
                f"vllm serve MODEL --watermark {mark:g}",
            ]
        return lines
    checkpoint = f"runs/lifetime/{predictor}"
    start = f"{program} engine start MODEL --enable-lifetime-prediction --enable-online-learning"
    if replay is not None and replay.watermarks[OURS]:
        start += f" --watermark {replay.watermarks[OURS]:g}"
    kind = f" --predictor-type {predictor}" if predictor != "survival" else ""
    return [
        "# 1. learn this log",
        f"{program} train --data-path {quote(source)} --predictor-type {predictor} "
        f"--output-path {checkpoint}",
        "# 2. watch only (shadow): the schedule stays vLLM's own",
        f"{start}{kind} --predictor-checkpoint {checkpoint}",
        f"{program} stats --engine http://localhost:8000 --watch",
        "# 3. let it decide",
        'curl http://localhost:8000/lifetime/mode --json \'{"mode": "act"}\'',
    ]


def _worth_it(replay: ReplayPart) -> bool:
    """Return True if it serves more load, or shortens the mean latency at a load that was tried."""
    step = replay.precision - 1
    if replay.more_load.sign < 0 and replay.more_load.middle <= -step:
        return False
    shorter = any(
        load.change("mean_s").sign < 0 and load.change("mean_s").middle <= -SMALL
        for load in replay.loads
        if not load.nobody_waits
    )
    return shorter or (replay.more_load.sign > 0 and replay.more_load.middle >= step)


def _useful_watermark(replay: ReplayPart) -> float:
    """Return the watermark if it serves more load than vLLM's default, else 0."""
    return replay.watermarks[TUNED] if replay.best_of_vllm == TUNED else 0.0


def _signed(value: float) -> str:
    return f"{value:+.0f}" if round(value) else "0"
