"""Rows that give no finish reason and end exactly at the cap that they name."""

import logging

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.evaluation.points import known_lengths
from sagellm_lifetime.evaluation.rivals.kaplan_meier import observed
from sagellm_lifetime.history import read_history, scan_history
from sagellm_lifetime.history.prequential import censored, finish_reasons

ROWS = {
    "actual_length": [30, 64, 64, 64, 0, 64, 9],
    "max_length": [64, 64, 64, 64, 0, None, 9],
    "finish_reason": [None, None, "stop", "abort", None, None, " "],
}
REASONS = ["stop", "length", "stop", "abort", "stop", "stop", "length"]


@pytest.mark.parametrize("name", ["h.csv", "h.jsonl", "h.parquet"])
def test_a_cap_reached_without_a_reason_is_a_cut(tmp_path, name):
    path = tmp_path / name
    frame = pl.DataFrame(ROWS)
    write = {"h.csv": frame.write_csv, "h.jsonl": frame.write_ndjson}
    write.get(name, frame.write_parquet)(path)
    history = read_history(path)
    assert history.frame["finish_reason"].to_list() == REASONS
    assert history.cap_reached == 2
    assert scan_history(path).collect()["finish_reason"].to_list() == REASONS
    few = read_history(path, columns=["finish_reason"])
    assert few.frame["finish_reason"].to_list() == REASONS
    switched = read_history(path, cap_reached="stop")
    assert switched.frame["finish_reason"].to_list() == [
        "stop" if reason == "length" else reason for reason in REASONS
    ]
    assert switched.cap_reached == 2
    lazily = scan_history(path, cap_reached="stop").collect()
    assert lazily["finish_reason"].to_list() == switched.frame["finish_reason"].to_list()


def test_a_log_without_the_column_and_a_frame():
    frame = pl.DataFrame(ROWS).drop("finish_reason")
    wanted = ["stop", "length", "length", "length", "stop", "stop", "length"]
    history = read_history(frame)
    assert history.frame["finish_reason"].to_list() == wanted
    assert history.cap_reached == 4
    assert finish_reasons(frame) == wanted
    uncapped = read_history(frame.drop("max_length"))
    assert uncapped.cap_reached == 0
    assert set(uncapped.frame["finish_reason"]) == {"stop"}
    for read in (read_history, scan_history):
        with pytest.raises(UnknownNameError, match="choose one of length, stop"):
            read(frame, cap_reached="abort")


def test_everybody_who_reads_a_raw_frame_says_the_same():
    frame = pl.DataFrame(ROWS).with_columns(pl.col("finish_reason").replace(" ", None))
    assert finish_reasons(frame) == REASONS
    cut = [reason != "stop" for reason in REASONS]
    assert censored(frame).tolist() == cut
    assert observed(frame).tolist() == [not each for each in cut]
    # Under its own cap the total of a cut row is known: the cap.
    assert known_lengths(frame).tolist() == [True, True, True, False, True, True, True]


@pytest.mark.parametrize("name", ["survival", "baseline"])
def test_a_fit_knows_how_many_go_on_beyond_the_cap(name, caplog):
    rng = np.random.default_rng(7)
    lengths = np.maximum(1, rng.lognormal(5.0, 0.8, 3000).astype(int))
    cap = 300
    share = float((lengths >= cap).mean())
    frame = pl.DataFrame(
        {
            "arrival_time": np.arange(3000) * 0.5,
            "actual_length": np.minimum(lengths, cap),
            "max_length": [cap] * 3000,
        }
    )
    with caplog.at_level(logging.WARNING):
        predictor = create_predictor(name, seed=0).fit(frame)
    count = int((lengths >= cap).sum())
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith(f"{count} of 3,000 rows give no finish reason")
    assert "--cap-reached stop" in line
    assert "\n" not in line
    assert predictor.summary["cap_reached"] == {"rows": count, "as": "length"}
    assert predictor.summary["censored"] == count
    if name != "survival":
        return
    capped = predictor.predict(PredictionRequest("a", [], 0, cap)).distribution
    assert capped.survival(cap - 1) == pytest.approx(share, abs=0.02)
    assert capped.quantile(0.95) == cap
    free = predictor.predict(PredictionRequest("b", [], 0, 8 * cap)).distribution
    assert free.survival(cap) == pytest.approx(share, abs=0.02)
    switched = create_predictor(name, seed=0).fit(frame, cap_reached="stop")
    ended = switched.predict(PredictionRequest("c", [], 0, 8 * cap)).distribution
    assert ended.survival(cap) < share / 2


def test_what_is_stated_is_believed_and_nothing_is_said(caplog):
    frame = pl.DataFrame({"actual_length": [8, 16] * 30, "max_length": [16] * 60})
    stated = frame.with_columns(finish_reason=pl.lit("stop"))
    with caplog.at_level(logging.WARNING):
        predictor = create_predictor("survival").fit(stated)
    assert not caplog.records
    assert predictor.summary["censored"] == 0
    assert "cap_reached" not in predictor.summary
