"""Splits: whole groups to one side, the same every time, never by row."""

from __future__ import annotations

import polars as pl
import pytest
from evaluation_stubs import history

from sagellm_lifetime.core.errors import HistoryError, UnknownNameError
from sagellm_lifetime.history.splits import split


def test_by_time_whatever_the_order_of_the_rows():
    frame = history(100).sample(fraction=1.0, shuffle=True, seed=0)
    parts = split(frame)
    assert parts.by == "time"
    assert (len(parts.train), len(parts.test)) == (70, 30)
    assert parts.train["arrival_time"].max() < parts.test["arrival_time"].min()


@pytest.mark.parametrize(("column", "way"), [("session_id", "session"), ("prompt_id", "prompt")])
def test_whole_groups_to_one_side(column, way):
    frame = history(1000).drop("arrival_time")
    frame = frame.with_columns((pl.int_range(1000) // 5).cast(pl.String).alias(column))
    parts, again = split(frame), split(frame.reverse())
    assert parts.by == way
    assert not set(parts.train[column]) & set(parts.test[column])
    assert 0.65 < len(parts.train) / 1000 <= 0.7
    assert set(parts.train[column]) == set(again.train[column])


def test_samples_of_one_prompt_stay_together_beside_sessions():
    frame = history(1000).drop("arrival_time")
    row = pl.int_range(1000)
    frame = frame.with_columns(
        session_id=pl.when(row < 300).then(row // 3).cast(pl.String),
        prompt_id=(pl.lit("p") + (row // 5).cast(pl.String)),
    )
    parts = split(frame)
    assert parts.by == "session"
    assert not set(parts.train["session_id"].drop_nulls()) & set(parts.test["session_id"])
    alone = [part.filter(pl.col("session_id").is_null()) for part in (parts.train, parts.test)]
    assert not set(alone[0]["prompt_id"]) & set(alone[1]["prompt_id"])
    assert min(map(len, alone)) > 100


def test_sessions_that_ask_the_same_prompt_stay_together():
    """The first turn of two holdings is one prompt, which makes them one; so do chains of it."""
    first = [(f"{k}/{holding}", f"{k}-1") for k in range(100) for holding in range(2)]
    later = [(f"{k}/{holding}", f"{k}-2/{holding}") for k in range(100) for holding in range(2)]
    chain = [(f"chain {k}", f"chained {k + more}") for k in range(9) for more in range(2)]
    alone = [(None, "chained 4"), (None, "chained 9"), (None, "7-1")]
    rows = [*first, *later, *chain, *alone]
    frame = pl.DataFrame(rows, schema=["session_id", "prompt_id"], orient="row")
    frame = frame.with_columns(actual_length=pl.lit(1))
    parts = split(frame)
    assert parts.by == "session"
    for column in ("session_id", "prompt_id"):
        assert not set(parts.train[column].drop_nulls()) & set(parts.test[column].drop_nulls())
    chained = pl.col("session_id").str.starts_with("chain") | (pl.col("prompt_id") == "chained 4")
    assert sorted(len(part.filter(chained)) for part in (parts.train, parts.test)) == [0, 19]
    assert 0.6 < len(parts.train) / len(frame) <= 0.7


def test_times_relative_to_the_session_are_not_a_clock():
    frame = history(300).with_columns(
        session_id=(pl.int_range(300) // 3).cast(pl.String),
        arrival_time=(pl.int_range(300) % 3).cast(pl.Float64),
    )
    assert split(frame).by == "session"
    assert split(frame, "time").by == "time"


def test_rows_without_a_prompt_id_are_groups_of_their_own():
    frame = pl.DataFrame({"prompt_id": ["a", None] * 50, "actual_length": [1, 2] * 50})
    parts = split(frame)
    named = [part["prompt_id"].drop_nulls().len() for part in (parts.train, parts.test)]
    assert sorted(named) == [0, 50]
    assert len(parts.train) + len(parts.test) == 100


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_two_sessions_are_enough_however_uneven(name):
    frame = pl.DataFrame({"session_id": [name] * 9 + ["other"], "actual_length": [5] * 10})
    parts = split(frame)
    assert parts.by == "session"
    assert sorted([len(parts.train), len(parts.test)]) == [1, 9]


def test_a_bare_history_is_cut_in_file_order():
    parts = split(pl.DataFrame({"actual_length": list(range(10))}))
    assert parts.by == "order"
    assert parts.test["actual_length"].to_list() == [7, 8, 9]


def test_errors_are_one_line():
    bare = pl.DataFrame({"actual_length": [1, 2, 3]})
    with pytest.raises(HistoryError, match="needs the column 'session_id'"):
        split(bare, "session")
    with pytest.raises(HistoryError, match="one part would be empty"):
        split(bare[:1])
    with pytest.raises(UnknownNameError, match="choose one of"):
        split(bare, "row")
