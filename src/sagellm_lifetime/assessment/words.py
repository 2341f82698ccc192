"""The sentences of a verdict, each from figures alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from shlex import quote
from statistics import median
from typing import Final

from sagellm_lifetime.assessment.capacity import Gain, gain
from sagellm_lifetime.assessment.intervals import Range
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.replay_part import Load, ReplayPart
from sagellm_lifetime.assessment.replays import DEFAULT, OURS, PROMPTS, TUNED
from sagellm_lifetime.assessment.tables import short
from sagellm_lifetime.predictor.registry import DEFAULT as DEFAULT_PREDICTOR

SMALL: Final = 0.02
"""Least median change that is called one."""
NAMES: Final = {
    DEFAULT: "vLLM's default",
    TUNED: "vLLM's own order",
    PROMPTS: "the shortest prompt first",
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
            most = replay.loads[-1].multiple
            tried = (
                rate_words(most * replay.unit)
                if replay.rate is None
                else f"{most:g} times this load"
            )
            text = f"Nothing to gain at {tried} or less: nobody waits below {free}."
    more = _capacity(replay, objective)
    if not text and not more:
        return (
            f"No more load to gain: every policy gives {objective.says()}, up to "
            f"{rate_words(replay.served(DEFAULT).load * replay.unit)}, the highest load tried."
        )
    return f"{text} Beyond that: {more}" if text and more else text or more


def _capacity(replay: ReplayPart, objective: Objective) -> str:
    """Return how much more load the same hardware serves."""
    if replay.always_met:
        return ""
    more, base = replay.more_load, replay.best_of_vllm
    both = f"{_serves(replay, OURS)}, {_serves(replay, base)}, at {objective.says()}"
    step = replay.precision - 1
    if more is not None and _clear(more, step) > 0:
        return (
            f"The same hardware serves {_amount(more.share.middle, more)} more load at the same "
            f"objective{_over(replay, more)}: {both}."
        )
    if more is not None and _clear(more, step) < 0:
        return (
            f"Lifetime is WORSE here: it serves {_amount(-more.share.middle, more)} less load at "
            f"the same objective{_over(replay, more)}: {both}. Leave it off."
        )
    if more is None or more.bound:
        return (
            "Whether it serves more load is not known, as the highest load within the objective "
            f"was not found among those tried: {both}."
        )
    several = f" over {replay.windows} windows" if replay.windows > 1 else ""
    return (
        f"No more load at the same objective, as far as {percent(step)} steps{several} can tell"
        f"{_over(replay, more)}: {both}."
    )


def _clear(gain: Gain, step: float) -> int:
    """Return 1 or -1 where all windows show more load or less, by ``step`` or more, else 0."""
    sign = gain.share.sign
    against = {"more": -1, "less": 1}.get(gain.bound)
    if gain.bound == "either" or sign == against or sign * gain.share.middle < step:
        return 0
    return sign


def _amount(share: float, gain: Gain) -> str:
    """Return a share in per cent, rounded down where it is the least that it can be."""
    return f"at least {math.floor(100 * share + 1e-9)} %" if gain.bound else percent(share)


def _over(replay: ReplayPart, gain: Gain) -> str:
    """Return the range of a gain over the windows, in brackets."""
    if replay.windows == 1:
        return " (one window, so no range)"
    ends = sorted((abs(gain.share.low), abs(gain.share.high)))
    text = spread(Range(gain.share.middle, *ends) if gain.share.sign else gain.share)
    if gain.bound and text:
        text = f" ({_amount(ends[0], gain)} in every window)"
    if gain.windows < replay.windows:
        text += f" (in {gain.windows} of {replay.windows} windows; the others do not tell)"
    return text


def _serves(replay: ReplayPart, name: str) -> str:
    """Return the load that a policy serves, with its name and the watermark of its capacity."""
    served, mark = replay.served(name), replay.watermarks[name]
    rate = rate_words(served.load * replay.unit)
    bound = {"less": f"below {rate}", "more": f"{rate} or more"}.get(served.end, rate)
    return f"{bound} with {NAMES[name]}" + (f" (--watermark {mark:g})" if mark else "")


def loads_text(replay: ReplayPart) -> str:
    """Return what changes at each load, and once against what, a paragraph."""
    parts = []
    if replay.rate is None:
        parts.append(_no_rate(replay))
    if not all(_nothing_changes(load) for load in replay.loads):
        marks = any(load.watermarks[TUNED] for load in replay.loads)
        against = (
            "the better of vLLM's default and a tuned watermark (the one with the lower mean "
            "latency)"
            if marks
            else "vLLM's default, which no watermark that was tried betters"
        )
        parts.append(f"All changes are those of lifetime against {against}.")
    parts += [load_line(load, has_rate=replay.rate is not None) for load in replay.loads]
    return " ".join(parts)


def without_prediction(replay: ReplayPart) -> str:
    """Return what the order of prompt lengths does alone, a paragraph; "" if nothing is to gain.

    It needs no prediction, and vLLM has it: its priority queue, where clients or a gateway send the
    tokens of each prompt as the request's priority.
    """
    busy = [load for load in replay.loads if not _nothing_changes(load)]
    if replay.never_met or not busy:
        return ""
    load = busy[-1]
    at = f"At {load.multiple:g} times {'the' if replay.rate is not None else 'that'} load"
    if load.multiple == 1:
        at = "Today" if replay.rate is not None else "At that load"
    seconds = {
        key: [f"{short(load.range(name, key).middle)} s" for name in (PROMPTS, OURS, DEFAULT)]
        for key in ("mean_s", "worst_wait_s")
    }
    mean, wait = seconds["mean_s"], seconds["worst_wait_s"]
    return (
        "Without a prediction: the shortest prompt first (vLLM's --scheduling-policy priority, "
        f"the tokens of each prompt as its priority){_share_of_prompts(replay)} {at} its mean "
        f"latency is {mean[0]} (lifetime {mean[1]}, vLLM's default {mean[2]}) and its longest wait "
        f"{wait[0]} (lifetime {wait[1]}, vLLM's default {wait[2]})."
    )


def _share_of_prompts(replay: ReplayPart) -> str:
    """Return the load that the order of prompt lengths serves, beside that of ``lifetime``."""
    mine, theirs = replay.more_load, replay.more_by_prompts
    if mine is None or theirs is None or mine.bound or theirs.bound:
        return ": the load that it serves was not found, or that of the others was not."
    step, base = replay.precision - 1, NAMES[replay.best_of_vllm]
    served = rate_words(replay.served(PROMPTS).load * replay.unit)
    text = f" serves {served}"
    if _clear(theirs, step):
        more = theirs.share.middle
        text += f", {percent(abs(more))} {'more' if more > 0 else 'less'} load than {base}"
    apart = gain(replay.capacity[OURS], replay.capacity[PROMPTS])
    sign = 0 if apart is None else _clear(apart, step)
    if sign > 0:
        return f"{text}; what lifetime serves beyond that needs the prediction."
    if sign < 0:
        return f"{text}: more than lifetime, so for this objective nothing need be predicted."
    return (
        f"{text}: as much as lifetime, as far as {percent(step)} steps can tell, so for this "
        "objective nothing need be predicted."
    )


def _no_rate(replay: ReplayPart) -> str:
    """Return what the loads are multiples of where the log tells none."""
    served = replay.served(DEFAULT)
    at = f"{short(served.load)} x"
    found = {
        "less": f"it does not meet the objective even at {at}",
        "more": f"it still meets the objective at {at}",
    }.get(served.end, f"it meets the objective up to {at}")
    return (
        "The log tells no load of its own. Loads are multiples of "
        f"{rate_words(replay.unit)}, from a coarse search for what vLLM's default just serves: "
        f"by the finer search of the table {found}."
    )


def load_line(load: Load, *, has_rate: bool = True) -> str:
    """Return what changes at one load, against its ``base``.

    Args:
        load: the load.
        has_rate: whether the load 1 is the log's own.
    """
    at = f"At {load.multiple:g} times {'the' if has_rate else 'that'} load"
    if load.multiple == 1:
        at = "Today" if has_rate else "At that load"
    if _nothing_changes(load):
        return f"{at} nobody waits and nothing changes."
    parts = [
        f"mean latency {change(load.change('mean_s'))}",
        f"median {change(load.change('p50_s'))}",
        f"p99 {change(load.change('p99_s'))}",
        f"first token {change(load.change('ttft_s'))}",
        f"longest wait {change(load.change('worst_wait_s'))}",
    ]
    before = median(figures.within for figures in load.base)
    after = load.range(OURS, "within").middle
    text = (
        f"{at}: {', '.join(parts)}; within the objective {100 * before:.0f} → {100 * after:.0f} %."
    )
    mean = load.change("mean_s")
    if mean.sign > 0 and mean.middle >= SMALL:
        text += " Lifetime is WORSE here."
    elif not load.keeps_up(OURS):
        text += " The engine cannot keep up: the queue grows for as long as this lasts."
    return text


def _nothing_changes(load: Load) -> bool:
    """Return True if nobody waits, and no running request is preempted either, so all is alike."""
    mean = load.change("mean_s")
    return load.nobody_waits and mean.low == mean.high == 0


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


def advises(replay: ReplayPart | None) -> bool:
    """Return True if switching it on is advised, or nothing is known against it."""
    return replay is None or (not replay.never_met and _worth_it(replay))


def switch_on(
    replay: ReplayPart | None,
    predictor: str,
    source: str,
    program: str,
    options: Sequence[str] = (),
) -> list[str]:
    """Return the commands that switch prediction on, in shadow first, with comments.

    Args:
        replay: what was found.
        predictor: name of the chosen one.
        source: the log.
        program: how the command line is called.
        options: of ``train``, that the log is to be read with.
    """
    if replay is not None and replay.never_met:
        return ["# No advice: the objective is met at no load that was tried."]
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
    kind = f" --predictor-type {predictor}" if predictor != DEFAULT_PREDICTOR else ""
    reading = "".join(f" {quote(option)}" for option in options)
    return [
        *_other_queue(replay),
        "# 1. learn this log",
        f"{program} train --data-path {quote(source)}{reading} --predictor-type {predictor} "
        f"--output-path {checkpoint}",
        "# 2. watch only (shadow): the schedule stays vLLM's own",
        f"{start}{kind} --predictor-checkpoint {checkpoint}",
        f"{program} stats --engine http://localhost:8000 --watch",
        "# 3. let it decide",
        'curl http://localhost:8000/lifetime/mode --json \'{"mode": "act"}\'',
    ]


def _other_queue(replay: ReplayPart | None) -> list[str]:
    """Return the command for the shortest prompt first, where it serves as much as lifetime."""
    if replay is None:
        return []
    apart = gain(replay.capacity[OURS], replay.capacity[PROMPTS])
    if apart is None or _clear(apart, replay.precision - 1) > 0:
        return []
    return [
        "# Without a prediction, as good here: the shortest prompt first; each request",
        '# names the tokens of its prompt as its "priority"',
        "vllm serve MODEL --scheduling-policy priority",
        "# or with predictions:",
    ]


def _worth_it(replay: ReplayPart) -> bool:
    """Return True if it serves more load, or shortens the mean latency at a load that was tried."""
    more = replay.more_load
    load = 0 if more is None else _clear(more, replay.precision - 1)
    shorter = any(
        at.change("mean_s").sign < 0 and at.change("mean_s").middle <= -SMALL
        for at in replay.loads
        if not at.nobody_waits
    )
    return load > 0 or (load == 0 and shorter)


def _useful_watermark(replay: ReplayPart) -> float:
    """Return the watermark if it serves more load than vLLM's default, else 0."""
    return replay.watermarks[TUNED] if replay.best_of_vllm == TUNED else 0.0


def _signed(value: float) -> str:
    return f"{value:+.0f}" if round(value) else "0"
