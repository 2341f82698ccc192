"""From a history to requests: arrivals, prompts, and the errors of one line."""

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime.core.errors import HistoryError, LifetimeError, RequestError
from sagellm_lifetime.replay.engine import EngineSettings, check_fits
from sagellm_lifetime.replay.trace import at_once, at_rate, make_trace, rate_of, sample
from sagellm_lifetime.workloads import generate


def one_line(error):
    return "\n" not in str(error.value)


def test_every_row_is_a_request_in_the_order_of_arrival(frame):
    trace = make_trace(frame.sample(fraction=1.0, shuffle=True, seed=0))
    assert [one.arrival for one in trace] == sorted(one.arrival for one in trace)
    assert trace[0].arrival == 0
    assert sum(one.output_length for one in trace) == frame["actual_length"].sum()
    assert len({one.id for one in trace}) == len(frame)


def test_a_rate_keeps_the_rhythm(frame):
    trace = make_trace(frame)
    faster = at_rate(trace, 3.0)
    assert rate_of(faster) == pytest.approx(3.0)
    before = np.diff([one.arrival for one in trace])
    after = np.diff([one.arrival for one in faster])
    assert after == pytest.approx(before * (after.sum() / before.sum()))
    assert {one.arrival for one in at_once(trace)} == {0.0}


def test_equal_blocks_give_equal_tokens_and_nothing_else_does():
    rows = pl.DataFrame(
        {
            "prompt_length": [1500, 1400, 300],
            "actual_length": [5, 5, 5],
            "prefix_hashes": [[900, 31, 32], [900, 31, 77], None],
        }
    )
    first, second, alone = (one.prompt_token_ids for one in make_trace(rows))
    assert [len(first), len(second), len(alone)] == [1500, 1400, 300]
    assert first[:1024] == second[:1024]
    assert not set(first[1024:]) & set(second[1024:])
    assert not set(alone) & (set(first) | set(second))


def test_token_ids_of_the_history_are_used():
    rows = pl.DataFrame({"prompt_token_ids": [[7, 8, 9]], "actual_length": [2]})
    assert make_trace(rows)[0].prompt_token_ids == [7, 8, 9]


def test_sessions_on_their_own_clocks_get_a_start_each():
    frame = generate("coding-agent", 300, seed=1)
    first = pl.col("arrival_time").min().over("session_id")
    relative = frame.with_columns(pl.col("arrival_time") - first)
    trace = make_trace(relative, seed=3)
    starts, sessions = {}, {}
    for one in trace:
        starts[one.session_id] = min(starts.get(one.session_id, np.inf), one.arrival)
        sessions.setdefault(one.session_id, []).append(one)
    assert len(set(starts.values())) == len(starts) > 3
    recorded = dict(zip(relative["request_id"], relative["arrival_time"], strict=True))
    for name, members in sessions.items():
        for one in members:
            within = one.arrival - starts[name]
            assert within == pytest.approx(recorded[relative["request_id"][one.row]])
    assert trace == make_trace(relative, seed=3)
    assert trace != make_trace(relative, seed=4)


def test_without_arrivals_they_are_drawn():
    rows = pl.DataFrame({"prompt_length": [10] * 400, "actual_length": [5] * 400})
    assert rate_of(make_trace(rows)) == pytest.approx(1.0, rel=0.2)


def test_a_sample_is_neighbours(frame):
    part = sample(frame, 10, seed=1)
    names = frame["request_id"].to_list()
    start = names.index(part["request_id"][0])
    assert part["request_id"].to_list() == names[start : start + 10]
    assert sample(frame, None).equals(frame)


def test_an_empty_trace_is_one_line(frame):
    for rows in (frame.clear(), frame.head(3).with_columns(actual_length=pl.lit(0))):
        with pytest.raises(HistoryError, match="the trace is empty") as error:
            make_trace(rows)
        assert one_line(error)


def test_prompt_lengths_are_needed(frame):
    with pytest.raises(HistoryError, match="prompt_length") as error:
        make_trace(frame.drop("prompt_length"))
    assert one_line(error)
    some = pl.when(pl.int_range(pl.len()) < 2).then(None).otherwise(pl.col("prompt_length"))
    with pytest.raises(HistoryError, match="2 of 60") as error:
        make_trace(frame.with_columns(some.alias("prompt_length")))
    assert one_line(error)


def test_a_request_longer_than_the_model_is_one_line(frame):
    with pytest.raises(RequestError, match="the model length is 100") as error:
        check_fits(make_trace(frame), EngineSettings(max_model_len=100))
    assert one_line(error)


def test_a_request_that_does_not_fit_can_be_found_in_the_history(frame):
    """Whatever part of it is replayed, in whatever order."""
    part = frame.sample(fraction=1.0, shuffle=True, seed=0)[10:30]
    longest = part[(part["prompt_length"] + part["actual_length"]).arg_max()]
    lengths = ("prompt_length", "actual_length")
    for columns in (("request_id", "arrival_time", *lengths), ("arrival_time", *lengths), lengths):
        with pytest.raises(RequestError, match="--blocks") as error:
            check_fits(make_trace(part.select(columns)), EngineSettings(blocks=20))
        told = ", ".join(f"{name} {longest[name].item()!r}" for name in columns)
        assert str(error.value).startswith(f"the request with {told} needs ")
        assert one_line(error)


def test_a_request_larger_than_the_pool_is_one_line(frame):
    with pytest.raises(LifetimeError, match="--blocks") as error:
        check_fits(make_trace(frame), EngineSettings(blocks=20))
    assert one_line(error)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_load_is_above_zero(trace, rate):
    with pytest.raises(RequestError, match="load"):
        at_rate(trace, rate)
