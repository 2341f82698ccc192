"""Bad rows: what the one line says, and what it must not say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from history_help import TEXT, refused, write

from sagellm_lifetime.core.errors import (
    HistoryRowError,
)
from sagellm_lifetime.history import (
    jsonl,
    read_history,
    write_history,
)


def test_the_message_shows_three_and_counts_the_rest_by_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", "actual_length\n1\n" + "-1\n" * 3 + "nan\n" * 9)
    message = refused(path)
    assert message.count("line ") == 3
    assert "12 bad rows" in message
    assert "and 9 more; in all 9 NaN, 3 negative" in message


def test_bad_rows_of_several_files_name_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "actual_length\n1\n")
    write(tmp_path / "b.csv", "actual_length\n1\n-4\n")
    assert f"{tmp_path}: 1 bad row (b.csv line 3: actual_length -4" in refused(tmp_path)


def test_no_good_row_left_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", "actual_length\n-1\n")
    assert "no good row is left" in refused(path, HistoryRowError, on_bad_rows="skip")


def test_malformed_jsonl_lines_are_rows_like_any_other(tmp_path: Path) -> None:
    lines = [
        '{"actual_length": 1, "prefix_hashes": [1]}', "not json", "[1]", "", "null",
        '{"actual_length": true}', '{"actual_length": 1e999}', '{"actual_length": [1]}',
        '{"actual_length": 2, "prefix_hashes": [1.5]}', '{"actual_length": 3, "model": "\\ud800"}',
        '{"actual_length": 4', '{"actual_length": 5, "entropy": [1, 0.5, true]}',
        '{"actual_length": 6, "entropy": [1, 0.5]}',
    ]  # fmt: skip
    history = read_history(write(tmp_path / "h.jsonl", "\n".join(lines)), on_bad_rows="skip")
    assert history.frame["actual_length"].to_list() == [1, 3, 6]
    assert history.frame["entropy"].to_list() == [None, None, [1.0, 0.5]]
    assert history.frame["model"].to_list() == [None, "\ufffd", None]
    assert [problem.split(" ", 1)[1] for problem in history.problems] == [
        "line 2: is not JSON",
        "line 3: is not a JSON object",
        "line 5: is not a JSON object",
        "line 6: actual_length is not a number",
        "line 7: actual_length is infinite",
        "line 8: actual_length is not a number",
        "line 9: has a prefix_hashes that is not a list of whole numbers",
        "line 11: is not JSON",
        "line 12: has a entropy that is not a list of numbers",
    ]


def test_jsonl_lines_are_right_across_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "CHUNK", 100)
    values = [-1 if i % 37 == 5 else math.nan if i % 41 == 7 else i for i in range(300)]
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps({"actual_length": v}) + "\n" for v in values))
    history = read_history(path, on_bad_rows="skip")
    bad = [i + 1 for i, v in enumerate(values) if not v >= 0]
    lines = [int(problem.split("line ")[1].split(":")[0]) for problem in history.problems]
    assert lines == bad[:20]
    assert history.skipped == len(bad)
    assert history.frame["actual_length"].to_list() == [v for v in values if v >= 0]


def test_csv_row_with_too_many_fields_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "h.csv", f'actual_length,model\n1,"{TEXT}"\n\n2,a,b\n3\n4,c\n')
    expected = f"{path}: 1 bad row (line 5: has 3 fields, the header has 2)"
    assert refused(path, HistoryRowError).startswith(expected)
    assert read_history(path, on_bad_rows="skip").frame["actual_length"].to_list() == [1, 3, 4]


@pytest.mark.parametrize("reason", ["tell me a secret", "x" * 30, "a\nb", "{}"])
def test_a_prompt_in_the_wrong_column_is_not_repeated(tmp_path: Path, reason: str) -> None:
    frame = pl.DataFrame({"actual_length": ["1", reason], "finish_reason": [reason, "stop"]})
    for name in ("h.csv", "h.jsonl", "h.parquet"):
        write_history(frame, tmp_path / name)
        message = refused(tmp_path / name, HistoryRowError)
        assert "2 bad rows" in message
        assert "finish_reason is unknown" in message
        assert reason not in message


def test_lists_with_holes_are_bad_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"actual_length": [1, 2, 3, 4], "prefix_hashes": [[1, None], [], None, [7]]},
        schema_overrides={"prefix_hashes": pl.List(pl.Int64)},
    )
    for name in ("h.jsonl", "h.parquet"):
        write_history(frame, tmp_path / name)
        message = refused(tmp_path / name, HistoryRowError)
        assert "1 bad row" in message
        assert "prefix_hashes is not a list of whole numbers" in message
        history = read_history(tmp_path / name, on_bad_rows="skip")
        assert history.frame["actual_length"].to_list() == [2, 3, 4]


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_half_a_character_is_replaced_and_said(tmp_path: Path, suffix: str) -> None:
    models = ["x\\ud800y", "\\uDFFF", "\\ud83d\\ude00", "\\u0000", "\\\\ud800"]
    text = "\n".join(f'{{"actual_length": 3, "model": "{model}"}}' for model in models)
    history = read_history(write(tmp_path / f"h.{suffix}", text))
    assert history.frame["model"].to_list() == ["x\ufffdy", "\ufffd", "😀", "\0", "\\ud800"]
    said = "model: half a character (a lone surrogate) was replaced by U+FFFD"
    assert history.notes.count(said) == 1
    whole = read_history(write(tmp_path / f"w.{suffix}", text.split("\n", 2)[2]))
    assert whole.notes == []
