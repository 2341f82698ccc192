"""Moments in other units and forms, times that are hardly in seconds, words of other servers."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import refused, write

from sagellm_lifetime.core.errors import (
    HistoryError,
    HistoryHeaderError,
    HistoryRowError,
)
from sagellm_lifetime.history import jsonl, read_history, scan_history
from sagellm_lifetime.history.parquet import counts_agree, no_panic_reports
from sagellm_lifetime.history.reasons import KNOWN
from sagellm_lifetime.history.times import iso_seconds, moment, plausible_unit
from sagellm_lifetime.predictor.registry import create_predictor

ISO = {
    "2026-03-01T10:00:00Z": 0.0,
    "2026-03-01 10:00:00": 0.0,
    "2026-03-01T10:00": 0.0,
    "2026-03-01T15:30:00+05:30": 0.0,
    "2026-03-01T06:30:00-0330": 0.0,
    "2026-03-01 11:00:00+01": 0.0,
    "2026-03-01 10:00:00 UTC": 0.0,
    "2026-03-01T10:00:00.25+00:00": 0.25,
    "2026-03-01T10:00:00,25Z": 0.25,
    "2026-03-01 10:00:01.1234567": 1.123457,
    "2026-03-01": -36000.0,
}
ORIGIN = 1_772_359_200.0  # 2026-03-01 10:00 UTC


def test_iso_times_in_every_form_are_seconds() -> None:
    found = pl.DataFrame({"t": list(ISO)}).select(iso_seconds(pl.col("t"))).to_series()
    assert (found - ORIGIN).to_list() == pytest.approx(list(ISO.values()), abs=1e-6)
    for text, seconds in ISO.items():
        assert moment(text, "t") == pytest.approx(ORIGIN + seconds, abs=1e-6)
    wrong = ["12.5", "noon", "2026-13-01", "2026-03-01T25:00", "", "2026-03-01T10:00:00+5:30"]
    assert pl.DataFrame({"t": wrong}).select(iso_seconds(pl.col("t"))).to_series().null_count() == 6


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_a_history_with_iso_times(tmp_path: Path, suffix: str) -> None:
    times = ["2026-03-01T15:30:00+05:30", "2026-03-01T10:00:01Z", None, "7.5"]
    frame = pl.DataFrame({"arrival_time": times, "actual_length": [1, 2, 3, 4]})
    path = tmp_path / f"h.{suffix}"
    if suffix == "json":
        write(path, json.dumps(frame.to_dicts()))
    else:
        writers = {"csv": frame.write_csv, "jsonl": frame.write_ndjson}
        writers.get(suffix, frame.write_parquet)(path)
    found = read_history(path)
    assert found.frame["arrival_time"].to_list() == [ORIGIN, ORIGIN + 1, None, 7.5]
    assert any("ISO times read as seconds since 1970" in note for note in found.notes)
    if suffix != "json":
        assert scan_history(path).collect()["arrival_time"].to_list()[:2] == [ORIGIN, ORIGIN + 1]


def test_a_time_that_is_none_is_a_bad_row_beside_those_that_are(tmp_path: Path) -> None:
    text = "arrival_time,actual_length\n2026-03-01T10:00:00Z,1\nnoon,2\n"
    expected = "line 3: arrival_time is not a number of seconds or an ISO time"
    assert expected in refused(write(tmp_path / "h.csv", text), HistoryRowError)


def test_stored_times_are_seconds(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "arrival_time": pl.Series(["2026-03-01 15:30:00"])
            .str.to_datetime(time_unit="ms")
            .dt.replace_time_zone("Asia/Kolkata"),
            "actual_time": pl.Series([1500]).cast(pl.Duration("ms")),
            "actual_length": [20],
        }
    )
    frame.write_parquet(tmp_path / "h.parquet")
    for source in (tmp_path / "h.parquet", frame):
        found = read_history(source).frame
        assert found.select("arrival_time", "actual_time").row(0) == (ORIGIN, 1.5)
    days = frame.with_columns(pl.col("arrival_time").dt.date())
    assert read_history(days).frame["arrival_time"].to_list() == [ORIGIN - 36000]
    wrong = frame.with_columns(actual_time=pl.col("arrival_time"))
    assert "'actual_time' is Datetime" in refused(wrong, HistoryHeaderError)


@pytest.mark.parametrize(("unit", "scale"), [("milli", 10**3), ("micro", 10**6), ("nano", 10**9)])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_epochs_in_other_units_are_found_and_said(
    tmp_path: Path, unit: str, scale: int, suffix: str
) -> None:
    times = [int(ORIGIN) * scale, int(ORIGIN + 3) * scale]
    frame = pl.DataFrame({"arrival_time": times, "actual_length": [1, 2]})
    write_it: Callable[[Path], Any] = frame.write_csv if suffix == "csv" else frame.write_ndjson
    write_it(tmp_path / f"h.{suffix}")
    found = read_history(tmp_path / f"h.{suffix}")
    assert found.frame["arrival_time"].to_list() == [ORIGIN, ORIGIN + 3]
    assert found.notes == [f"arrival_time: read as {unit}seconds since 1970"]


def test_one_unit_for_all_rows(tmp_path: Path) -> None:
    times = [f"{ORIGIN * 1000:.0f}"] * 3
    path = write(
        tmp_path / "h.csv", "arrival_time,actual_length\n" + ",5\n".join([*times, "17"]) + ",5\n"
    )
    assert "line 5: arrival_time is not in milliseconds like most" in refused(path, HistoryRowError)
    one = "arrival_time,actual_length\n1,5\n2,5\n" + f"{times[0]},5\n"
    assert "line 4: arrival_time 1772359200000 is over" in refused(
        write(path, one), HistoryRowError
    )
    huge = "arrival_time,actual_length\n1e25,5\n1e26,5\n"
    assert "2 bad rows" in refused(write(path, huge), HistoryRowError)


@pytest.mark.parametrize(
    ("times", "documented", "unit"),
    [
        ([0, 10535, 27482], "ms", "ms"),  # as seconds, three hours apart
        ([0.0, 1.25, 3.5, 4.0], "ms", "s"),  # as milliseconds, 1,000 a second
        (list(range(3600)), "ms", "s"),
        ([0, 27, 61, 90], "ms", None),  # 33 a second or one in half a minute
        ([0.0, 200.5, 480.25], "ms", None),  # a format of whole milliseconds has fractions
        ([0, 27, 61, 90], None, "s"),
        ([0, 3052, 7000], None, None),
        ([ORIGIN, ORIGIN + 90], "ms", "s"),
        ([ORIGIN * 1000, ORIGIN * 1000 + 90], "s", "ms"),
        ([5.0], "ms", "ms"),
        ([5.0, 5.0], None, "s"),
        ([], "ms", "ms"),
    ],
)
def test_the_unit_is_decided_by_the_rate(
    times: list[float], documented: str | None, unit: str | None
) -> None:
    assert plausible_unit(pl.Series(times, dtype=pl.Float64), documented) == unit


SLOW = "actual_length,actual_time\n" + "500,9000\n" * 5 + "2,7.5\n" * 9


def test_times_that_are_plainly_milliseconds_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warning = "actual_time: 18 s a token at the median: is it in milliseconds? it should be seconds"
    assert read_history(write(tmp_path / "h.csv", SLOW)).notes == [warning]
    # Many short answers that have waited long are none.
    waited = "actual_length,actual_time\n" + "500,9\n" * 5 + "2,60\n" * 9
    assert read_history(write(tmp_path / "h.csv", waited)).notes == []
    hours = "actual_length,actual_time\n" + "500,0.003\n"
    assert "minutes or hours" in read_history(write(tmp_path / "h.csv", hours)).notes[0]
    predictor = create_predictor("baseline")
    predictor.fit(write(tmp_path / "h.csv", SLOW))
    assert warning in caplog.text


STOPS = {
    "stop": ["stop", "eos", "EOS_TOKEN", "tool_calls", "tool_use", "end_turn", "STOP", "COMPLETE"],
    "length": ["length", "max_tokens", "MAX_TOKENS", "model_context_window_exceeded"],
    "abort": ["abort", "cancelled", "content_filter", "SAFETY", "refusal", "repetition"],
    "error": ["error", "MALFORMED_FUNCTION_CALL"],
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_finish_reasons_of_other_servers(tmp_path: Path, suffix: str) -> None:
    unsaid = ["", "null", "None", "NaN", "FINISH_REASON_UNSPECIFIED", None]
    said = [word for words in STOPS.values() for word in words] + unsaid
    frame = pl.DataFrame({"actual_length": range(1, len(said) + 1), "finish_reason": said})
    path = tmp_path / f"h.{suffix}"
    writers = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}
    writers[suffix](path)
    expected = [reason for reason, words in STOPS.items() for _ in words] + ["stop"] * len(unsaid)
    found = read_history(path)
    assert found.frame["finish_reason"].to_list() == expected
    assert found.notes[0].startswith("finish reasons: ")
    assert "content_filter → abort (1)" in found.notes[0] or "and " in found.notes[0]
    assert scan_history(path).collect()["finish_reason"].to_list() == expected


def test_words_known_are_in_lower_case_and_mean_one_of_four() -> None:
    assert all(word == word.lower().strip() for word in KNOWN)
    assert set(KNOWN.values()) == {"stop", "length", "abort", "error"}


def test_unknown_finish_reasons_are_listed_with_the_four(tmp_path: Path) -> None:
    text = "actual_length,finish_reason\n1,gaveup\n2,eos\n3,gaveup\n4,odd\n5,a prompt gone astray\n"
    message = refused(write(tmp_path / "h.csv", text), HistoryRowError)
    assert "3 bad rows" not in message
    assert "a finish reason is stop, length, abort or error" in message
    assert "write one of them for 'gaveup', 'odd'" in message
    assert "astray" not in message


def zstd(data: bytes, tmp_path: Path) -> bytes:
    """Return data packed by polars, which is always installed."""
    frame = pl.DataFrame({"line": data.decode().splitlines()})
    sink = tmp_path / "packing"
    frame.lazy().sink_csv(
        sink, include_header=False, quote_style="never", separator="\x1f", compression="zstd"
    )
    return sink.read_bytes()


PACKERS: dict[str, Callable[[bytes, Path], bytes]] = {
    "gz": lambda data, _: gzip.compress(data),
    "bz2": lambda data, _: bz2.compress(data),
    "xz": lambda data, _: lzma.compress(data),
    "zst": zstd,
}
TEXTS = {
    "csv": 'actual_length,model\n5,"a, b"\n\n-6,b\n7,c\n',
    "jsonl": '{"actual_length": 5, "model": "é"}\n\n{"actual_length": -6}\n{"actual_length": 7}\n',
    "json": '[{"actual_length": 5, "model": "a"}, 0, {"actual_length": -6}, {"actual_length": 7}]',
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("suffix", TEXTS)
def test_compressed_files_are_read_and_know_their_lines(
    tmp_path: Path, suffix: str, packed: str
) -> None:
    plain = write(tmp_path / f"h.{suffix}", TEXTS[suffix])
    path = write(tmp_path / f"p.{suffix}.{packed}", PACKERS[packed](plain.read_bytes(), tmp_path))
    expected = read_history(plain, on_bad_rows="skip")
    found = read_history(path, on_bad_rows="skip")
    assert found.frame["actual_length"].to_list() == [5, 7]
    assert found.frame.equals(expected.frame)
    places = [problem.split(" ", 1)[1] for problem in expected.problems]
    assert [problem.split(" ", 1)[1] for problem in found.problems] == places
    named = path.rename(tmp_path / f"named-plainly.{suffix}")  # by content, whatever the name says
    assert read_history(named, on_bad_rows="skip").frame.equals(expected.frame)


@pytest.mark.parametrize("packed", PACKERS)
def test_damaged_compressed_files_get_one_line(tmp_path: Path, packed: str) -> None:
    data = PACKERS[packed]((TEXTS["jsonl"] * 500).encode(), tmp_path)
    for name in ("h.jsonl", "h.csv", "h.json"):
        for damaged in (data[:-20], data[:30] + b"\xab" * 40 + data[70:]):
            refused(write(tmp_path / f"{name}.{packed}", damaged))


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE", 1 << 16)
    monkeypatch.setattr(jsonl, "CHUNK", 1 << 12)
    endless = gzip.compress(b'{"actual_length": 5}\n{"model": "' + b"x" * (1 << 20))
    message = refused(write(tmp_path / "h.jsonl.gz", endless))
    assert "line 2 is longer than" in message


def test_zstd_of_several_frames_and_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    monkeypatch.setattr(pl, "read_csv", None)  # the package reads in pieces, polars whole
    data = b"actual_length\n" + b"5\n7\n" * 50_000
    packed = zstandard.compress(data[:99_999]) + zstandard.compress(data[99_999:])
    path = write(tmp_path / "h.csv.zst", packed)
    assert read_history(path).frame["actual_length"].sum() == 600_000
    for damaged in (packed[:-5], packed + b"rest", packed[:-20] + b"x" * 20):
        assert "damaged or truncated (zstd)" in refused(write(path, damaged))


def test_unread_columns_are_told_with_what_they_may_be_a_slip_of(tmp_path: Path) -> None:
    text = "actual_length,finish_reson,region,\n5,stop,eu,\n"
    found = read_history(write(tmp_path / "h.csv", text))
    assert found.notes == ["columns not read: finish_reson (did you mean finish_reason?), region"]
    frame = pl.DataFrame({"actual_length": [5], "promt_length": [6]})
    frame.write_parquet(tmp_path / "h.parquet")
    assert read_history(tmp_path / "h.parquet").ignored == ["promt_length"]
    frame.write_ndjson(tmp_path / "h.jsonl")
    assert read_history(tmp_path / "h.jsonl").ignored == ["promt_length"]


REPORT = (
    "\nthread 'worker-3' (77) panicked at crates/polars/src/x.rs:418:9:\n"
    "assertion `left == right` failed\n  left: 298\n right: 300\nstack backtrace:\n"
    "   0: __rustc::rust_begin_unwind\n   1: core::panicking::panic_fmt\nnote: more\n"
)


def test_panic_reports_do_not_reach_stderr_and_other_lines_do(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with no_panic_reports():
        os.write(2, b"a line of another thread\n")
        with no_panic_reports():
            os.write(2, REPORT.encode() * 2)
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "a line of another thread\nafterwards\n"


def damaged_parquet(tmp_path: Path) -> list[bytes]:
    """Return files with one changed byte: polars 2.1 panics (22) or wants endless memory (2)."""
    values = range(300)
    frame = pl.DataFrame({"actual_length": values, "model": [f"m{i % 7}" for i in values]})
    frame.write_parquet(tmp_path / "whole.parquet", compression="uncompressed")
    whole = (tmp_path / "whole.parquet").read_bytes()
    return [
        whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
        for at in range(len(whole) - 900, len(whole) - 8)
        for flip in (1, 0x80)
    ]


def test_damaged_parquet_is_one_line_without_a_rust_backtrace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, refused_ones = tmp_path / "h.parquet", 0
    for content in damaged_parquet(tmp_path):
        path.write_bytes(content)
        try:
            read_history(path)
        except HistoryError as error:
            refused_ones += 1
            text = str(error)
            assert text.startswith(f"{path}: ")
            assert "\n" not in text
    assert refused_ones > 100
    err = capfd.readouterr().err
    assert "panicked" not in err
    assert "backtrace" not in err


def zigzag(number: int) -> bytes:
    """Return a number from 64 to 8191 as the compact protocol writes it, in two bytes."""
    return bytes([(2 * number & 127) | 128, 2 * number >> 7])


def test_counts_that_contradict_each_other_are_found_before_polars_allocates(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.parquet"
    nested = {"actual_length": [1, 2] * 500, "prefix_hashes": [[1, 2, 3], []] * 500}
    frames = [pl.DataFrame(nested), pl.DataFrame(nested).clear(), pl.DataFrame({"x": [None, 1]})]
    for frame in frames:
        for options in (
            {},
            {"row_group_size": 64},
            {"data_page_size": 500},
            {"statistics": "full"},
        ):
            frame.write_parquet(path, **options)
            assert counts_agree(path)
    whole = path.read_bytes()
    assert counts_agree(write(path, whole[:40]))  # not understood: polars says what is wrong
    assert counts_agree(write(path, b"PAR1"))
    frames[0].write_parquet(path, compression="uncompressed")
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    at = data.index(zigzag(1000), len(data) - 8 - length)
    data[at : at + 2] = zigzag(1001)
    assert not counts_agree(write(path, bytes(data)))
    assert "truncated or damaged" in refused(path)
