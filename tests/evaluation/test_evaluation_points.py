"""Points: ages that say nothing of the length beyond "still alive"."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from evaluation_stubs import history

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.evaluation.points import (
    MIN_ALIVE,
    STEPS_PER_ROW,
    draw_points,
    known_lengths,
    lengths,
)


def test_weights_of_the_steps_sum_to_all_tokens():
    frame = history(500)
    points = draw_points(frame)
    steps = points.groups()["steps"]
    assert points.weight[steps].sum() == pytest.approx(frame["actual_length"].sum())
    assert len(steps) == STEPS_PER_ROW * len(frame)
    per_row = np.bincount(points.row[steps], points.weight[steps])
    assert per_row == pytest.approx(frame["actual_length"].to_numpy())


def test_everyone_is_alive_where_asked():
    points = draw_points(history(500))
    assert (points.age >= 0).all()
    assert (points.age < points.length).all()
    assert (points.remaining >= 1).all()


def test_admission_and_ages_are_the_rows_alive():
    frame = history(500)
    length = frame["actual_length"].to_numpy()
    groups = draw_points(frame).groups()
    assert len(groups["admission"]) == 500
    for name, index in groups.items():
        if name.isdigit():
            assert len(index) == (length > int(name)).sum()
    assert (length > 2 * max(int(n) for n in groups if n.isdigit())).sum() < MIN_ALIVE


def test_ladder_ascends_inside_a_row():
    points = draw_points(history(200))
    ladder = ~points.step
    same = np.diff(points.row[ladder]) == 0
    assert (np.diff(points.age[ladder])[same] > 0).all()


def test_age_of_a_step_is_independent_of_the_length_given_alive():
    """Half of the rows have 60 tokens, half 600: below age 60 both must weigh the same."""
    frame = pl.DataFrame({"actual_length": [60, 600] * 4000})
    points = draw_points(frame)
    steps = points.groups()["steps"]
    age, length, weight = points.age[steps], points.length[steps], points.weight[steps]
    for low, high in ((0, 10), (25, 35), (50, 60)):
        inside = (age >= low) & (age < high)
        short = weight[inside & (length == 60)].sum()
        assert short / weight[inside].sum() == pytest.approx(0.5, abs=0.04)
    assert (length[age >= 60] == 600).all()


def test_a_seed_gives_the_same_points_and_another_seed_others():
    frame = history(100)
    first, again, other = (draw_points(frame, seed=s) for s in (1, 1, 2))
    assert (first.age == again.age).all()
    assert (first.age[first.step] != other.age[other.step]).any()
    assert (first.age[~first.step] == other.age[~other.step]).all()


def test_known_lengths():
    frame = pl.DataFrame(
        {
            "actual_length": [10, 20, 20, 20, 20, 20],
            "max_length": [50, 20, 50, None, 50, 50],
            "finish_reason": ["stop", "length", "length", "length", "abort", None],
        }
    )
    assert known_lengths(frame).tolist() == [True, True, False, False, False, True]


def test_rows_without_tokens_give_no_point():
    points = draw_points(pl.DataFrame({"actual_length": [0, 5, 0]}))
    assert set(points.row.tolist()) == {1}


def test_missing_lengths_are_one_line():
    with pytest.raises(HistoryError, match="'actual_length' is missing"):
        lengths(pl.DataFrame({"length": [1]}))
