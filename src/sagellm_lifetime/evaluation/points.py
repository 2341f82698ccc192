"""Points at which predictions are asked for, and the requests there.

Ages never depend on the answer, as a fraction of its length would. Three groups of points:

- admission: age 0 of every row;
- ages: 16, 32, 64, ... over the rows still alive there (``age < L``);
- steps: every generated token equally likely. A row of length ``L`` gives ``m`` ages, one drawn
  uniformly from each of ``m`` equal parts of ``0 .. L - 1``, each of weight ``L / m``: given an age
  ``a``, the weighted lengths are distributed like ``L | L > a``, as a scheduler meets them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import polars as pl

from sagellm_lifetime.core.batch import UNCAPPED
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.evaluation.cuts import Cuts, find_cuts
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.prequential import finish_reasons

FIRST_AGE = 16
MIN_ALIVE = 30
"""An age is reported only where at least this many scorable rows are longer than it."""
STEPS_PER_ROW = 4


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """``P`` points over the ``n`` rows of a frame.

    Attributes:
        row: row of the frame, shape ``(P,)``, ascending.
        age: tokens generated so far, shape ``(P,)``; ladder points ascend inside a row.
        length: total length of that row (a lower bound where it is not ``known``).
        cap: cap on the total, ``UNCAPPED`` for none.
        known: True where the total is known (see :func:`known_lengths`).
        target: total up to the horizon of ``cuts``: what point metrics compare with.
        seen: True where ``target`` is known.
        weight: ``L / m`` for steps, 1 for the ladder.
        stands_for: how many rows at that age a seen row stands for, itself and those cut before
            its ``target``; 1 where nothing was cut.
        step: True for points of the steps, False for admission and ages (the ladder).
        scored: False for rows that are only learned from (online, beyond ``max_rows``).
        cuts: rows whose end was not seen.
    """

    row: np.ndarray
    age: np.ndarray
    length: np.ndarray
    cap: np.ndarray
    known: np.ndarray
    target: np.ndarray
    seen: np.ndarray
    weight: np.ndarray
    stands_for: np.ndarray
    step: np.ndarray
    scored: np.ndarray
    cuts: Cuts

    @property
    def remaining(self) -> np.ndarray:
        """Return the remaining tokens, shape ``(P,)``."""
        return self.length - self.age

    def __len__(self) -> int:
        return len(self.row)

    def groups(self) -> dict[str, np.ndarray]:
        """Return the indices of the scored points of each group.

        Groups are ``admission``, the ages (``"16"`` ...) and ``steps``. Points at or beyond the
        horizon are left out: nothing is left to predict there.
        """
        inside = self.scored & (self.age < self.cuts.horizon)
        ladder = ~self.step & inside
        groups = {"admission": np.flatnonzero(ladder & (self.age == 0))}
        for age in ladder_ages(int(self.age.max(initial=0)) + 1):
            index = np.flatnonzero(ladder & (self.age == age))
            if self.seen[index].sum() >= MIN_ALIVE:
                groups[str(age)] = index
        groups["steps"] = np.flatnonzero(self.step & inside)
        return groups


def ladder_ages(longest: int) -> list[int]:
    """Return 16, 32, 64, ... below ``longest`` tokens."""
    ages = []
    age = FIRST_AGE
    while age < longest:
        ages.append(age)
        age *= 2
    return ages


def caps(frame: pl.DataFrame) -> np.ndarray:
    """Return ``max_length`` per row, ``UNCAPPED`` where it is missing; int64, shape ``(n,)``."""
    if "max_length" not in frame.columns:
        return np.full(len(frame), UNCAPPED, dtype=np.int64)
    return frame["max_length"].cast(pl.Int64).fill_null(UNCAPPED).to_numpy()


def known_lengths(frame: pl.DataFrame) -> np.ndarray:
    """Return which rows have a known total; bool, shape ``(n,)``.

    The total of a ``stop`` row is known. So is that of a ``length`` row that reached its
    ``max_length``: the engine's total is ``min(L, cap) = cap``. Of other ``length`` rows, ``abort``
    and ``error`` it is at least the length: see :mod:`.cuts`.
    """
    reason, length = np.array(finish_reasons(frame), dtype=object), lengths(frame)
    return np.asarray((reason == "stop") | ((reason == "length") & (length >= caps(frame))))


def lengths(frame: pl.DataFrame) -> np.ndarray:
    """Return ``actual_length`` as int64. Raise :class:`HistoryError` if there is no such column."""
    if "actual_length" not in frame.columns:
        raise HistoryError("column 'actual_length' is missing: it is the one column required")
    return frame["actual_length"].cast(pl.Int64).to_numpy()


def draw_steps(
    length: np.ndarray, rng: np.random.Generator, per_row: int = STEPS_PER_ROW
) -> np.ndarray:
    """Return stratified ages, shape ``(n, per_row)``: one in each part of ``0 .. L - 1``."""
    part = (np.arange(per_row) + rng.random((len(length), per_row))) / per_row
    return np.minimum((part * length[:, None]).astype(np.int64), length[:, None] - 1)


def draw_points(frame: pl.DataFrame, *, seed: int = 0, scored: np.ndarray | None = None) -> Points:
    """Return the points of a frame, row by row: the ladder in ascending age, then the steps.

    Rows of length 0 give no point: there is nothing to predict.

    Args:
        frame: rows in the history format.
        seed: seed of the ages of the steps.
        scored: bool, shape ``(n,)``; rows that are left out of the metrics get no step points.
    """
    length = lengths(frame)
    score = np.ones(len(frame), dtype=bool) if scored is None else scored
    ladder = np.array([0, *ladder_ages(int(length.max(initial=0)))], dtype=np.int64)
    alive = ladder[None, :] < length[:, None]
    rows, steps = np.nonzero(alive)
    chosen = np.flatnonzero(score & (length > 0))
    drawn = np.sort(draw_steps(length[chosen], np.random.default_rng(seed)), axis=1)
    row = np.concatenate([rows, np.repeat(chosen, STEPS_PER_ROW)])
    age = np.concatenate([ladder[steps], drawn.ravel()])
    step = np.arange(len(row)) >= len(rows)
    order = np.lexsort((age, step, row))
    row, age, step = row[order], age[order], step[order]
    known = known_lengths(frame)
    counted = score & (length > 0)
    cuts = find_cuts(length[counted], known[counted])
    target = np.minimum(length[row], cuts.horizon)
    return Points(
        row=row,
        age=age,
        length=length[row],
        cap=caps(frame)[row],
        known=known[row],
        target=target,
        seen=known[row] | (length[row] >= cuts.horizon),
        weight=np.where(step, length[row] / STEPS_PER_ROW, 1.0),
        stands_for=cuts.chance(age + 1) / cuts.chance(target),
        step=step,
        scored=score[row],
        cuts=cuts,
    )


_evaluation_numbers = count()


class EvaluationRequests:
    """Requests of the rows of a frame, under ids that no other evaluation uses."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._requests = HistoryRequests(frame)
        self._evaluation = next(_evaluation_numbers)

    def sequence_id(self, row: int, point: int | None = None) -> str:
        """Return the id of a row's sequence, or of the separate one of a single point."""
        base = f"evaluate-{self._evaluation}-{row}"
        return base if point is None else f"{base}-{point}"

    def request(self, row: int, age: int, point: int | None = None) -> PredictionRequest:
        """Return the request of a row at an age in tokens."""
        return self._requests.request(row, age, self.sequence_id(row, point))
