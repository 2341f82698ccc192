"""History files: what is read, and what is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import TEXT, refused, write
from polars.testing import assert_frame_equal

from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.errors import (
    HistoryError,
    HistoryRowError,
    UnknownNameError,
)
from sagellm_lifetime.history import (
    HISTORY_SCHEMA,
    History,
    files,
    read_history,
    records,
    scan_history,
    write_history,
)
from sagellm_lifetime.history.write import check_target

DATA = Path(__file__).parents[3] / "shared" / "data"


def test_full_schema_reads_back_the_same_from_parquet_and_jsonl(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "request_id": ["r1", "r2"],
            "model": ["m", None],
            "client_id": ["c", "é中"],
            "session_id": [None, "s"],
            "prompt_id": ["p", "p"],
            "arrival_time": [-1.5, 2.25],
            "turn": [0, None],
            "sample": [1, 2],
            "prompt_length": [10, 20],
            "max_length": [None, 64],
            "actual_length": [0, 64],
            "actual_time": [0.1, None],
            "finish_reason": ["stop", "length"],
            "prompt_text": [TEXT, ""],
            "output_text": ["x", None],
            "prompt_token_ids": [[1, 2], []],
            "output_token_ids": [[3], None],
            "prefix_hashes": [[-(2**62), 2**62], None],
            "temperature": [0.7, None],
            "eos_logprob": [[-12.5, -3.0], None],
            "entropy": [[], [1.0]],
            "hidden_state": [[0.5, -2.0], None],
            "hidden_state_32": [[1.0, 2.0], []],
            "hidden_state_64": [None, None],
            "hidden_source": ["m layer 20", None],
        },
        schema=HISTORY_SCHEMA,
    )
    for name in ("h.parquet", "h.jsonl", "h.NDJSON"):
        write_history(frame, tmp_path / name)
        history = read_history(tmp_path / name)
        assert_frame_equal(history.frame, frame)
        assert (history.skipped, history.problems, history.kinds) == (0, [], {})
        assert_frame_equal(scan_history(tmp_path / name).collect(), frame)


def test_csv_roundtrip_keeps_nulls_apart_from_empty_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"model": ["", None, 'q"u,'], "actual_length": [1, 2, 3], "finish_reason": ["stop"] * 3}
    )
    write_history(frame, tmp_path / "h.csv")
    assert_frame_equal(read_history(tmp_path / "h.csv").frame, frame)


def test_only_actual_length_is_needed_and_finish_reason_is_filled(tmp_path: Path) -> None:
    frame = read_history(write(tmp_path / "h.csv", "actual_length\n5\n\n7\n\n")).frame
    assert frame.to_dict(as_series=False) == {
        "actual_length": [5, 7],
        "finish_reason": ["stop", "stop"],
    }
    path = write(tmp_path / "g.jsonl", '{"actual_length": 1, "finish_reason": null}\n')
    assert read_history(path).frame["finish_reason"].to_list() == ["stop"]


def test_numbers_in_disguise_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", '\ufeff actual_length ,turn\r\n" 12 ",\r\n12.0,1\r\n1e3,2\r\n')
    assert read_history(path).frame["actual_length"].to_list() == [12, 12, 1000]
    path = write(tmp_path / "h.jsonl", '\ufeff{"actual_length": "12", "request_id": 7}\n')
    assert read_history(path).frame.row(0) == ("7", 12, "stop")
    frame = pl.DataFrame({"actual_length": ["5"], "client_id": [17]})
    assert read_history(frame).frame.row(0) == ("17", 5, "stop")


def test_unsigned_hashes_lose_their_top_bit_as_in_a_request(tmp_path: Path) -> None:
    hashes = [[2**64 - 1, 5], None, [2**63]]
    frame = pl.DataFrame(
        {"actual_length": [1, 2, 3], "prefix_hashes": hashes},
        schema_overrides={"prefix_hashes": pl.List(pl.UInt64)},
    )
    kept = [[2**63 - 1, 5], None, [0]]
    frame.write_parquet(tmp_path / "h.parquet")
    frame.write_ndjson(tmp_path / "h.jsonl")
    for name in ("h.parquet", "h.jsonl"):
        assert read_history(tmp_path / name).frame["prefix_hashes"].to_list() == kept
    assert read_history(frame).frame["prefix_hashes"].to_list() == kept


def test_unknown_columns_are_dropped_and_columns_asked_for_are_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", "x,actual_length,turn\n1,2,3\n")
    assert read_history(path).frame.columns == ["turn", "actual_length", "finish_reason"]
    frame = read_history(path, columns=["model", "actual_length"]).frame
    assert frame.schema == {"model": pl.String(), "actual_length": pl.Int64()}
    assert frame.rows() == [(None, 2)]
    with pytest.raises(UnknownNameError, match="actual_len"):
        read_history(path, columns=["actual_len"])
    unknown: Any = "ignore"
    with pytest.raises(UnknownNameError, match="skip"):
        read_history(path, on_bad_rows=unknown)


def test_a_column_not_asked_for_is_not_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", "actual_length,turn\n2,oops\n")
    assert read_history(path, columns=["actual_length"]).frame.height == 1
    assert "line 2: turn is not a number" in refused(path, HistoryRowError)


@pytest.mark.parametrize("search", [1 << 22, 7, 20, 33])
def test_key_that_first_comes_late_in_a_jsonl_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: int
) -> None:
    monkeypatch.setattr(files, "SEARCH", search)
    lines = ['{"actual_length": 3}'] * 3000 + ['{"actual_length": 9, "finish_reason": "abort"}']
    history = read_history(write(tmp_path / "h.jsonl", "\n".join(lines)))
    assert history.frame["finish_reason"].value_counts().sort("count").rows() == [
        ("abort", 1),
        ("stop", 3000),
    ]


def test_folder_and_glob_mix_formats_and_pass_over_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "a.CSV", "actual_length,turn\n1,0\n")
    write(tmp_path / "deep" / "b[1].jsonl", '{"actual_length": 2, "model": "m"}\n')
    pl.DataFrame({"actual_length": [3]}).write_parquet(tmp_path / "deep" / "c.parquet")
    write(tmp_path / "readme.md", "no history")
    write(tmp_path / "opened.jsonl", "")
    write(tmp_path / ".hidden" / "d.csv", "actual_length\n99\n")
    for source in (tmp_path, f"{tmp_path}/**"):
        frame = read_history(source).frame
        assert frame["actual_length"].to_list() == [1, 2, 3]
        assert frame["model"].to_list() == [None, "m", None]
    assert read_history(f"{tmp_path}/deep/*").frame["actual_length"].to_list() == [2, 3]
    assert scan_history(tmp_path).collect()["actual_length"].to_list() == [1, 2, 3]
    assert scan_history(tmp_path / "deep" / "b[1].jsonl").collect().height == 1


def test_frames_and_lazy_frames_are_sources() -> None:
    frame = pl.DataFrame({"actual_length": [1, -2], "finish_reason": [None, "abort"]})
    assert "history: 1 bad row (row 2: actual_length -2 is negative)" in refused(frame)
    history = read_history(frame.lazy(), on_bad_rows="skip")
    assert history == History(
        history.frame, 1, ["history row 2: actual_length -2 is negative"], {"negative": 1}
    )
    assert history.frame["finish_reason"].to_list() == ["stop"]


def test_a_validated_history_is_not_read_again() -> None:
    history = read_history(
        pl.DataFrame({"actual_length": [1, 2], "finish_reason": ["eos", "stop"]})
    )
    assert read_history(history) is history
    with pytest.raises(HistoryError, match="it has no rows"):
        read_history(History(history.frame.clear()))


def test_a_log_of_another_program_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps([{"actual_length": n} for n in range(1, 60)]))
    opened: list[Path] = []
    plain = Path.open

    def counting(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:  # packages that bring formats are looked for in other files
            opened.append(self)
        return plain(self, *args, **options)

    monkeypatch.setattr(Path, "open", counting)
    read_history(path)
    once = len(opened)
    opened.clear()
    records.sample(path)
    assert once == len(opened), "reading a log takes one pass, as looking at its beginning does"


def test_scan_history_makes_unfit_cells_null(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", "actual_length,extra\n12.5,a\nx,b\n7,c\n")
    assert scan_history(path).collect().rows() == [(None, "stop"), (None, "stop"), (7, "stop")]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    for name in ("h.csv", "h.jsonl", "h.parquet"):
        write(tmp_path / name, "old")
        broken = pl.LazyFrame({"actual_length": ["x"]}).select(pl.col("*").cast(pl.Int64))
        with pytest.raises(HistoryError, match="cannot be written"):
            write_history(broken, tmp_path / name)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["h.csv", "h.jsonl", "h.parquet"]


def test_targets_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame({"actual_length": [1], "prefix_hashes": [[1]]})
    (tmp_path / "d.csv").mkdir()
    for name, expected in {
        "h.xlsx": "cannot write .xlsx",
        "no/h.csv": "does not exist",
        "h.csv": "'prefix_hashes' holds lists",
        "d.csv": "a folder of that name",
    }.items():
        with pytest.raises(HistoryError, match=expected):
            write_history(frame, tmp_path / name)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # the tests may run as root, whom nothing stops
        patch.setattr(atomic, "_new_file", denied)
        for name in ("h.csv", "h.parquet"):
            with pytest.raises(HistoryError, match="cannot be written: Permission denied"):
                check_target(tmp_path / name)
    with pytest.raises(HistoryError, match="File name too long"):
        check_target(tmp_path / f"{'x' * 252}.csv")
    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(HistoryError, match="Permission denied"):
        write_history(frame, tmp_path / "h.parquet")
    assert os.listdir(tmp_path) == ["d.csv"]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real traces at {DATA}")
@pytest.mark.parametrize("path", sorted(DATA.glob("*/*.parquet")), ids=lambda path: path.stem)
def test_real_files_are_read_whole(path: Path) -> None:
    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    history = read_history(path, columns=["actual_length", "arrival_time", "prefix_hashes"])
    assert history.frame.height == rows
    assert history.skipped == 0
    assert scan_history(path).select(pl.col("actual_length").sum()).collect().item() == (
        history.frame["actual_length"].sum()
    )
