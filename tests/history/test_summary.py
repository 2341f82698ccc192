"""What is said of a log: format, rows, columns, rate, units, and what looks wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from history_help import write

from sagellm_lifetime.history import HistorySummary, read_history

USAGE = (
    "timestamp,user,conversation_id,prompt_tokens,completion_tokens,finish_reason,latency_ms,"
    "prompt_lenght\n"
    "2026-05-04T10:00:00Z,acme,a,900,100,stop,3000,1\n"
    "2026-05-04T10:00:10Z,acme,a,40,512,max_tokens,9000,2\n"
    "2026-05-04T10:00:30Z,blue,b,310,,stop,2000,3\n"
    "2026-05-04T10:00:40Z,blue,b,310,88,stop,2000,3\n"
)


@pytest.fixture
def summary(tmp_path: Path) -> HistorySummary:
    history = read_history(write(tmp_path / "usage.csv", USAGE), on_bad_rows="skip")
    return HistorySummary.of(history, source="usage.csv")


def test_the_numbers_of_a_log(summary: HistorySummary) -> None:
    assert (summary.format, summary.rows, summary.skipped) == ("a log of requests", 3, 1)
    assert summary.kinds == {"missing": 1}
    assert summary.problems[0].endswith("line 4: actual_length is missing")
    assert summary.columns["actual_time"] == "latency_ms (milliseconds)"
    assert summary.columns["finish_reason"] == "finish_reason"
    assert summary.ignored == {"prompt_lenght": "prompt_length"}
    assert (summary.span_s, summary.rate_per_s) == (40.0, 2 / 40)
    assert (summary.tokens_in, summary.tokens_out) == (1250, 700)
    assert (summary.tokens_in_per_s, summary.tokens_out_per_s) == (1250 / 40, 700 / 40)
    assert summary.seconds_per_token == pytest.approx(2 / 88)
    assert summary.reasons == {"stop": 2 / 3, "length": 1 / 3}
    assert summary.share_cut == summary.share_at_one_value == 1 / 3
    assert (summary.clients, summary.sessions, summary.models) == (2, 2, None)
    assert summary.notes == ["finish reasons: max_tokens → length (1)"]
    assert summary.warnings == []
    numbers = summary.as_dict()
    assert HistorySummary(**numbers) == summary


def test_the_lines_fit_a_terminal(summary: HistorySummary) -> None:
    shown = replace(summary, problems=["usage.csv line 4: actual_length is missing"]).render()
    assert max(map(len, shown.splitlines())) <= 80
    assert "1 missing; the first: line 4: actual_length is missing" in shown
    said = " ".join(summary.render().split())
    for part in (
        "log usage.csv: a log of requests: 3 rows good, 1 bad skipped",
        "skipped 1 missing; the first: ",
        "actual_length ← completion_tokens",
        "not read prompt_lenght (did you mean prompt_length?)",
        "span 40 s: 0.05 requests/s, 31.2 tokens/s in, 17.5 tokens/s out",
        "pace 0.0227 s a generated token at the median",
        "lengths median 100 tokens, 33 % cut (length 33 %), 33 % at one value",
        "who 2 clients, 2 sessions",
    ):
        assert part in said


def test_what_looks_wrong_is_a_warning() -> None:
    rows = pl.DataFrame(
        {
            "arrival_time": [i / 1e5 for i in range(40)],
            "actual_length": [128] * 39 + [12],
            "actual_time": [2000.0] * 40,
            "finish_reason": ["length"] * 39 + ["stop"],
        }
    )
    warnings = HistorySummary.of(rows).warnings
    assert [text.split(":")[0] for text in warnings] == [
        "actual_time",
        "98 % of the answers have exactly 128 tokens",
        "98 % of the answers were cut",
        "arrival_time",
    ]
    assert "is it in milliseconds?" in warnings[0]
    shown = HistorySummary.of(rows).render()
    assert shown.count("is it in milliseconds?") == 1
    assert shown.count("warning ") == 4


def test_times_that_restart_with_each_session_have_no_rate() -> None:
    rows = pl.DataFrame(
        {
            "session_id": ["a"] * 3 + ["b"] * 3,
            "arrival_time": [0.0, 5.0, 9.0] * 2,
            "actual_length": [5, 6, 7] * 2,
        }
    )
    summary = HistorySummary.of(rows)
    assert summary.span_s is summary.rate_per_s is summary.tokens_out_per_s is None
    assert "restart with every session" in summary.render()
    assert HistorySummary.of(rows, clock="wall").span_s == 9.0
    assert "no arrival times" in HistorySummary.of(rows.drop("arrival_time")).render()


def test_requests_that_all_come_at_once_have_no_rate() -> None:
    rows = pl.DataFrame({"arrival_time": [3.0, 3.0], "actual_length": [5, 6]})
    summary = HistorySummary.of(rows)
    assert (summary.span_s, summary.rate_per_s) == (0.0, None)
    assert "span      0 s\n" in summary.render()
