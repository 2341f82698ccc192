"""Files, frames and columns that cannot be used get one clear line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import refused, write

from sagellm_lifetime.core.errors import (
    HistoryHeaderError,
)
from sagellm_lifetime.history import (
    scan_history,
)

HEADER = "actual_length,model\n"
UNUSABLE: dict[str, tuple[str, str | bytes, str]] = {
    "zero bytes": ("h.csv", "", "the file is empty"),
    "blank lines": ("h.csv", "\n\n", "the file is empty"),
    "header only": ("h.csv", HEADER, "the file has no rows"),
    "zero bytes jsonl": ("h.jsonl", "", "the file is empty"),
    "blank lines jsonl": ("h.jsonl", "\n \n", "the file is empty"),
    "byte order mark jsonl": ("h.jsonl", "\ufeff\n", "the file is empty"),
    "no such column": ("h.csv", "acual_lenght,x\n1,2\n", "did you mean 'acual_lenght'?"),
    "other name": ("h.csv", "completion_tokens\n1\n", "rename 'completion_tokens'"),
    "other name jsonl": ("h.jsonl", '{"output_length": 1}\n', "rename 'output_length'"),
    "a trace": ("h.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n", "--from azure"),
    "column twice": ("h.csv", "actual_length,turn,turn\n1,2,3\n", "'turn' appears twice"),
    "binary": ("h.csv", bytes(range(256)), "binary file"),
    "binary jsonl": ("h.jsonl", bytes(range(256)), "binary file"),
    "parquet as csv": ("h.csv", b"PAR1\x15\x00\x93\xff", "name it .parquet"),
    "parquet as jsonl": ("h.jsonl", b"PAR1\x15\x00\x93\xff", "name it .parquet"),
    "header only, gzip": ("h.csv.gz", gzip.compress(HEADER.encode()), "the file has no rows"),
    "cut gzip": ("h.csv.gz", gzip.compress(HEADER.encode() * 99)[:-9], "damaged or truncated"),
    "a gzip of what": ("h.gz", gzip.compress(HEADER.encode()), "'.gz' is not supported: unpack it"),
    "zip": ("h.csv.zip", b"PK\x03\x04", "'.zip' is not supported: unpack it first"),
    "workbook as csv": ("h.csv", b"PK\x03\x04 and so on", "save the sheet as CSV"),
    "latin-1 header": ("h.csv", "actual_length,é\n1,2\n".encode("latin1"), "not UTF-8"),
    "latin-1 row": ("h.csv", HEADER.encode() + b"1,a\n2,\xe9\n", "line 3 is not UTF-8"),
    "latin-1 jsonl": ("h.jsonl", b'{"actual_length": 1}\n{"model": "\xe9"}', "line 2 is not UTF-8"),
    "utf-16": ("h.csv", HEADER.encode("utf-16"), "UTF-16 text: save the file as UTF-8"),
    "utf-16 jsonl": ("h.jsonl", '{"actual_length": 1}'.encode("utf-16"), "UTF-16 text"),
    "utf-16 without a mark": ("h.csv", HEADER.encode("utf-16-le"), "binary file"),
    "lines of old Mac OS": ("h.csv", "actual_length\r5\r6\r", "carriage return alone"),
    "semicolons": ("h.csv", 'model;"actual_length"\nm;5\n', "separated by ';'"),
    "tabs": ("h.csv", "model\tactual_length\nm\t5\n", "separated by '\\t'"),
    "semicolons, other names": ("h.csv", "ts;promptTokens;completionTokens\n1;2;3\n", "by ';'"),
    "tabs, other names": ("h.csv", "ts\tOutput Tokens\n1\t3\n", "separated by '\\t'"),
    "in another case": ("h.csv", "Actual_Length,x\n1,2\n", "rename 'Actual_Length' to 'actual_l"),
    "in another case jsonl": ("h.jsonl", '{"actualLength": 1}\n', "rename 'actualLength' to 'ac"),
    "columns": ("h.csv", "a,b,c,d,e,f,g,h\n1\n", "are a, b, c, d, e, f and 2 more"),
    "known names": ("h.csv", "a,b\n1,2\n", "any other is read with --map actual_length=NAME"),
    "no header, a long row": ("h.csv", f"5,{'x' * 200_000}\n", "no column 'actual_length'"),
    "open quote": ("h.csv", HEADER + '1,a\n2,"b\n3,c\n', "line 3 is not CSV"),
    "list in csv": ("h.csv", "actual_length,prefix_hashes\n1,[1]\n", "'prefix_hashes' holds lists"),
    "suffix": ("h.txt", HEADER, "file type '.txt' is not supported"),
    "no suffix": ("h", HEADER, "without a suffix"),
    "no parquet": ("h.parquet", HEADER, "not a readable Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_get_one_clear_line(tmp_path: Path, case: str) -> None:
    name, content, expected = UNUSABLE[case]
    path = write(tmp_path / name, content)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_a_first_row_without_a_header_is_not_repeated(tmp_path: Path) -> None:
    for row in ("my secret,prompt\n", "secret,5\n", "secret\n", f"a,{'secret' * 9}\n"):
        message = refused(write(tmp_path / "h.csv", row * 2))
        assert "no column 'actual_length'" in message
        assert "secret" not in message


def test_bad_rows_are_advised_on_for_python_too(tmp_path: Path) -> None:
    message = refused(write(tmp_path / "h.csv", HEADER + "x,m\n1,m\n"))
    assert message.endswith("pass --on-bad-rows skip (in Python on_bad_rows='skip')")


def test_missing_paths_get_one_clear_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.csv") == f"{tmp_path}/no.csv: no such file or folder"
    assert "no history file matches" in refused(f"{tmp_path}/*.csv")
    write(tmp_path / "readme.md", "x")
    assert "no history files in this folder" in refused(tmp_path)


def test_no_path_is_not_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "h.csv", HEADER + "1,a\n")
    monkeypatch.chdir(tmp_path)
    assert "no history is named" in refused("")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "h.csv")
    assert "a pipe or a device" in refused(tmp_path / "h.csv")
    assert "no history file matches" in refused(f"{tmp_path}/*.csv")


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv"))
    try:
        write(path, HEADER + "1,a\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    message = refused(path)
    assert "is not UTF-8 text: rename the file" in message
    message.encode()


def test_header_errors_are_header_errors(tmp_path: Path) -> None:
    for case in ("no such column", "column twice", "list in csv"):
        name, content, _ = UNUSABLE[case]
        refused(write(tmp_path / name, content), HistoryHeaderError)
    with pytest.raises(HistoryHeaderError, match="actual_length"):
        scan_history(write(tmp_path / "h.csv", "x\n1\n"))


@pytest.mark.parametrize("keep", [0, 3, 8, 50, -1, -8, -40])
def test_cut_parquet(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "h.parquet"
    pl.DataFrame({"actual_length": list(range(5000))}).write_parquet(path)
    path.write_bytes(path.read_bytes()[: keep or 0])
    message = refused(path)
    assert "truncated or damaged" in message or (keep == 0 and "the file is empty" in message)


def test_damaged_parquet_pages(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    pl.DataFrame({"actual_length": list(range(5000))}).write_parquet(path)
    content = bytearray(path.read_bytes())
    content[60:400] = b"\xab" * 340
    path.write_bytes(content)
    assert "truncated or damaged" in refused(path)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("actual_length", ["many", "few"], "'actual_length' is String, not numbers"),
        ("actual_length", [True, False], "'actual_length' is Boolean, not a number"),
        ("actual_length", [[1], [2]], "not a number"),
        ("prefix_hashes", ["a", "b"], "not a list of whole numbers"),
        ("prefix_hashes", [[0.5], [1.0]], "not a list of whole numbers"),
        ("entropy", [0.5, 1.0], "not a list of numbers"),
        ("eos_logprob", [["a"], ["b"]], "not a list of numbers"),
        ("model", [[1], [2]], "'model' is List(Int64), not text"),
    ],
)
def test_wrong_stored_types_name_the_column(
    tmp_path: Path, column: str, values: list[Any], expected: str
) -> None:
    frame = pl.DataFrame({"actual_length": [1, 2]} | {column: values})
    frame.write_parquet(tmp_path / "h.parquet")
    assert expected in refused(tmp_path / "h.parquet", HistoryHeaderError)
    assert expected in refused(frame, HistoryHeaderError)


def test_zero_rows_and_broken_frames() -> None:
    assert "no rows" in refused(pl.DataFrame({"actual_length": []}, schema={"actual_length": int}))
    assert "no column 'actual_length'" in refused(pl.DataFrame({"x": [1]}), HistoryHeaderError)
    lazy = pl.LazyFrame({"actual_length": ["a secret"]}).select(pl.col("*").cast(pl.Int64))
    message = refused(lazy)
    assert "cannot be collected" in message
    assert "secret" not in message


def test_permission_denied_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "h.csv", HEADER + "1,a\n")

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root, whom nothing stops
    assert refused(path) == f"{path}: Permission denied"
