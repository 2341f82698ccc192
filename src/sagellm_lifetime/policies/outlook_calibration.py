"""Calibration of outlooks by what came of earlier ones.

Each remembered outlook waits for its outcome; the outcome's place among the outlook's own draws
becomes a normal score. The scores of the last outcomes of a figure correct its quantiles: where
nine of ten outcomes were below the draws' 0.97 quantile, that is reported as the 0.9 quantile. This
is conformal prediction on the probability integral transform, prequentially: an outcome counts only
for outlooks made after it. Forecasts from the same history err together, and what the model of the
engine leaves out errs every time; both are learned so, per figure.

An outcome that is not over is censored: it counts as more than its value so far, since otherwise
short outcomes would be counted first. The distribution of the scores is therefore the estimate of
Kaplan and Meier. Neighbouring outlooks share most of their sequences, so each counts by its
share of new ones.

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), for counting
the outcome to come; Candès, Lei and Ren, "Conformalized survival
analysis" (2023), for outcomes that are not over; Dawid, "Present position and potential
developments" (1984), for the prequential transform.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final, TypeVar

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

MEMORY: Final = 24.0
"""Outcomes that count, newest first, in whole ones: some minutes of an engine under load."""
PRIOR: Final = 8.0
"""Weight of the uncalibrated draws, in outcomes; before any outcome only they count."""
MOST_PENDING: Final = 32
"""Outlooks whose outcome is waited for."""
PATIENCE_S: Final = 1800.0
"""Seconds after which an outcome is no longer waited for."""
_NEW: Final = 0.05
"""Least share of sequences that the outlook remembered before does not have."""
_NO_WAIT_S: Final = 0.1
"""Seconds between arrival and admission of a request that found a place: less than some steps."""
_BOUND: Final = 6.0
"""Largest normal score; the draws' tail is extended this far."""
_NORMAL: Final = NormalDist()
_PRIOR_SCORES: Final = [(_NORMAL.inv_cdf((i + 0.5) / 40), PRIOR / 40) for i in range(40)]
"""Normal scores and weights that stand for uncalibrated draws."""


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

    Attributes:
        pending: scores of what there is so far of outcomes to come, with weights.

    >>> scores = Scores()
    >>> for _ in range(64):
    ...     scores.add(1.0, 1.0)
    >>> [round(z, 1) for z in scores.at(np.array([0.5, 0.9])).tolist()]
    [1.0, 1.0]
    >>> scores.pending = [(3.0, 8.0)]
    >>> round(float(scores.at(np.array([0.9]))[0]), 1)
    2.2
    """

    def __init__(self) -> None:
        self.pending: list[tuple[float, float]] = []
        self._kept: deque[tuple[float, float]] = deque()
        self._weight = 0.0

    def __len__(self) -> int:
        return len(self._kept) + len(self.pending)

    @property
    def known(self) -> int:
        """Return the number of outcomes that count."""
        return len(self._kept)

    def add(self, found: float, weight: float) -> None:
        """Add the score of an outcome, and let the oldest go."""
        self._kept.append((found, weight))
        self._weight += weight
        while self._weight - self._kept[0][1] >= MEMORY:
            self._weight -= self._kept.popleft()[1]

    def at(self, levels: np.ndarray) -> np.ndarray:
        """Return the score below which an outcome stays with each probability.

        The outcome to come is one more than those that are known, so of ``n`` outcomes the share
        ``p (n + 1) / n`` must be below it; in both directions from the middle.

        Args:
            levels: the probabilities, 0 to 1.
        """
        several = [*_PRIOR_SCORES, *self._kept, *self.pending]
        found, weights = np.array(several).T
        is_over = np.arange(len(several)) < len(several) - len(self.pending)
        order = np.lexsort((~is_over, found))
        found, weights, is_over = found[order], weights[order], is_over[order]
        at_risk = np.cumsum(weights[::-1])[::-1]
        ended = np.where(is_over, weights / at_risk, 0.0)
        survival = np.cumprod(np.clip(1.0 - ended, 1e-9, 1.0))
        before = np.concatenate([[1.0], survival[:-1]])
        middles = 1.0 - (survival + before) / 2.0
        wider = 0.5 + (levels - 0.5) * (1.0 + 1.0 / weights.sum())
        return np.interp(wider, middles[is_over], found[is_over])


@dataclass(slots=True)
class _Group:
    """Sequences of one remembered outlook, and what is known of each.

    Attributes:
        at: seconds of the outlook.
        draws: of its figures, as they were drawn.
        weight: share of the sequences that are new.
        places: index by id of the sequences that have not ended.
        ages: tokens of each at the outlook, shape ``(N,)``.
        left: tokens that each has generated since, shape ``(N,)``.
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

    def values(self, kind: str, now: float) -> dict[str, float]:
        """Return the figures of what has come so far, all of it where every sequence has ended."""
        total = float(self.left.sum()) * self.times
        if kind == "waiting":
            return {"waiting_tokens": total}
        peak = peak_blocks(self.left[:, None], self.tokens, self.block_size)
        done = (now if self.places else self.last) - self.at
        return {"running_tokens": total, "peak_blocks": float(peak[0]), "done_s": done}

    def grown(self, generated: Mapping[str, int]) -> None:
        """Take how many tokens the present sequences have."""
        for name, place in self.places.items():
            if name in generated:
                self.left[place] = max(generated[name] - self.ages[place], self.left[place])

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


