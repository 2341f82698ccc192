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
    assert done.told.count("\n") == 1
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
    assert "the sessions are taken one by one" in forced.err
    assert forced.json()["settings"]["split"] == "session"
    assert forced.json()["settings"]["clock"] == "session"
    trained = cli("train", "--data-path", looped, *SURVIVAL, "--json")
    assert "arrival times are on one clock" in trained.err
    assert trained.json()["read"][looped]["clock"] == "wall"


def test_times_that_restart_are_told(cli, looped, tmp_path):
    start = pl.col("arrival_time").min().over("session_id")
    frame = pl.read_csv(tmp_path / looped).with_columns(pl.col("arrival_time") - start)
    frame.sort("session_id", "arrival_time").write_csv(tmp_path / "own.csv")
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


def test_users_who_start_at_the_same_instant_are_on_one_clock_in_doubt(cli, looped, tmp_path):
    start = pl.col("arrival_time").min().over("session_id")
    frame = pl.read_csv(tmp_path / looped).with_columns(pl.col("arrival_time") - start)
    frame.sort("arrival_time").write_csv(tmp_path / "at_once.csv")
    done = cli("evaluate", "--data-path", "at_once.csv", *SURVIVAL, "--json")
    assert done.err.count("--clock session") == 1
    assert done.json()["settings"]["split"] == "time"
    assert done.json()["settings"]["clock"] == "wall"


def test_a_split_by_time_needs_one_clock(refused, looped):
    evaluate = ("evaluate", "--data-path", looped, "--split", "time", "--clock", "session")
    assert "--split time needs one clock" in refused(*evaluate)


@pytest.mark.parametrize("rows", [2, 3, 19])
@pytest.mark.parametrize("form", ["time", "order"])
def test_evaluate_from_two_rows_on(cli, tmp_path, rows, form):
    frame = pl.DataFrame({"actual_length": [30 + 7 * i for i in range(rows)]})
    if form == "time":
        frame = frame.with_columns(arrival_time=pl.int_range(rows).cast(pl.Float64))
    frame.write_csv(tmp_path / "few.csv")
    names = ("--predictor-type", "survival,baseline,orca,linear")
    done = cli("evaluate", "--data-path", "few.csv", *names, "--report", "r", "--json")
    assert done.code == 0, done.err
    assert "left out beside: lightgbm (" in done.err
    assert "needs 20 finished sequences" in done.err
    found = done.json()
    assert found["rows"] == rows - round(0.7 * rows)
    assert list(found["settings"]["left_out"]) == ["lightgbm"]
    assert set(found["baselines"]) == {"constant_median", "residual_life"}
    assert found["admission"]["mae"] is not None
    cli("train", "--data-path", "few.csv", *SURVIVAL, "--output-path", "c")
    one = frame.head(1)
    one.write_csv(tmp_path / "one.csv")
    alone = cli("evaluate", "--data-path", "one.csv", "--checkpoint", "c", "--json")
    assert alone.code == 0
    assert alone.err.count("left out beside: ") == 3
    assert alone.json()["baselines"] == {}
    both = cli("evaluate", "--data-path", "few.csv", "--checkpoint", "c", "--json")
    assert list(both.json()["settings"]["left_out"]) == ["lightgbm"]


def test_evaluate_says_what_was_cut(cli, tmp_path):
    """Answers that a gateway cut at 128 tokens, without saying that this is their cap."""
    lengths = np.random.default_rng(3).geometric(1 / 90, 300)
    rows = pl.DataFrame(
        {
            "arrival_time": np.arange(300) * 1.0,
            "actual_length": np.minimum(lengths, 128),
            "finish_reason": np.where(lengths > 128, "length", "stop"),
        }
    )
    rows.write_csv(tmp_path / "cut.csv")
    evaluate = ("evaluate", "--data-path", "cut.csv", *SURVIVAL)
    done = cli(*evaluate, "--report", "r")
    cut = int((lengths[210:] > 128).sum())
    assert f"{90 - cut} of 90 ended by themselves" in done.out
    assert "Lengths and predictions count up to 128 tokens" in done.out
    assert "count up to 128 tokens" in (tmp_path / "r/report.md").read_text()
    found = cli(*evaluate, "--json").json()
    assert found["cut"]["rows"] == cut
    assert found["cut"]["horizon"] == 128
    assert found["admission"]["n_cut"] == cut
    for scores in (found, found["baselines"]["constant_median"]):
        assert scores["admission"]["mae"] > scores["admission"]["mae_ended"]
