"""Events of a history in the order in which a serving system sees them."""

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.history.prequential import (
    censored,
    clock,
    doubtful_clock,
    events,
    in_time_order,
    relative_times,
    seconds,
)
from sagellm_lifetime.history.splits import split


def frame(**columns) -> pl.DataFrame:
    n = max(len(values) for values in columns.values())
    return pl.DataFrame({"actual_length": [100] * n, **columns})


def test_events_in_time_order():
    history = frame(arrival_time=[0.0, 1.0, 2.0], actual_time=[5.0, 0.5, 1.0])
    assert list(events(history)) == [
        (0, False),
        (1, False),
        (1, True),
        (2, False),
        (2, True),
        (0, True),
    ]


def test_at_equal_times_a_finish_comes_first():
    history = frame(arrival_time=[0.0, 5.0], actual_time=[5.0, 1.0])
    assert list(events(history)) == [(0, False), (0, True), (1, False), (1, True)]


def test_a_finish_never_comes_before_its_own_arrival():
    rng = np.random.default_rng(0)
    for start in (0.0, 1.7e9):
        arrival = np.sort(rng.integers(0, 20, 200)).astype(float) + start
        times = rng.choice([0.0, 1e-9, 1.0, 3.0], 200)
        arrived = set()
        for row, finished in events(frame(arrival_time=arrival, actual_time=times)):
            assert (row in arrived) == finished
            arrived.add(row)


def test_without_arrivals_one_after_the_other():
    wanted = [(0, False), (0, True), (1, False), (1, True)]
    assert list(events(frame(actual_length=[3, 4]))) == wanted
    assert list(events(frame(arrival_time=[1.0, None], actual_time=[9.0, 9.0]))) == wanted


def test_every_row_arrives_once_and_finishes_once():
    rng = np.random.default_rng(1)
    history = frame(arrival_time=rng.uniform(0, 50, 300), actual_time=[None, 2.0, 0.0] * 100)
    seen = list(events(history))
    assert len(seen) == len(set(seen)) == 600
    assert list(events(frame(actual_length=[]))) == []


def test_seconds_where_they_are_missing():
    history = frame(actual_time=[1.0, None, float("nan")])
    assert seconds(history).tolist() == [1.0, 2.0, 2.0]
    assert seconds(frame(turn=[1, 2])).tolist() == [2.0, 2.0]
    assert seconds(history, missing=0.0).tolist() == [1.0, 0.0, 0.0]


def test_censored_is_every_finish_but_stop():
    history = frame(finish_reason=["stop", "length", "abort", "error", None])
    assert censored(history).tolist() == [False, True, True, True, False]
    assert censored(frame(turn=[1, 1])).tolist() == [False, False]


def test_clocks_that_restart_are_laid_in_a_row():
    per_session = [0.0, 10.0, 20.0, 900.0]
    history = frame(
        session_id=[f"s{i}" for i in range(6) for _ in per_session], arrival_time=per_session * 6
    )
    assert relative_times(history)
    times = clock(history)
    assert (np.diff(times) > 0).all()
    one_clock = history.with_columns(arrival_time=pl.int_range(24).cast(pl.Float64) * 100)
    assert not relative_times(one_clock)
    assert clock(one_clock).tolist() == one_clock["arrival_time"].to_list()


def closed_loop(ramp: float = 20.0, users: int = 40, turns: int = 30) -> pl.DataFrame:
    """Return users of a load test, each starting within the ramp and pausing between turns."""
    rng = np.random.default_rng(5)
    starts = rng.uniform(0, ramp, users)
    waits = np.column_stack([np.zeros(users), rng.uniform(5, 40, (users, turns - 1))])
    return frame(
        session_id=np.repeat([f"u{i}" for i in range(users)], turns),
        arrival_time=(starts[:, None] + waits.cumsum(axis=1)).ravel(),
    )


def own_clocks(history: pl.DataFrame) -> pl.DataFrame:
    start = pl.col("arrival_time").min().over("session_id")
    return history.with_columns(pl.col("arrival_time") - start)


