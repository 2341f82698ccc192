"""Outlook: what an engine still has to do, when a place is free, and when each sequence ends.

Remaining lengths are drawn from the forecasts, and each draw is followed through memory and places:
the running sequences grow by a token a step, an end frees their blocks, and the queue is admitted
in its order as soon as its head fits. All draws advance together, as arrays. Draws of one situation
share a random component, since forecasts made from the same history err together; without it the
range of a sum of hundreds of sequences would be far too narrow. How large it is on the traffic at
hand, and what this model leaves out, is learned from past outlooks: ``outlook_calibration.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.policies.state import HORIZON, SurvivalForecast

DRAWS: Final = 64
LEVELS: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Levels of the quantiles of a sequence's end."""
PLACES_S: Final = (0, 1, 2, 5, 10, 20, 30, 60)
"""Seconds within which a place may be free."""
RETRY_LEVEL: Final = 0.9
"""Probability of a free place by the time that ``Retry-After`` names."""
SHARED: Final = 0.1
"""Correlation of two remaining lengths in one situation, on the normal scale. Chosen on the first
halves of the traces (docs/lab/outlook.md)."""
MOST_QUEUED: Final = 128
"""Waiting sequences that are followed; those behind them are taken to go in at the same rate."""
_MIDDLES: Final = np.concatenate([[0.0], (np.concatenate([[0.0], HORIZON[:-1]]) + HORIZON) / 2.0])
_Z: Final = np.array([NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)])
"""Quantiles of the normal distribution, to map it to a uniform one and back without SciPy."""
MIDDLE_SCORES: Final = np.array([NormalDist().inv_cdf((i + 0.5) / DRAWS) for i in range(DRAWS)])
"""Normal scores of the ordered draws."""
FIGURES: Final = ("running_tokens", "waiting_tokens", "peak_blocks", "done_s", "place_s")


@dataclass(frozen=True, slots=True)
class Situation:
    """An engine at one moment.

    Attributes:
        running: forecast of ``N`` running sequences.
        running_tokens: prompt and answer so far of each, shape ``(N,)``.
        waiting: forecast of the first ``W`` waiting sequences, in the order of the queue.
        waiting_tokens: tokens of each that must be computed or held, shape ``(W,)``.
        queue_length: number of waiting sequences, ``W`` or more.
        total_blocks: of the pool.
        free_blocks: that no sequence holds.
        reserve: blocks that admission leaves free while others run.
        block_size: tokens per block.
        places: largest number of running sequences.
        prompt_tokens: of a typical newcomer.
        seconds_per_step: duration of a step, in which every running sequence gets one token.
    """

    running: SurvivalForecast
    running_tokens: np.ndarray
    waiting: SurvivalForecast
    waiting_tokens: np.ndarray
    queue_length: int
    total_blocks: int
    free_blocks: int
    reserve: int
    block_size: int
    places: int
    prompt_tokens: float
    seconds_per_step: float

    def __post_init__(self) -> None:
        if not (
            len(self.running) == len(self.running_tokens)
            and len(self.waiting) == len(self.waiting_tokens) <= self.queue_length
        ):
            raise RequestError("a situation needs one forecast for each sequence")


@dataclass(frozen=True, slots=True)
class Draws:
    """The draws of each figure of an outlook, ascending, shape ``(DRAWS,)``; see :class:`Outlook`.

    Attributes:
        running_tokens: tokens that the running sequences will still generate.
        waiting_tokens: tokens that the waiting ones will.
        peak_blocks: most blocks that the running sequences will need together.
        done_s: seconds until all that runs is done; zeros if none runs.
        place_s: seconds until a newcomer behind the queue has a place.
    """

    running_tokens: np.ndarray
    waiting_tokens: np.ndarray
    peak_blocks: np.ndarray
    done_s: np.ndarray
    place_s: np.ndarray