_Pending = TypeVar("_Pending", _Group, _Newcomer)


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
        """Take what has happened in the engine, and count the outcomes that are known now."""
        for event in events:
            self._newcomer_event(event)
            if isinstance(event, Finished):
                for group in (*self._running, *self._waiting):
                    group.ended(event.sequence_id, event.length, event.at)
        for kind in ("running", "waiting"):
            pending = self._pending(kind)
            for group in [group for group in pending if not group.places]:
                for name, value in group.values(kind, now).items():
                    found = score(getattr(group.draws, name), value)
                    if found is not None:
                        self.scores[name].add(found, group.weight)
            _keep(pending, [g for g in pending if g.places and g.at >= now - PATIENCE_S])
        for newcomer in [each for each in self._newcomers if each.began is not None]:
            self._settle_place(newcomer)
        waiting = [n for n in self._newcomers if n.began is None and n.at >= now - PATIENCE_S]
        _keep(self._newcomers, waiting)

    def _newcomer_event(self, event: Event) -> None:
        """Take what an event says of the first requests after outlooks."""
        for newcomer in tuple(self._newcomers):
            if isinstance(event, Arrived):
                if not newcomer.name and event.at >= newcomer.at:
                    newcomer.name, newcomer.arrived = event.sequence.id, event.at
            elif isinstance(event, Admitted):
                if newcomer.began is None and newcomer.name == event.sequence_id:
                    newcomer.began = event.at
            elif (
                isinstance(event, Finished)
                and newcomer.began is None
                and newcomer.name == event.sequence_id
            ):
                self._newcomers.remove(newcomer)

    def look(self, generated: Mapping[str, int], now: float) -> None:
        """Take how far the present sequences are, before an outlook is corrected.

        Args:
            generated: tokens of the present sequences by id.
            now: seconds, on the clock of the events.
        """
        pending: dict[str, list[tuple[float, float]]] = {name: [] for name in FIGURES}
        for kind in ("running", "waiting"):
            for group in self._pending(kind):
                group.grown(generated)
                for name, value in group.values(kind, now).items():
                    found = score(getattr(group.draws, name), value)
                    if found is not None:
                        pending[name].append((found, group.weight))
        for newcomer in self._newcomers:
            found = score(newcomer.draws, now - newcomer.at)
            if newcomer.name and found is not None:
                pending["place_s"].append((found, 1.0))
        for name, several in pending.items():
            self.scores[name].pending = several

    def forget_pending(self) -> None:
        """Forget the outlooks whose outcome is not known, as where ends may be missed."""
        self._running.clear()
        self._waiting.clear()
        self._newcomers.clear()
        self._names.clear()
        for scores in self.scores.values():
            scores.pending = []

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
            part = (self.scores["place_s"].known * 0.6180339887) % 1.0
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


def _keep(pending: deque[_Pending], kept: list[_Pending]) -> None:
    """Let only some of the pending ones stay."""
    if len(kept) < len(pending):
        pending.clear()
        pending.extend(kept)


def _thin(pending: deque[_Pending], spacing: dict[str, float], kind: str) -> None:
    """Forget every second outlook where too many are pending, and remember fewer from now on."""
    if len(pending) > MOST_PENDING:
        _keep(pending, list(pending)[::2])
        spacing[kind] = min(2.0 * spacing.get(kind, _NEW), 0.8)
