"""Calibration of outlooks by what came of earlier ones.

Each remembered outlook waits until its outcome is known; the outcome's place among the outlook's
own draws becomes a normal score. The scores of the last outcomes of a figure say how to read its
draws: where nine of ten outcomes were below the draws' 0.97 quantile, that one is told as the 0.9
quantile. This is conformal prediction on the probability integral transform, prequentially: an
outcome counts only for outlooks made after it. Forecasts from the same history err together, and
what the model of the engine leaves out errs every time; both are learned so, per figure.

Neighbouring outlooks share most of their sequences, so each counts by its share of new ones.

Source: Gibbs and Candès, "Adaptive conformal inference under distribution shift" (2021), for
learning from outcomes under drift; Dawid, "Present position and potential developments" (1984), for
the prequential transform.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

import numpy as np

from sagellm_lifetime.policies.events import Admitted, Arrived, Event, Finished
from sagellm_lifetime.policies.outlook import (
    DRAWS,
    FIGURES,
    MIDDLE_SCORES,
    Draws,
    Outlook,
    Situation,
    peak_blocks,
)

MEMORY: Final = 64.0
"""Outcomes that count, newest first, in whole ones: some minutes of an engine under load."""
PRIOR: Final = 4.0
"""Weight of the draws as they are, in outcomes: what is told before there are any."""
MOST_PENDING: Final = 64
"""Outlooks whose outcome is waited for."""
PATIENCE_S: Final = 1800.0
"""Seconds after which an outcome is no longer waited for."""
_NEW: Final = 0.05
"""Least share of sequences that the outlook remembered before does not have."""
_NO_WAIT_S: Final = 0.1
"""Seconds between arrival and admission of a request that found a place: less than some steps."""
_BOUND: Final = 6.0
"""Largest normal score; the draws' tail is extended this far."""
_PRIOR_SCORES: Final = np.array([NormalDist().inv_cdf((i + 0.5) / 40) for i in range(40)])
_NORMAL: Final = NormalDist()


def score(draws: np.ndarray, value: float) -> float | None:
    """Return the normal score of a value among ascending draws, ``None`` if these are all equal.

    Beyond the draws it goes on along a straight line, as their outer sixth does.

    Args:
        draws: of one figure, ascending, shape ``(DRAWS,)``.
        value: what came.

    >>> draws = np.arange(64.0)
    >>> score(draws, 31.5), score(draws, 1e9), score(np.zeros(64), 1.0)
    (0.0, 6.0, None)
    """
    low, high = float(draws[0]), float(draws[-1])
    if high - low <= 1e-9 * max(abs(high), 1.0):
        return None
    below, above = _slopes(draws)
    if value > high:
        found = MIDDLE_SCORES[-1] + (value - high) / above
    elif value < low:
        found = MIDDLE_SCORES[0] - (low - value) / below
    else:
        # Of equal draws the middle one.
        first = np.interp(value, draws, MIDDLE_SCORES)
        last = -np.interp(-value, -draws[::-1], -MIDDLE_SCORES[::-1])
        found = (first + last) / 2.0
    return round(float(np.clip(found, -_BOUND, _BOUND)), 9)