@dataclass(frozen=True, slots=True)
class Outlook:
    """Expected load with its uncertainty; times in seconds from the situation on.

    Attributes:
        running_tokens: tokens that the running sequences will still generate: mean, 0.9 quantile.
        waiting_tokens: the same for the waiting ones.
        peak_blocks: most blocks that the running sequences will need together, if none is admitted:
            mean and 0.9 quantile; more than the pool has means preemptions.
        done_s: time until all that runs now is done: 0.5 and 0.95 quantile; ``None`` if none runs.
        place_s: time of a free place in each draw, for a newcomer behind the queue, ascending.
        ends_s: quantiles of the end of each running and each followed waiting sequence, at
            ``LEVELS``, shape ``(N + W, len(LEVELS))``.
        drawn: what the figures are made of, before any correction.
    """

    running_tokens: tuple[float, float]
    waiting_tokens: tuple[float, float]
    peak_blocks: tuple[float, float]
    done_s: tuple[float, float] | None
    place_s: np.ndarray
    ends_s: np.ndarray
    drawn: Draws

    def place_within(self, seconds: float) -> float:
        """Return the probability that a place is free within ``seconds``."""
        return float((self.place_s <= seconds).mean())

    @property
    def retry_after_s(self) -> int:
        """Return the whole seconds after which a place is free with probability 0.9."""
        return math.ceil(float(np.quantile(self.place_s, RETRY_LEVEL, method="higher")))

    def ends_within(self, sequence: int, seconds: float) -> float:
        """Return the probability that a sequence ends within ``seconds``."""
        return probability(self.ends_s[sequence].tolist(), seconds)

    def json(self) -> dict[str, Any]:
        """Return the figures without those of single sequences."""
        done = self.done_s or (0.0, 0.0)
        figures = {
            "running_tokens": _both(self.running_tokens),
            "waiting_tokens": _both(self.waiting_tokens),
            "peak_blocks": _both(self.peak_blocks),
            "done_s": {"p50": round(done[0], 3), "p95": round(done[1], 3)},
            "place_within": {str(s): round(self.place_within(s), 3) for s in PLACES_S},
        }
        return {**figures, "retry_after_s": self.retry_after_s}


def _both(pair: tuple[float, float]) -> dict[str, float]:
    return {"expected": round(pair[0], 1), "p90": round(pair[1], 1)}


def probability(quantiles: Sequence[float], seconds: float) -> float:
    """Return ``P(T <= seconds)`` from the quantiles at ``LEVELS``, linear in between.

    Beyond the outer quantiles it rises to 0 and 1 as far as to the next one inside.

    >>> probability([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4.0)
    0.5
    >>> probability([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 100.0)
    1.0
    """
    first, last = quantiles[0], quantiles[-1]
    times = [first - (quantiles[1] - first), *quantiles, last + (last - quantiles[-2])]
    if seconds < first and times[0] >= first:
        return 0.0
    return float(np.interp(seconds, times, [0.0, *LEVELS, 1.0])) if seconds < times[-1] else 1.0


def look_ahead(
    situation: Situation,
    seed: int = 0,
    shared: float = SHARED,
    correct: Callable[[Draws], Draws] | None = None,
) -> Outlook:
    """Return the outlook of a situation.

    Args:
        situation: of the engine.
        seed: of the draws; the same one for the same situation gives the same outlook.
        shared: correlation of the remaining lengths of two sequences.
        correct: returns the draws as they are to be read, such as
            :meth:`OutlookCalibration.correct`; the ends of single sequences are not corrected.

    >>> steps = SurvivalForecast.exact(np.array([100.0, 300.0]))
    >>> nobody = SurvivalForecast.exact(np.zeros(0))
    >>> outlook = look_ahead(
    ...     Situation(steps, np.array([50, 50]), nobody, np.zeros(0), 0, total_blocks=100,
    ...               free_blocks=90, reserve=0, block_size=16, places=2, prompt_tokens=20,
    ...               seconds_per_step=0.1)
    ... )
    >>> round(outlook.running_tokens[0], -1), round(outlook.done_s[0]), outlook.retry_after_s
    (400.0, 30, 10)
    """
    rng = np.random.default_rng(seed)
    now = situation.running
    common = np.sqrt(shared) * rng.standard_normal(DRAWS)
    running = remaining(now, common, shared, rng)
    waiting = remaining(situation.waiting, common, shared, rng)
    starts, place = _follow(situation, running, waiting)
    pace = situation.seconds_per_step
    ends = np.concatenate([running, starts + waiting]) * pace
    behind = situation.queue_length / max(len(waiting), 1)
    last = running.max(axis=0) if len(running) else np.zeros(DRAWS)
    drawn = Draws(
        running_tokens=np.sort(running.sum(axis=0)),
        waiting_tokens=np.sort(waiting.sum(axis=0) * behind),
        peak_blocks=np.sort(peak_blocks(running, situation.running_tokens, situation.block_size)),
        done_s=np.sort(last * pace),
        place_s=np.sort(place * pace),
    )
    found = drawn if correct is None else correct(drawn)
    done = np.quantile(found.done_s, [0.5, 0.95]) if len(running) else None
    return Outlook(
        running_tokens=_mean_and_p90(found.running_tokens),
        waiting_tokens=_mean_and_p90(found.waiting_tokens),
        peak_blocks=_mean_and_p90(found.peak_blocks),
        done_s=None if done is None else (float(done[0]), float(done[1])),
        place_s=found.place_s,
        ends_s=np.quantile(ends, LEVELS, axis=1).T,
        drawn=drawn,
    )


