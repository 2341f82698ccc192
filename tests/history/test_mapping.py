"""Logs of any form, read by a mapping of history columns to paths."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import refused, write
from polars.testing import assert_frame_equal

from sagellm_lifetime.core.errors import HistoryError, LifetimeError
from sagellm_lifetime.history import History, read_history
from sagellm_lifetime.history.mapping import ABSENT, ColumnMap, reach

EPOCH_MS = 1_767_225_600_123
MAP = {
    "actual_length": "usage.completion_tokens",
    "arrival_time": "at",
    "actual_time": "took",
    "client_id": "user",
    "finish_reason": "choices[0].finish_reason",
}


def record(number: int, **over: Any) -> dict[str, Any]:
    values = {
        "at": EPOCH_MS + 1000 * number,
        "user": f"u{number % 2}",
        "usage": {"completion_tokens": 100 + number, "prompt_tokens": 20},
        "took": 2500 + number,
        "choices": [{"finish_reason": "length" if number % 2 else "stop"}],
        "model": "m",
    }
    return values | over


RECORDS = [record(number) for number in range(4)]


def lines(*records: Any) -> str:
    return "\n".join(json.dumps(each) for each in records) + "\n"


def read(tmp_path: Path, mapping: Any, *records: Any, **options: Any) -> History:
    log = write(tmp_path / "log.jsonl", lines(*(records or RECORDS)))
    return read_history(log, mapping=mapping, **options)


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet", "frame"])
def test_nested_paths_in_every_kind_of_file(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"log.{form}"
    source: Any = path
    if form == "csv":
        cells = [
            {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in r.items()}
            for r in RECORDS
        ]
        pl.DataFrame(cells).write_csv(path)
    elif form == "parquet":
        pl.DataFrame(RECORDS).write_parquet(path)
    elif form == "frame":
        source = pl.DataFrame(RECORDS).lazy()
    else:
        write(path, json.dumps(RECORDS) if form == "json" else lines(*RECORDS))
    history = read_history(source, mapping=MAP)
    rows = history.frame
    assert rows["actual_length"].to_list() == [100, 101, 102, 103]
    assert rows["actual_time"].to_list() == pytest.approx([2.5, 2.501, 2.502, 2.503])
    assert rows["arrival_time"][0] == EPOCH_MS / 1000
    assert rows["client_id"].to_list() == ["u0", "u1", "u0", "u1"]
    assert rows["finish_reason"].to_list() == ["stop", "length"] * 2
    assert rows["model"].to_list() == ["m"] * 4  # a history's own name needs no mapping
    assert history.columns["actual_length"] == "usage.completion_tokens"
    assert history.ignored == ["usage.prompt_tokens"] if form in ("jsonl", "json") else True
    assert "at: read as milliseconds (by its size: since 1970)" in history.notes
    assert "took: read as milliseconds (by its size: 0.0246 s a token)" in history.notes


def test_the_map_is_kept_with_its_units_for_the_next_time(tmp_path: Path) -> None:
    history = read(tmp_path, MAP)
    assert history.mapping is not None
    kept = write(tmp_path / "log.toml", history.mapping.to_toml())
    again = read(tmp_path, str(kept))
    assert_frame_equal(again.frame, history.frame)
    assert str(ColumnMap.load(kept).origins["actual_time"]) == "took@ms"
    assert "took: read as milliseconds (as said)" in again.notes
    odd = ColumnMap.of({"actual_length": 'a"b\\c.\x7f\U0001f600', "model": "x\ty"})
    assert ColumnMap.load(write(kept, odd.to_toml())) == odd


@pytest.mark.parametrize(
    ("value", "unit", "seconds"),
    [
        (2500, "", 2.5),
        (2.5, "", 2.5),
        (2_500_000, "", 2.5),
        (2_500_000_000, "", 2.5),
        (2500, "@s", 2500.0),
        (2500, "@us", 0.0025),
        ("2500", "@ms", 2.5),
        ("350ms", "", 0.35),
        ("2.5 s", "", 2.5),
    ],
)
def test_units_of_durations(tmp_path: Path, value: Any, unit: str, seconds: float) -> None:
    records = [record(number, took=value) for number in range(3)]
    history = read(tmp_path, {**MAP, "actual_time": f"took{unit}"}, *records)
    assert history.frame["actual_time"].to_list() == pytest.approx([seconds] * 3)
    assert sum(note.startswith("took: read as ") for note in history.notes) == 1


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("at", 1_767_225_600, 1_767_225_600.0),
        ("at", 1_767_225_600_123_000, 1_767_225_600.123),
        ("at", "1767225600123", 1_767_225_600.123),
        ("at", "2026-01-01T00:00:00.5Z", 1_767_225_600.5),
        ("at", "2026-01-01T02:00:00+02:00", 1_767_225_600.0),
        ("startTimeUnixNano", "1767225600500000000", 1_767_225_600.5),
        ("start_ms", 1500, 1.5),
    ],
)
def test_units_of_moments(tmp_path: Path, name: str, value: Any, seconds: float) -> None:
    log = record(0, **{name: value})
    history = read(tmp_path, {**MAP, "arrival_time": name}, log)
    assert history.frame["arrival_time"].to_list() == pytest.approx([seconds], abs=1e-6)
    assert any(note.startswith(f"{name}: read as ") for note in history.notes)


def test_stored_dates_and_decimals() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "began": [start, start + timedelta(seconds=2)],
            "ended": [start + timedelta(seconds=3), start + timedelta(seconds=4)],
            "took": [timedelta(seconds=1.5), timedelta(seconds=2)],
            "tokens": [Decimal("40"), Decimal("50")],
        }
    )
    mapping = {"actual_length": "tokens", "arrival_time": "began"}
    history = read_history(frame, mapping={**mapping, "actual_time": "took"})
    assert history.frame["actual_time"].to_list() == [1.5, 2.0]
    assert history.frame["arrival_time"].to_list() == [1_767_225_600.0, 1_767_225_602.0]
    assert "began: read as ISO time (a stored date)" in history.notes
    ends = read_history(frame, mapping={**mapping, "end_time": "ended"})
    assert ends.frame["actual_time"].to_list() == [3.0, 2.0]
    assert ends.columns["actual_time"] == "began to ended"


def test_starts_and_ends_from_no_known_origin(tmp_path: Path) -> None:
    records = [record(n, at=1000 * n, end=1000 * n + 4000) for n in range(5)]
    mapping = {k: v for k, v in MAP.items() if k != "actual_time"} | {"end_time": "end"}
    history = read(tmp_path, mapping, *records)
    assert history.frame["arrival_time"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert history.frame["actual_time"].to_list() == [4.0] * 5
    assert "at: read as milliseconds (by the durations)" in history.notes


def test_a_unit_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    records = [record(n, at=20_000 * n + 0.5) for n in range(5)]
    mapping = {"actual_length": MAP["actual_length"], "arrival_time": "at"}
    log = write(tmp_path / "log.jsonl", lines(*records))
    assert read_history(log, mapping={**mapping, "arrival_time": "at@ms"}).frame[
        "arrival_time"
    ].to_list()[1] == pytest.approx(20.0005)
    fast = [record(n, took=1e-9) for n in range(3)]
    log = write(tmp_path / "log.jsonl", lines(*fast))
    assert "say actual_time=took@s, or @ms" in refused(log, mapping=MAP)


def test_reasoning_tokens_counted_apart_are_added_and_said(tmp_path: Path) -> None:
    apart = [record(0, thought=30), record(1, thought=None), record(2)]
    history = read(tmp_path, {**MAP, "reasoning_tokens": "thought"}, *apart)
    assert history.frame["actual_length"].to_list() == [130, 101, 102]
    assert "thought: counted apart, and was added to the generated tokens" in history.notes


def test_a_mapping_on_top_of_a_known_format(tmp_path: Path) -> None:
    spend = {
        "request_id": "r", "call_type": "acompletion", "spend": 0.1, "model": "qwen",
        "prompt_tokens": 100, "completion_tokens": 10, "user": "u",
        "startTime": "2026-02-03 04:05:00.5", "endTime": "2026-02-03 04:05:02",
        "metadata": {"team": "blue", "tags": ["a"]},
    }  # fmt: skip
    history = read(tmp_path, {"client_id": "metadata.team"}, spend)
    assert history.formats == ["a LiteLLM spend log, with mapped columns"]
    assert history.frame.select("client_id", "actual_length", "actual_time").rows() == [
        ("blue", 10, 1.5)
    ]
    usage = "ts,prompt_tokens,completion_tokens,latency_ms,wait,tenant\n0,9,50,900,1100,acme\n"
    log = write(tmp_path / "usage.csv", usage)
    history = read_history(log, mapping={"client_id": "tenant", "actual_time": "wait@ms"})
    assert history.frame.select("client_id", "actual_time").rows() == [("acme", 1.1)]
    assert history.ignored == ["latency_ms"]
    native = write(tmp_path / "h.csv", "actual_length,tenant\n5,acme\n")
    history = read_history(native, mapping={"client_id": "tenant"})
    assert history.frame["client_id"].to_list() == ["acme"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a path of no row": ({"client_id": "usr"}, "no row has 'usr': did you mean 'user'?"),
    "a nested path of no row": (
        {"actual_length": "usage.completion_tokns"}, "did you mean 'usage.completion_tokens'?"
    ),
    "a path without its place": (
        {"finish_reason": "choices.finish_reason"}, "did you mean 'choices[0].finish_reason'?"
    ),
    "an object": ({"actual_length": "usage"}, "is an object, not a number: name what is in it"),
    "a list": ({"model": "choices"}, "is a list, not text: name a place in it, as [0]"),
    "a text": ({"actual_length": "user"}, "cannot be read from 'user': is not a number"),
    "no list": ({"prefix_hashes": "user"}, "is not a list"),
    "no time": ({"arrival_time": "user"}, "cannot be read from 'user': is no time"),
    "no duration": ({"actual_time": "user"}, "is no duration (map end_time"),
    "an unknown column": ({"actual_lenght": "user"}, "did you mean 'actual_length'?"),
    "a count with a unit": ({"prompt_length": "at@ms"}, "prompt_length is no time"),
    "an unknown unit": ({"actual_time": "took@h"}, "unknown unit of time of actual_time 'h'"),
    "a number as ISO": ({"arrival_time": "at@iso"}, "is a number, no ISO time"),
    "no path": ({"model": ""}, "model needs a path"),
    "another type": ({"model": 5}, "model needs a path, not 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_mapping_cannot_be_is_one_line(tmp_path: Path, case: str) -> None:
    over, told = REFUSED[case]
    log = write(tmp_path / "log.jsonl", lines(*RECORDS))
    with pytest.raises(LifetimeError) as caught:
        read_history(log, mapping={**MAP, **over})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_odd_row_is_a_bad_row(tmp_path: Path) -> None:
    odd = record(9, usage={"completion_tokens": {"a": 1}})
    log = write(tmp_path / "log.jsonl", lines(*RECORDS, odd))
    message = refused(log, mapping=MAP)
    assert "1 bad row (line 5: usage.completion_tokens is an object, not a number" in message
    history = read_history(log, mapping=MAP, on_bad_rows="skip")
    assert (len(history.frame), history.skipped) == (4, 1)


def test_without_generated_tokens_the_log_must_be_known(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", lines(*RECORDS))
    told = "--map actual_length=usage.completion_tokens"
    assert told in refused(log, mapping={"client_id": "user"})
    assert told in refused(log)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column is mapped"),
        ("model", "is no COLUMN=PATH"),
        ("model=", "model needs a path"),
        ("x.toml", "x.toml: No such file"),
        ("bad.toml", "bad.toml: not TOML"),
        ("empty.toml", "no table [map]"),
    ],
)
def test_texts_that_are_no_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.toml", "[map\n")
    write(tmp_path / "empty.toml", "[other]\na = 1\n")
    with pytest.raises(HistoryError) as caught:
        ColumnMap.parse([text])
    assert told in str(caught.value)


def test_reach() -> None:
    record = {"a": {"b.c": [{"d": 1}, {"d": 2}]}, "a.b": 3, "t": '{"x": {"y": 4}}', "n": None}
    assert reach(record, "a.b.c[-1].d") == 2
    assert reach(record, "a.b") == 3
    assert reach(record, "t.x.y") == 4
    assert reach(record, "n") is None
    for path in ("a.b.c[2].d", "a.b.c.d", "n.x", "t.z", "x", "a.b[0]"):
        assert reach(record, path) is ABSENT


def test_a_path_may_stand_in_one_file_of_several(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(RECORDS[0]))
    write(tmp_path / "b.jsonl", lines({k: v for k, v in RECORDS[1].items() if k != "user"}))
    assert read_history(tmp_path, mapping=MAP).frame["client_id"].to_list() == ["u0", None]


@pytest.mark.parametrize(
    "texts",
    [
        ["actual_length=usage.out", "actual_length=took"],
        ["actual_length=usage.out,actual_length=took"],
        ["actual_length=usage.out", "log.toml"],
    ],
)
def test_a_column_is_mapped_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "log.toml", '[map]\nactual_length = "took"\n')
    with pytest.raises(HistoryError, match="actual_length is mapped twice, to 'usage"):
        ColumnMap.parse(texts)
    said = ColumnMap.parse(["log.toml", "log.toml", "actual_length=usage.out"])
    assert str(said.origins["actual_length"]) == "usage.out"


def test_an_end_needs_a_start(tmp_path: Path) -> None:
    records = [record(n, arrival_time=1000 * n, end=1000 * n + 4000) for n in range(5)]
    log = write(tmp_path / "log.jsonl", lines(*records))
    mapping = {"actual_length": MAP["actual_length"], "end_time": "end"}
    rows = read_history(log, mapping=mapping).frame  # its own arrival time, in the same unit
    assert rows["arrival_time"].to_list() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert rows["actual_time"].to_list() == [4.0] * 5
    table = write(tmp_path / "log.csv", "arrival_time,end,tok\n0.5,2.5,9\n1.5,4.5,9\n")
    rows = read_history(table, mapping={"actual_length": "tok", "end_time": "end"}).frame
    assert rows["actual_time"].to_list() == [2.0, 3.0]
    both = {**mapping, "actual_time": "took"}
    assert "end_time and actual_time both say" in refused(log, mapping=both)
    write(log, lines(*[record(n, end=n) for n in range(3)]))
    assert "end_time makes a duration only with arrival_time" in refused(log, mapping=mapping)


def test_negative_reasoning_tokens_are_a_bad_row(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", lines(record(0, thought=3), record(1, thought=-5)))
    mapping = {**MAP, "reasoning_tokens": "thought"}
    assert "1 bad row (line 2: thought is negative)" in refused(log, mapping=mapping)
    history = read_history(log, mapping=mapping, on_bad_rows="skip")
    assert history.frame["actual_length"].to_list() == [103]


def test_a_column_may_be_called_like_a_path_with_a_unit(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "tok,out@ms\n9,2500\n9,1500\n")
    history = read_history(log, mapping={"actual_length": "tok", "actual_time": "out@ms"})
    assert history.frame["actual_time"].to_list() == [2.5, 1.5]
    assert history.columns["actual_time"] == "out@ms"
    assert history.mapping is not None
    again = read_history(log, mapping=history.mapping)
    assert_frame_equal(again.frame, history.frame)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("log.csv", "tok,tok\n5,6\n", "log.csv: the column 'tok' appears twice"),
        ("log.csv", "tok;took\n5;1,5\n", "separated by ';': separate them by commas"),
        ("log.csv", "tok\ttook\n5\t1\n", r"separated by '\t': separate them by commas"),
        ("log.csv", "tok;a,b\n5;1,2\n", "separated by ';'"),
        ("log.jsonl", '[\n{"tok": 5}]\n', "a JSON array, not one object a line: name it log.json"),
    ],
)
def test_another_form_than_the_name_says(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    log = write(tmp_path / name, content)
    assert told in refused(log, mapping={"actual_length": "tok"})
    if name == "log.jsonl":
        assert told in refused(log)


def test_packed_files_are_named_in_advice(tmp_path: Path) -> None:
    assert ".gz, .bz2, .xz or .zst" in refused(write(tmp_path / "log.txt", "x"))
