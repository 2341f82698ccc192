"""Bad rows, planted: as many are reported, of the right kind, at the right line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import TEXT, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagellm_lifetime.core.errors import (
    HistoryError,
    HistoryRowError,
)
from sagellm_lifetime.history import (
    read_history,
)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"actual_length": math.nan}, "actual_length is NaN"),
    "infinite": ({"actual_time": math.inf}, "actual_time is infinite"),
    "negative": ({"actual_length": -3}, "actual_length -3 is negative"),
    "missing": ({"actual_length": None}, "actual_length is missing"),
    "not whole": ({"prompt_length": 12.5}, "prompt_length 12.5 is not a whole number"),
    "too large": ({"actual_length": 10**12}, "actual_length 1000000000000 is over 100000000"),
    "over max_length": (
        {"actual_length": 600, "max_length": 512},
        "actual_length 600 is over max_length 512",
    ),
    "unknown finish reason": ({"finish_reason": "done"}, "finish_reason 'done' is unknown"),
    "not a number": ({"actual_length": "twelve, say"}, "actual_length is not a number"),
}
GOOD = {
    "actual_length": 5,
    "max_length": 1000,
    "prompt_length": 3,
    "actual_time": 1.5,
    "finish_reason": "stop",
    "prompt_text": TEXT,
}


def to_csv(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Write the rows and return the line where each one starts."""
    places, lines = [], 1
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(GOOD)
        for row in rows:
            places.append(f"line {lines + 1}")
            writer.writerow(row.values())
            lines += 1 + str(row["prompt_text"]).count("\n")
    return places


def to_jsonl(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    path.write_text("\n".join(json.dumps(row) + "\n" for row in rows))  # a blank line between
    return [f"line {1 + 2 * i}" for i in range(len(rows))]


def to_parquet(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    numeric = all(not isinstance(row["actual_length"], str) for row in rows)
    lengths = pl.Float64() if numeric else pl.String()
    values = [{k: str(v) if k == "actual_length" and not numeric and v is not None else v
               for k, v in row.items()} for row in rows]  # fmt: skip
    schema = {
        "actual_length": lengths,
        "max_length": pl.Int32(),
        "prompt_length": pl.Float32(),
        "actual_time": pl.Float64(),
        "finish_reason": pl.Categorical(),
        "prompt_text": pl.String(),
    }
    pl.DataFrame(values, schema=schema, strict=False).write_parquet(path)
    return [f"row {i + 1}" for i in range(len(rows))]


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], list[str]]] = {
    "csv": to_csv,
    "jsonl": to_jsonl,
    "parquet": to_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("fault", BAD)
def test_each_kind_of_bad_row_is_named(tmp_path: Path, kind: str, fault: str) -> None:
    path = tmp_path / f"h.{kind}"
    change, text = BAD[fault]
    places = WRITERS[kind](path, [GOOD, GOOD, GOOD | change, GOOD])
    advice = ""
    if fault == "unknown finish reason":
        advice = (
            "a finish reason is stop, length, abort or error (length where a cap was met, abort "
            "where it was cut from outside): write one of them for 'done'; "
        )
    expected = f"{path}: 1 bad row ({places[2]}: {text}); {advice}fix them"
    assert refused(path, HistoryRowError) == (
        f"{expected} or pass --on-bad-rows skip (in Python on_bad_rows='skip')"
    )
    history = read_history(path, on_bad_rows="skip")
    assert (history.frame.height, history.skipped, history.kinds) == (3, 1, {fault: 1})


@pytest.mark.parametrize("kind", WRITERS)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(picks=st.lists(st.sampled_from([None, None, *BAD]), min_size=1, max_size=40))
def test_as_many_bad_rows_are_reported_as_were_planted(
    tmp_path: Path, kind: str, picks: list[str | None]
) -> None:
    rows = [GOOD | BAD[pick][0] if pick else GOOD | {"prompt_length": i}
            for i, pick in enumerate(picks)]  # fmt: skip
    path = tmp_path / f"h.{kind}"
    places = WRITERS[kind](path, rows)
    planted = [(place, pick) for place, pick in zip(places, picks, strict=True) if pick]
    good = [i for i, pick in enumerate(picks) if not pick]
    if not planted:
        assert read_history(path).frame["prompt_length"].to_list() == good
        return
    if not good:
        refused(path, HistoryError, on_bad_rows="skip")
        return
    plural = "row" if len(planted) == 1 else "rows"
    assert f"{len(planted)} bad {plural} (" in refused(path, HistoryRowError)
    history = read_history(path, on_bad_rows="skip")
    assert history.frame["prompt_length"].to_list() == good
    assert history.skipped == len(planted) == sum(history.kinds.values())
    assert history.kinds == {k: [p for _, p in planted].count(k) for _, k in planted}
    expected = [f"{path} {place}: {BAD[pick][1]}" for place, pick in planted[:20]]
    assert history.problems == expected