def remaining(
    forecast: SurvivalForecast, common: np.ndarray, shared: float, rng: np.random.Generator
) -> np.ndarray:
    """Return draws of the remaining lengths, in steps, shape ``(N, DRAWS)``.

    Args:
        forecast: of ``N`` sequences.
        common: the part of each draw that all sequences share, shape ``(DRAWS,)``.
        shared: its share of the variance.
        rng: for the rest.
    """
    count = len(forecast)
    if forecast.certain:
        return np.repeat(forecast.expected()[:, None], DRAWS, axis=1)
    own = rng.standard_normal((count, DRAWS))
    normal = common + np.sqrt(1.0 - shared) * own
    died = np.searchsorted(_Z, normal.ravel()).reshape(count, DRAWS) / len(_Z)
    # Row i lies between i and i + 1, so that one search in one ascending array serves all rows.
    ascending = np.concatenate([np.zeros((count, 1)), 1.0 - forecast.survival], axis=1)
    ascending = np.maximum.accumulate(np.clip(ascending, 0.0, 1.0), axis=1)
    rows = np.arange(count)[:, None]
    keys = (ascending + rows * 2.0).ravel()
    width = ascending.shape[1]
    found = np.searchsorted(keys, (died + rows * 2.0).ravel(), side="right").reshape(count, DRAWS)
    place = np.clip(found - rows * width, 1, width - 1)
    before, after = ascending[rows, place - 1], ascending[rows, place]
    part = np.clip((died - before) / np.maximum(after - before, 1e-12), 0.0, 1.0)
    low, high = _MIDDLES[place - 1], _MIDDLES[place]
    return np.maximum(low + part * (high - low), 1.0)