def values_at(draws: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the values at normal scores, at least 0: the inverse of :func:`score`.

    >>> values_at(np.arange(64.0), np.array([0.0])).tolist()
    [31.5]
    """
    below, above = _slopes(draws)
    found = np.interp(scores, MIDDLE_SCORES, draws)
    over = np.maximum(scores - MIDDLE_SCORES[-1], 0.0) * above
    under = np.maximum(MIDDLE_SCORES[0] - scores, 0.0) * below
    return np.asarray(np.maximum(found + over - under, 0.0))


def _slopes(draws: np.ndarray) -> tuple[float, float]:
    """Return by how much a figure changes with a score beyond its draws, below and above."""
    sixth = DRAWS // 6
    width = float(MIDDLE_SCORES[-1] - MIDDLE_SCORES[-1 - sixth])
    below, above = draws[sixth] - draws[0], draws[-1] - draws[-1 - sixth]
    return max(float(below) / width, 1e-9), max(float(above) / width, 1e-9)


class Scores:
    """The latest normal scores of one figure's outcomes, with weights.

    >>> scores = Scores()
    >>> abs(round(float(scores.at(np.array([0.5]))[0]), 3))
    0.0
    >>> for _ in range(64):
    ...     scores.add(1.0, 1.0)
    >>> round(float(scores.at(np.array([0.5]))[0]), 1)
    1.0
    """

    def __init__(self) -> None:
        self._kept: deque[tuple[float, float]] = deque()
        self._weight = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, found: float, weight: float) -> None:
        """Add the score of an outcome, and let the oldest go."""
        self._kept.append((found, weight))
        self._weight += weight
        while self._weight - self._kept[0][1] >= MEMORY:
            self._weight -= self._kept.popleft()[1]

    def at(self, levels: np.ndarray) -> np.ndarray:
        """Return the score below which an outcome stays with each probability."""
        found = np.concatenate([_PRIOR_SCORES, [score for score, _ in self._kept]])
        prior = np.full(len(_PRIOR_SCORES), PRIOR / len(_PRIOR_SCORES))
        weights = np.concatenate([prior, [weight for _, weight in self._kept]])
        order = np.argsort(found, kind="stable")
        middles = np.cumsum(weights[order]) - weights[order] / 2.0
        return np.interp(levels, middles / weights.sum(), found[order])


@dataclass(slots=True)
class _Group:
    """Sequences of one remembered outlook, and what is known of each.

    Attributes:
        at: seconds of the outlook.
        draws: of its figures, as they were drawn.
        weight: share of the sequences that are new.
        places: index by id of the sequences that have not ended.
        ages: tokens of each at the outlook, shape ``(N,)``.
        left: tokens that each generated afterwards, shape ``(N,)``.
        tokens: prompt and answer of each at the outlook, shape ``(N,)``.
        times: by which the sum over the sequences is multiplied.
        block_size: tokens per block.
        last: seconds of the latest end.
    """

    at: float
    draws: Draws
    weight: float
    places: dict[str, int]
    ages: np.ndarray
    left: np.ndarray
    tokens: np.ndarray
    times: float
    block_size: int
    last: float

    def ended(self, name: str, length: int, at: float) -> None:
        """Take the end of a sequence; others than those of the outlook are ignored."""
        place = self.places.pop(name, None)
        if place is not None:
            self.left[place] = max(length - self.ages[place], 0)
            self.last = max(self.last, at)


@dataclass(slots=True)
class _Newcomer:
    """The first request that arrives after an outlook.

    Attributes:
        at: seconds of the outlook.
        draws: of the time of a free place, as they were drawn.
        name: id of the request, empty until it arrives.
        arrived: seconds of its arrival.
        began: seconds of its admission.
    """

    at: float
    draws: np.ndarray
    name: str = ""
    arrived: float = 0.0
    began: float | None = None


@dataclass
class OutlookCalibration:
    """Remembers outlooks and what came of them, and corrects later ones by it.

    One thread calls it. It keeps at most :data:`MOST_PENDING` outlooks of each kind.

    >>> calibration = OutlookCalibration()
    >>> draws = Draws(**{name: np.arange(64.0) for name in FIGURES})
    >>> bool(np.allclose(calibration.correct(draws).place_s, draws.place_s))
    True
    """

    scores: Mapping[str, Scores] = field(
        default_factory=lambda: {name: Scores() for name in FIGURES}
    )
    _running: deque[_Group] = field(default_factory=deque)
    _waiting: deque[_Group] = field(default_factory=deque)
    _newcomers: deque[_Newcomer] = field(default_factory=deque)
    _names: dict[str, frozenset[str]] = field(default_factory=dict)
    _spacing: dict[str, float] = field(default_factory=dict)

    def correct(self, draws: Draws) -> Draws:
        """Return the draws of an outlook as earlier outcomes say that they are to be read."""
        levels = (np.arange(DRAWS) + 0.5) / DRAWS
        corrected = {}
        for name in FIGURES:
            values = getattr(draws, name)
            known = len(self.scores[name]) and len(values) and values[-1] > values[0]
            corrected[name] = values_at(values, self.scores[name].at(levels)) if known else values
        return Draws(**corrected)

    def remember(
        self,
        at: float,
        situation: Situation,
        outlook: Outlook,
        names: Sequence[str],
        ages: Sequence[int],
    ) -> None:
        """Remember an outlook until its outcome is known, unless one like it is remembered.

        Args:
            at: seconds of the outlook, on the clock of the events.
            situation: that it was made of.
            outlook: as :func:`look_ahead` returned it.
            names: ids of its sequences, those that run first.
            ages: tokens that each has generated.
        """
        count = len(situation.running)
        draws = outlook.drawn
        for kind, part, tokens, times in (
            ("running", slice(0, count), situation.running_tokens, 1.0),
            (
                "waiting",
                slice(count, None),
                situation.waiting_tokens,
                situation.queue_length / max(len(situation.waiting), 1),
            ),
        ):
            chosen = list(names[part])
            weight = self._news(kind, chosen)
            if weight is None:
                continue
            self._pending(kind).append(
                _Group(
                    at=at,
                    draws=draws,
                    weight=weight,
                    places={name: i for i, name in enumerate(chosen)},
                    ages=np.asarray(ages[part], dtype=np.int64),
                    left=np.zeros(len(chosen)),
                    tokens=np.asarray(tokens),
                    times=times,
                    block_size=situation.block_size,
                    last=at,
                )
            )
            _thin(self._pending(kind), self._spacing, kind)
        if draws.place_s[-1] > 0.0 and (not self._newcomers or self._newcomers[-1].name):
            self._newcomers.append(_Newcomer(at, draws.place_s))
            _thin(self._newcomers, self._spacing, "place")

    def on_events(self, events: Iterable[Event], now: float) -> None:
        """Take what has happened in the engine, and count the outcomes that are known by ``now``.

        An outcome counts after those of all earlier outlooks: else the short ones would be first.
        """
        for event in events:
            if isinstance(event, Finished):
                for group in (*self._running, *self._waiting):
                    group.ended(event.sequence_id, event.length, event.at)
                self._newcomers = deque(
                    each
                    for each in self._newcomers
                    if each.began is not None or each.name != event.sequence_id
                )
            elif isinstance(event, Arrived):
                name = event.sequence.id
                for newcomer in self._newcomers:
                    if not newcomer.name and event.at >= newcomer.at:
                        newcomer.name, newcomer.arrived = name, event.at
            elif isinstance(event, Admitted):
                for newcomer in self._newcomers:
                    if newcomer.began is None and newcomer.name == event.sequence_id:
                        newcomer.began = event.at
        for kind in ("running", "waiting"):
            pending = self._pending(kind)
            while pending and (not pending[0].places or pending[0].at < now - PATIENCE_S):
                self._settle(kind, pending.popleft())
        while self._newcomers and self._newcomers[0].began is not None:
            self._settle_place(self._newcomers.popleft())

    def forget_pending(self) -> None:
        """Forget the outlooks whose outcome is not known, as where ends may be missed."""
        self._running.clear()
        self._waiting.clear()
        self._newcomers.clear()
        self._names.clear()

    def _settle(self, kind: str, group: _Group) -> None:
        """Count the outcome of a group, unless one of its sequences has not ended in time."""
        if group.places:
            return
        total = float(group.left.sum()) * group.times
        if kind == "waiting":
            self._add("waiting_tokens", group, total)
            return
        self._add("running_tokens", group, total)
        self._add("done_s", group, group.last - group.at)
        peak = peak_blocks(group.left[:, None], group.tokens, group.block_size)
        self._add("peak_blocks", group, float(peak[0]))

    def _add(self, name: str, group: _Group, value: float) -> None:
        found = score(getattr(group.draws, name), value)
        if found is not None:
            self.scores[name].add(found, group.weight)

    def _settle_place(self, newcomer: _Newcomer) -> None:
        """Count the outcome of a newcomer.

        One that did not wait says that a place was free before: anywhere up to then, by the draws.
        """
        assert newcomer.began is not None
        found = score(newcomer.draws, newcomer.began - newcomer.at)
        if found is None:
            return
        if newcomer.began - newcomer.arrived <= _NO_WAIT_S:
            # The golden ratio spreads them evenly, without a random number.
            part = (len(self.scores["place_s"]) * 0.6180339887) % 1.0
            share = part * _NORMAL.cdf(found)
            found = _NORMAL.inv_cdf(min(max(share, 1e-4), 1.0 - 1e-4))
        self.scores["place_s"].add(found, 1.0)

    def _pending(self, kind: str) -> deque[_Group]:
        return self._running if kind == "running" else self._waiting

    def _news(self, kind: str, names: Sequence[str]) -> float | None:
        """Return the share of sequences that the outlook before does not have, None if too few."""
        present = frozenset(names)
        share = len(present - self._names.get(kind, frozenset())) / max(len(present), 1)
        if not present or share < self._spacing.get(kind, _NEW):
            return None
        self._names[kind] = present
        return share


def _thin(pending: deque[_Group] | deque[_Newcomer], spacing: dict[str, float], kind: str) -> None:
    """Forget every second outlook where too many are pending, and remember fewer from now on."""
    if len(pending) > MOST_PENDING:
        kept = list(pending)[::2]
        pending.clear()
        pending.extend(kept)  # type: ignore[arg-type]
        spacing[kind] = min(2.0 * spacing.get(kind, _NEW), 0.8)
