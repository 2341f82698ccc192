"""How ``train``, ``evaluate`` and ``replay`` read a log, and what they say about it."""

import numpy as np
import polars as pl
import pytest

SURVIVAL = ("--predictor-type", "survival")


@pytest.fixture
def capped(tmp_path):
    """80 rows without finish reasons, 20 of which end exactly at their cap."""
    lengths = [20 + 7 * (i % 30) for i in range(60)] + [256] * 20
    order = np.random.default_rng(0).permutation(80)
    rows = pl.DataFrame(
        {
            "arrival_time": np.arange(80) * 1.0,
            "prompt_length": [64] * 80,
            "actual_length": np.array(lengths)[order],
            "max_length": [256] * 80,
        }
    )
    rows.write_csv(tmp_path / "capped.csv")
    return "capped.csv"


@pytest.fixture
def looped(tmp_path):
    """Twelve users of a load test, who all begin in the first seconds."""
    rng = np.random.default_rng(2)
    rows = []
    for user in range(12):
        at = rng.uniform(0, 5)
        for turn in range(10):
            rows.append((at, f"u{user}", turn, int(rng.integers(20, 90))))
            at += rng.uniform(20, 40)
    names = ["arrival_time", "session_id", "turn", "actual_length"]
    frame = pl.DataFrame(rows, schema=names, orient="row").sort("arrival_time")
    frame.write_csv(tmp_path / "looped.csv")
    return "looped.csv"


def test_train_says_how_many_reached_their_cap(cli, capped):
    done = cli("train", "--data-path", capped, *SURVIVAL, "--json")
    assert done.code == 0
    assert "20 of 80 rows give no finish reason and end exactly at their max_length" in done.err
    assert done.err.count("\n") == 1
    found = done.json()
    assert found["censored"] == 20
    assert found["read"][capped]["cap_reached"] == 20
    assert found["read"][capped]["cap_reached_as"] == "length"
    stats = cli("stats", "--json").json()["training_data"]
    assert stats["cap_reached"] == {"rows": 20, "as": "length"}
    other = cli("train", "--data-path", capped, *SURVIVAL, "--json", "--cap-reached", "stop")
    assert "counted as 'stop'" in other.err
    assert other.json()["censored"] == 0


def test_evaluate_says_how_many_reached_their_cap(cli, capped):
    done = cli("evaluate", "--data-path", capped, *SURVIVAL, "--json")
    assert "20 of 80 rows give no finish reason" in done.err
    assert done.json()["settings"]["read"][capped]["cap_reached"] == 20
    assert done.json()["settings"]["clock"] == "wall"


def test_replay_says_how_many_reached_their_cap(cli, vllm, capped):
    replay = ("replay", "--data-path", capped, "--policy", "fcfs", "--offline", "--json")
    done = cli(*replay)
    assert "20 of 80 rows give no finish reason" in done.err
    assert done.json()["settings"]["read"][capped]["cap_reached"] == 20


def test_a_load_test_is_cut_by_time_and_the_clock_is_told(cli, looped):
    evaluate = ("evaluate", "--data-path", looped, *SURVIVAL, "--json")
    done = cli(*evaluate)
    assert "arrival times are on one clock" in done.err
    assert "--clock session" in done.err
    assert done.json()["settings"]["split"] == "time"
    assert done.json()["settings"]["clock"] == "wall"
    forced = cli(*evaluate, "--clock", "session")
    assert "one clock" not in forced.err
    assert forced.json()["settings"]["split"] == "session"
    assert forced.json()["settings"]["clock"] == "session"
    trained = cli("train", "--data-path", looped, *SURVIVAL, "--json")
    assert "arrival times are on one clock" in trained.err
    assert trained.json()["read"][looped]["clock"] == "wall"


def test_times_that_restart_are_told(cli, looped, tmp_path):
    start = pl.col("arrival_time").min().over("session_id")
    frame = pl.read_csv(tmp_path / looped).with_columns(pl.col("arrival_time") - start)
    frame.write_csv(tmp_path / "own.csv")
    evaluate = ("evaluate", "--data-path", "own.csv", *SURVIVAL, "--json")
    done = cli(*evaluate)
    assert "restart with every session" in done.err
    assert "--clock wall" in done.err
    assert done.json()["settings"]["split"] == "session"
    for said in (("--clock", "wall"), ("--split", "time")):
        forced = cli(*evaluate, *said)
        assert "restart" not in forced.err
        assert forced.json()["settings"]["split"] == "time"
        assert forced.json()["settings"]["clock"] == "wall"


def test_a_split_by_time_needs_one_clock(refused, looped):
    evaluate = ("evaluate", "--data-path", looped, "--split", "time", "--clock", "session")
    assert "--split time needs one clock" in refused(*evaluate)