def _mean_and_p90(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(np.quantile(values, 0.9))


def peak_blocks(running: np.ndarray, tokens: np.ndarray, block_size: int) -> np.ndarray:
    """Return the most blocks that running sequences need together, shape ``(DRAWS,)``.

    Args:
        running: remaining lengths, steps, shape ``(N, DRAWS)``.
        tokens: prompt and answer so far of each, shape ``(N,)``.
        block_size: tokens per block.

    >>> peak_blocks(np.array([[160.0]]), np.array([160]), 16).tolist()
    [20.5]
    """
    if not len(running):
        return np.zeros(running.shape[1])
    order = np.argsort(running, axis=0)
    ends = np.take_along_axis(running, order, axis=0)
    ordered = np.asarray(tokens)[order]
    left = np.cumsum(ordered[::-1], axis=0)[::-1]  # of those that have not ended before
    count = np.arange(len(running), 0, -1)[:, None]
    return np.asarray(((left + count * ends) / block_size + count / 2.0).max(axis=0))


def _follow(
    situation: Situation, running: np.ndarray, waiting: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts of the waiting sequences and the time of a free place, both in steps.

    Args:
        situation: of the engine.
        running: draws of the remaining lengths, shape ``(N, DRAWS)``.
        waiting: the same, shape ``(W, DRAWS)``.

    Returns:
        Arrays of shape ``(W, DRAWS)`` and ``(DRAWS,)``.
    """
    size, followed = situation.block_size, len(waiting)
    count = len(running)
    ends = np.full((DRAWS, count + followed), np.inf)
    ends[:, :count] = running.T
    held = np.zeros((DRAWS, count + followed))
    tokens = np.asarray(situation.running_tokens)
    # With a prefix cache several sequences hold the same blocks.
    own = (situation.total_blocks - situation.free_blocks) / max(
        float((tokens / size + 1).sum()), 1
    )
    held[:, :count] = (min(own, 1.0) * tokens[:, None] + running).T / size
    state = _Pool(np.zeros(DRAWS), np.full(DRAWS, float(situation.free_blocks)),
                  np.full(DRAWS, count))  # fmt: skip
    needs = [
        *(np.asarray(situation.waiting_tokens) // size + 1),
        situation.prompt_tokens // size + 1,
    ]
    starts = np.zeros((followed, DRAWS))
    place = np.zeros(DRAWS)
    for index, need in enumerate(needs):
        while True:
            crowded = state.running > 0
            room = state.free - np.where(crowded, situation.reserve, 0) >= need
            blocked = crowded & ~(room & (state.running < situation.places))
            if not blocked.any():
                break
            _end_next(state, ends, held, blocked, size)
        if index == followed:
            place = state.now.copy()
            break
        starts[index] = state.now
        ends[:, count + index] = state.now + waiting[index]
        held[:, count + index] = (situation.waiting_tokens[index] + waiting[index]) / size
        state.free -= need
        state.running += 1
    if followed < situation.queue_length:
        place *= situation.queue_length / max(followed, 1)
    return starts, place


@dataclass(slots=True)
class _Pool:
    """The pool in each draw, arrays of shape ``(DRAWS,)``."""

    now: np.ndarray
    free: np.ndarray
    running: np.ndarray


def _end_next(
    state: _Pool, ends: np.ndarray, held: np.ndarray, blocked: np.ndarray, size: int
) -> None:
    """Advance the blocked draws to their next end, which frees its blocks."""
    rows = np.flatnonzero(blocked)
    which = ends[rows].argmin(axis=1)
    at = np.maximum(ends[rows, which], state.now[rows])
    state.free[rows] += held[rows, which] - state.running[rows] * (at - state.now[rows]) / size
    state.now[rows] = at
    state.running[rows] -= 1
    ends[rows, which] = np.inf


def merged(outlooks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the outlook of several engine cores, each in the form of :meth:`Outlook.json`.

    Expected tokens and blocks add up, and their ranges as those of independent amounts; the work is
    done when the last one is; a place is free when the first has one.

    >>> one = {"running_tokens": {"expected": 10.0, "p90": 13.0}, "retry_after_s": 3}
    >>> other = {"running_tokens": {"expected": 20.0, "p90": 24.0}, "retry_after_s": 1}
    >>> merged([one, other])
    {'running_tokens': {'expected': 30.0, 'p90': 35.0}, 'retry_after_s': 1}
    """
    answer: dict[str, Any] = {}
    for name in ("running_tokens", "waiting_tokens", "peak_blocks"):
        pairs = [found[name] for found in outlooks if name in found]
        if pairs:
            expected = sum(pair["expected"] for pair in pairs)
            above = math.hypot(*(pair["p90"] - pair["expected"] for pair in pairs))
            answer[name] = {"expected": round(expected, 1), "p90": round(expected + above, 1)}
    for name, choose in _CHOSEN.items():
        parts = [found[name] for found in outlooks if name in found]
        if parts:
            answer[name] = {key: choose(part[key] for part in parts) for key in parts[0]}
    retries = [found["retry_after_s"] for found in outlooks if "retry_after_s" in found]
    if retries:
        answer["retry_after_s"] = min(retries)
    return answer


_CHOSEN: Final[Mapping[str, Any]] = MappingProxyType({"done_s": max, "place_within": max})