@pytest.mark.parametrize("order", [["session_id", "arrival_time"], ["arrival_time"]])
def test_users_of_a_load_test_are_on_one_clock(order):
    """All users begin in the first moments, but each at another time."""
    wall = closed_loop().sort(order)
    assert not relative_times(wall)
    assert doubtful_clock(wall)
    assert clock(wall).tolist() == wall["arrival_time"].to_list()
    assert split(wall).by == "time"


def test_clocks_that_restart_are_told_from_rows_session_by_session():
    relative = own_clocks(closed_loop())
    assert relative_times(relative)
    assert split(relative).by == "session"
    span = clock(relative).max() - clock(relative).min()
    assert span > 20 * relative["arrival_time"].max()


def test_fit_says_where_it_takes_sessions_one_by_one(caplog):
    relative = own_clocks(closed_loop(users=5, turns=10))
    create_predictor("survival").fit(relative)
    assert "the sessions are taken one by one" in caplog.text
    caplog.clear()
    create_predictor("survival").fit(relative, clock="wall")
    assert not caplog.text


def test_users_who_all_start_at_the_same_instant_are_on_one_clock():
    """Ten of them at 0.0, the next request 5 s after the last end; written as they arrive."""
    lasting = np.random.default_rng(8).uniform(1, 9, (10, 12))
    starts = np.column_stack([np.zeros(10), (lasting + 5.0).cumsum(axis=1)[:, :-1]])
    users = frame(
        session_id=np.repeat([f"u{i}" for i in range(10)], 12),
        arrival_time=starts.ravel(),
        actual_time=lasting.ravel(),
    ).sort("arrival_time")
    assert not relative_times(users)
    assert doubtful_clock(users)
    assert clock(users).tolist() == users["arrival_time"].to_list()
    assert split(users).by == "time"
    assert relative_times(users, "session")
    assert relative_times(users.sort("session_id", "arrival_time"))


def test_sessions_that_count_from_before_their_first_request():
    """As in recordings of a client: some of the sessions begin at 0, the others soon after."""
    late = (pl.col("session_id").hash(seed=1) % 4).cast(pl.Float64)
    some = own_clocks(closed_loop()).with_columns(pl.col("arrival_time") + late)
    assert relative_times(some)
    assert not relative_times(some.sort("arrival_time"))


def test_a_clock_that_is_said_is_believed():
    wall, relative = closed_loop(), own_clocks(closed_loop())
    assert relative_times(wall, "session")
    assert not relative_times(relative, "wall")
    assert clock(relative, "wall").tolist() == relative["arrival_time"].to_list()
    assert split(wall, clock="session").by == "session"
    assert split(relative, clock="wall").by == "time"
    ordered = in_time_order(relative, clock="wall")["arrival_time"]
    assert ordered.is_sorted()
    arrivals = [row for row, finished in events(relative, "wall") if not finished]
    assert relative["arrival_time"][arrivals].is_sorted()
    with pytest.raises(UnknownNameError, match="choose one of auto, wall, session"):
        relative_times(wall, "utc")


def test_rows_that_come_all_at_once_have_no_other_clock():
    rows = frame(session_id=["a", "a", "b", "c"], arrival_time=[3.0] * 4)
    assert not relative_times(rows)
    assert not doubtful_clock(rows)
    assert not relative_times(rows.with_columns(session_id=pl.lit(None, pl.String)))
    assert not relative_times(rows.clear())


def test_in_time_order():
    history = frame(arrival_time=[3.0, 1.0, 2.0, 1.0], turn=[0, 1, 2, 3])
    assert in_time_order(history)["turn"].to_list() == [1, 3, 2, 0]
    gaps = frame(arrival_time=[3.0, None, 1.0], turn=[0, 1, 2])
    assert sorted(in_time_order(gaps)["turn"].to_list()) == [0, 1, 2]
    assert in_time_order(gaps).equals(in_time_order(gaps))
    assert in_time_order(frame(turn=[])).is_empty()
