"""Where predictions are asked for: ages that do not depend on the answer.

Never a fraction of the true length. Three groups of points:

- admission: age 0 of every row;
- ages: 16, 32, 64, ... over the rows still alive there (``age < L``);
- steps: every generated token equally likely. A row of length ``L`` gives ``m`` ages, one drawn
  uniformly from each of ``m`` equal parts of ``0 .. L - 1``, each of weight ``L / m``: given an age
  ``a``, the weighted lengths are distributed like ``L | L > a``, as a scheduler meets them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from sagellm_lifetime.core.batch import UNCAPPED
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.evaluation.cuts import Cuts, find_cuts
from sagellm_lifetime.history.prequential import finish_reasons

FIRST_AGE = 16
MIN_ALIVE = 30
"""An age is reported only when at least this many rows that can be scored are alive there."""
STEPS_PER_ROW = 4


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """``P`` points over the ``n`` rows of a frame.

    Attributes:
        row: row of the frame, shape ``(P,)``, ascending.
        age: tokens generated so far, shape ``(P,)``; ladder points ascend inside a row.
        length: total length of that row (a lower bound where it is not ``known``).
        cap: cap on the total, ``UNCAPPED`` for none.
        known: whether the total is known (see :func:`known_lengths`).
        target: total up to the horizon of ``cuts``: what point metrics compare with.
        seen: whether ``target`` is known.
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
        """Tokens still to come, shape ``(P,)``."""
        return self.length - self.age

    def __len__(self) -> int:
        return len(self.row)

    def groups(self) -> dict[str, np.ndarray]:
        """Indices of the scored points of ``admission``, each age (``"16"`` ...) and ``steps``.

        Those at or beyond the horizon are left out: nothing is left to predict there.
        """
        inside = self.scored & (self.age < self.cuts.horizon)
        ladder = ~self.step & inside
        found = {"admission": np.flatnonzero(ladder & (self.age == 0))}
        for age in ladder_ages(int(self.age.max(initial=0)) + 1):
            index = np.flatnonzero(ladder & (self.age == age))
            if self.seen[index].sum() >= MIN_ALIVE:
                found[str(age)] = index
        found["steps"] = np.flatnonzero(self.step & inside)
        return found


def ladder_ages(longest: int) -> list[int]:
    """16, 32, 64, ... below ``longest``."""
    ages = []
    age = FIRST_AGE
    while age < longest:
        ages.append(age)
        age *= 2
    return ages


def caps(frame: pl.DataFrame) -> np.ndarray:
    """``max_length`` per row, ``UNCAPPED`` where it is missing; int64."""
    if "max_length" not in frame.columns:
        return np.full(len(frame), UNCAPPED, dtype=np.int64)
    return frame["max_length"].cast(pl.Int64).fill_null(UNCAPPED).to_numpy()


def known_lengths(frame: pl.DataFrame) -> np.ndarray:
    """Rows whose total is known; bool, shape ``(n,)``.

    ``stop`` rows are. A ``length`` row that reached its ``max_length`` is: the engine's total is
    ``min(L, cap) = cap``. Other ``length`` rows, ``abort`` and ``error`` are only "at least this
    many": see :mod:`.cuts`.
    """
    reason, length = np.array(finish_reasons(frame), dtype=object), lengths(frame)
    return np.asarray((reason == "stop") | ((reason == "length") & (length >= caps(frame))))


def lengths(frame: pl.DataFrame) -> np.ndarray:
    """``actual_length`` as int64; a missing column is a :class:`HistoryError`."""
    if "actual_length" not in frame.columns:
        raise HistoryError("column 'actual_length' is missing: it is the one column required")
    return frame["actual_length"].cast(pl.Int64).to_numpy()


def draw_steps(
    length: np.ndarray, rng: np.random.Generator, per_row: int = STEPS_PER_ROW
) -> np.ndarray:
    """Stratified ages, shape ``(n, per_row)``: one in each of ``per_row`` parts of ``0 .. L-1``."""
    part = (np.arange(per_row) + rng.random((len(length), per_row))) / per_row
    return np.minimum((part * length[:, None]).astype(np.int64), length[:, None] - 1)


def draw_points(frame: pl.DataFrame, *, seed: int = 0, scored: np.ndarray | None = None) -> Points:
    """Points of a frame, row by row: the ladder in ascending age, then the steps.

    Rows of length 0 say nothing about prediction and give no point.

    Args:
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
