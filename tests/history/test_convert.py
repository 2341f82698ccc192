"""Public trace formats: small files in the form their owners publish, to history rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from sagellm_lifetime.core.errors import HistoryError, HistoryRowError, UnknownNameError
from sagellm_lifetime.history import HistorySummary, read_history
from sagellm_lifetime.history.convert import FORMATS, convert
from sagellm_lifetime.history.convert.sharegpt import estimate_tokens

DATA = Path(__file__).parents[3] / "shared" / "data"

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 23:59:59.500000+00:00,2162,5
2024-05-11 00:00:00.009930+00:00,2399,6
"""
BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,API log
"""
BURST_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,\
Total tokens,Log Type
19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log
19440161.0,d5983bf9,2,ChatGPT,36,29,65,Conversation log
19440170.5,,1,ChatGPT,7,0,7,API log
19440192.0,1722ac82,9,GPT-4,1400,12,1412,Conversation log
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3052, "input_length": 512, "output_length": 2, "hash_ids": []}
"""
SERVEGEN = "request_id,timestamp,input_tokens,output_tokens,reason_ratio\n0,0.5,10,20,0.9\n"
SERVEGEN_MEDIA = """request_id,timestamp,text_tokens,output_tokens,image_tokens,audio_tokens
0,0.5,10,20,"[100, 20]",[]
1,1.25,7,2,[],"[5]"
"""
SERVEGEN_OFFLINE = """{"request_id": 0, "type": "text", "input_length": 61, "output_length": 2370, "duration": 14000}
"""  # noqa: E501
SHARE = [
    {
        "id": "QWJhYvA_0",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "What is a token?"},
            {"from": "gpt", "value": "A piece of text."},
            {"from": "human", "value": "Ünlü?", "token_count": 7},
            {"from": "gpt", "value": "", "token_count": 100},
        ],
    },
    {"id": "cut_1", "conversations": [{"from": "gpt", "value": "an answer without question"}]},
]


def converted(
    tmp_path: Path, fmt: str | None, content: str, suffix: str = "csv", **options: Any
) -> pl.DataFrame:
    source, target = tmp_path / f"in.{suffix}", tmp_path / "out.parquet"
    source.write_text(content, encoding="utf-8")
    found = convert(fmt, source, target, **options)
    frame = pl.read_parquet(target)
    assert found.frame.height == frame.height == read_history(target).frame.height
    return frame


def refused(
    tmp_path: Path, fmt: str | None, content: str, suffix: str = "csv", **options: Any
) -> str:
    with pytest.raises(HistoryError) as caught:
        converted(tmp_path, fmt, content, suffix, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [f"in.{suffix}"]  # nothing written
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_azure_2023_and_2024(tmp_path: Path) -> None:
    frame = converted(tmp_path, "azure", AZURE)
    assert frame.columns == ["arrival_time", "prompt_length", "actual_length"]
    assert frame["arrival_time"].to_list() == pytest.approx([0, 4.314579, 4.31941], abs=2e-6)
    assert frame["actual_length"].to_list() == [44, 109, 55]
    frame = converted(tmp_path, "azure", AZURE_2024)
    assert frame["arrival_time"].to_list() == pytest.approx([0, 0.50993], abs=2e-6)
    both = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10T01:00:00Z,1,1\n"
    both += "2024-05-10 02:00:03+01:00,1,1\n"
    assert converted(tmp_path, "azure", both)["arrival_time"].to_list() == [0, 3]


def test_burstgpt_old_and_new(tmp_path: Path) -> None:
    frame = converted(tmp_path, "burstgpt", BURST)
    assert frame.to_dicts() == [
        {"model": "ChatGPT", "client_id": "Conversation log", "arrival_time": 5.0,
         "prompt_length": 472, "actual_length": 18, "finish_reason": None},
        {"model": "GPT-4", "client_id": "API log", "arrival_time": 45.0,
         "prompt_length": 1087, "actual_length": 0, "finish_reason": "error"},
    ]  # fmt: skip
    frame = converted(tmp_path, "burstgpt", BURST_3)
    assert frame["session_id"].to_list() == ["1722ac82", "d5983bf9", None, "1722ac82"]
    assert frame["turn"].to_list() == [0, 0, None, 1]
    assert frame["actual_time"].to_list() == [43, 2, 1, 9]
    assert frame["finish_reason"].to_list() == [None, None, "error", None]
    assert frame["prompt_length"].to_list() == [906, 36, 7, 1400]


def test_mooncake(tmp_path: Path) -> None:
    frame = converted(tmp_path, "mooncake", MOONCAKE, "jsonl")
    assert frame.to_dicts() == [
        {"arrival_time": 0.0, "prompt_length": 6758, "actual_length": 500,
         "prefix_hashes": [0, 1, 2]},
        {"arrival_time": 3.052, "prompt_length": 512, "actual_length": 2, "prefix_hashes": []},
    ]  # fmt: skip
    assert "prefix_hashes" in refused_target(tmp_path, "mooncake", "out.csv")


def refused_target(tmp_path: Path, fmt: str, target: str) -> str:
    with pytest.raises(HistoryError) as caught:
        convert(fmt, tmp_path / "in.jsonl", tmp_path / target)
    return str(caught.value)


def test_servegen(tmp_path: Path) -> None:
    row = {"request_id": "0", "arrival_time": 0.5, "prompt_length": 10, "actual_length": 20}
    assert converted(tmp_path, "servegen", SERVEGEN).to_dicts() == [row]
    frame = converted(tmp_path, "servegen", SERVEGEN_MEDIA)
    assert frame["prompt_length"].to_list() == [130, 12]
    frame = converted(tmp_path, "servegen", SERVEGEN_OFFLINE, "jsonl")
    assert frame.row(0, named=True) == {
        "request_id": "0", "prompt_length": 61, "actual_length": 2370, "actual_time": 14.0
    }  # fmt: skip


def test_servegen_histograms_are_no_requests(tmp_path: Path) -> None:
    assert "histograms, not requests" in refused(tmp_path, "servegen", "{}", "json")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_sharegpt(tmp_path: Path, suffix: str) -> None:
    lines = "\n".join(map(json.dumps, SHARE))
    content = json.dumps(SHARE, indent=1) if suffix == "json" else lines
    frame = converted(tmp_path, "sharegpt", content, suffix)
    asked = estimate_tokens("Be brief.") + estimate_tokens("What is a token?")
    answered = estimate_tokens("A piece of text.")
    assert frame.select("request_id", "turn", "prompt_length", "actual_length").rows() == [
        ("QWJhYvA_0#0", 0, asked, answered),
        ("QWJhYvA_0#1", 1, asked + answered + 7, 100),
    ]
    assert not {"prompt_text", "output_text"} & set(frame.columns)
    assert b"piece of" not in (tmp_path / "out.parquet").read_bytes()


def test_sharegpt_keeps_content_only_when_asked(tmp_path: Path) -> None:
    content = json.dumps(SHARE)
    frame = converted(tmp_path, "sharegpt", content, "json", keep_content=True)
    assert frame["prompt_text"].to_list() == ["What is a token?", "Ünlü?"]
    assert frame["output_text"].to_list() == ["A piece of text.", ""]


def test_token_estimate() -> None:
    assert [estimate_tokens(t) for t in ("", " \n", "word", "12345", "日本語", "a, b!")] == [
        0, 0, 1, 2, 3, 4
    ]  # fmt: skip


def test_azure_offsets_have_minutes(tmp_path: Path) -> None:
    head = AZURE.splitlines()[0]
    times = ["2024-05-10 05:30:00+05:30", "2024-05-09 20:30:02-03:30", "2024-05-10T00:00:04Z"]
    frame = converted(tmp_path, "azure", "\n".join([head, *(f"{t},1,1" for t in times)]))
    assert frame["arrival_time"].to_list() == [0, 2, 4]


def test_mooncake_in_seconds_is_not_read_as_milliseconds(tmp_path: Path) -> None:
    rows = [json.loads(MOONCAKE.splitlines()[0]) | {"timestamp": t} for t in (0.0, 0.75, 2.5, 3.25)]
    content = "\n".join(map(json.dumps, rows))
    frame = converted(tmp_path, "mooncake", content, "jsonl")
    assert frame["arrival_time"].to_list() == [0.0, 0.75, 2.5, 3.25]
    (tmp_path / "out.parquet").unlink()
    open_to_both = content.replace("0.75", "31").replace("2.5", "60").replace("3.25", "99")
    assert "--time-unit ms or --time-unit s" in refused(tmp_path, "mooncake", open_to_both, "jsonl")
    frame = converted(tmp_path, "mooncake", open_to_both, "jsonl", time_unit="ms")
    assert frame["arrival_time"].to_list() == [0.0, 0.031, 0.06, 0.099]
    (tmp_path / "out.parquet").unlink()
    (tmp_path / "in.jsonl").unlink()
    assert "says its unit itself" in refused(tmp_path, "azure", AZURE, time_unit="ms")
    with pytest.raises(UnknownNameError, match="unknown unit of time 'h'"):
        converted(tmp_path, "mooncake", MOONCAKE, "jsonl", time_unit="h")


def test_what_has_block_hashes_is_not_always_mooncake(tmp_path: Path) -> None:
    turn = {"input_length": 5, "output_length": 3, "hash_ids": [1]}
    session = [
        {"session_id": "a", "timestamp": 7.0, **turn},
        {"session_id": "a", "delay": 5, **turn},
    ]
    frame = converted(tmp_path, "mooncake", "\n".join(map(json.dumps, session)), "jsonl")
    assert frame["arrival_time"].to_list() == [0.007, None]
    (tmp_path / "out.parquet").unlink()
    bailian = json.dumps({"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "turn": 1, **turn})
    assert "no Mooncake trace: --from bailian" in refused(tmp_path, "mooncake", bailian, "jsonl")


def test_sharegpt_roles(tmp_path: Path) -> None:
    call = [("human", "weather?"), ("function_call", '{"city": "Rome"}'), ("observation", "21")]
    talk = [
        [*call, ("gpt", "21 degrees")],
        [("system", "be brief"), ("user", "hi"), ("Model", "hello"), ("tool", "x"), ("bing", "y")],
        [("gpt", "an answer to what?"), ("human", "hm"), ("gpt", "")],
    ]
    items = [
        {"id": str(i), "conversations": [{"from": role, "value": text} for role, text in said]}
        for i, said in enumerate(talk)
    ]
    source, target = tmp_path / "in.json", tmp_path / "out.jsonl"
    source.write_text(json.dumps(items))
    found = convert("sharegpt", source, target)
    assert found.frame["request_id"].to_list() == ["0#0", "0#1", "1#0", "1#1", "2#0"]
    assert found.frame["actual_length"].to_list()[-1] == 0
    assert found.left_out == {"answers before any question, whose prompt is unknown": 1}
    assert "1 answer without text, kept with the length 0" in found.notes
    items.append({"id": "9", "conversations": [{"from": "narrator", "value": "once upon a time"}]})
    source.write_text(json.dumps(items))
    with pytest.raises(HistoryRowError, match="conversation 4: a message has the role 'narrator'"):
        convert("sharegpt", source, target)
    found = convert("sharegpt", source, target, on_bad_rows="skip")
    assert (found.frame.height, found.skipped) == (5, 1)


USAGE = """timestamp,model,session_id,input_tokens,output_tokens,max_tokens,stop_reason
1770000000.0,m,s1,900,2048,2048,max_tokens
1770000010.0,m,s1,100,20,2048,tool_use
"""


def test_a_log_is_recognised_by_what_only_its_format_has(tmp_path: Path) -> None:
    frame = converted(tmp_path, None, USAGE)  # a ServeGen workload has no model and no stop_reason
    assert frame["finish_reason"].to_list() == ["length", "stop"]
    assert frame["max_length"].to_list() == [2048, 2048]
    for content, suffix in ((AZURE, "csv"), (BURST, "csv"), (MOONCAKE, "jsonl")):
        assert converted(tmp_path, None, content, suffix).height >= 2
    own = "arrival_time,actual_length\n1,5\n"
    assert converted(tmp_path, None, own).rows() == [(1.0, 5)]
    (tmp_path / "out.parquet").unlink()
    for path in tmp_path.glob("in.*"):
        path.unlink()
    assert "no column 'actual_length'" in refused(tmp_path, None, "x\n1\n")


def test_columns_that_are_dropped_are_said(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(USAGE)
    found = convert("servegen", source, tmp_path / "out.csv")
    assert found.ignored == ["model", "session_id", "max_tokens", "stop_reason"]
    assert "columns not read: model, session_id, max_tokens (did you mean max_length?)" in " ".join(
        found.notes
    )
    assert "without --from it is read as a log of requests" in found.notes[-1]
    source.write_text(AZURE)
    assert convert("azure", source, tmp_path / "out.csv").notes == []
    source.write_text(BURST)
    notes = convert("burstgpt", source, tmp_path / "out.csv").notes
    assert notes == ["columns not read: Total tokens"]


def test_every_format_converts_and_texts_are_kept_only_when_asked(tmp_path: Path) -> None:
    run = {"input_lens": [5], "output_lens": [2], "start_times": [1.0], "ttfts": [0.5],
           "itls": [[0.5]], "generated_texts": ["said"], "errors": [""]}  # fmt: skip
    content = json.dumps(run)
    frame = converted(tmp_path, "vllm-bench", content, "json")
    assert "output_text" not in frame.columns
    frame = converted(tmp_path, "vllm-bench", content, "json", keep_content=True)
    assert frame["output_text"].to_list() == ["said"]


def test_compressed_traces_are_read(tmp_path: Path) -> None:
    for fmt, content, suffix in (
        ("azure", AZURE, "csv"), ("mooncake", MOONCAKE, "jsonl"), ("servegen", SERVEGEN, "csv"),
        ("sharegpt", json.dumps(SHARE), "json"),
    ):  # fmt: skip
        plain, packed = tmp_path / f"t.{suffix}", tmp_path / f"t.{suffix}.gz"
        plain.write_text(content)
        packed.write_bytes(gzip.compress(content.encode()))
        expected = convert(fmt, plain, tmp_path / "a.jsonl").frame
        assert convert(fmt, packed, tmp_path / "b.jsonl").frame.equals(expected)


BROKEN = [
    ("azure", AZURE + "yesterday,1,2\n", "csv", "line 5: TIMESTAMP is not a time"),
    ("azure", AZURE + "2023-11-16 18:15:51,1,-2\n", "csv", "line 5: GeneratedTokens -2 is neg"),
    ("azure", AZURE + "2023-11-16 18:15:51,,2\n", "csv", "line 5: ContextTokens is missing"),
    ("azure", "TIMESTAMP,ContextTokens\n1,2\n", "csv", "no column 'GeneratedTokens'"),
    ("azure", MOONCAKE, "jsonl", "this format comes as .csv, not .jsonl"),
    ("burstgpt", BURST + "x,m,1,2,3,API log\n", "csv", "line 4: Timestamp is not a number"),
    ("burstgpt", BURST + "NaN,m,1,2,3,API log\n", "csv", "line 4: Timestamp is NaN"),
    ("burstgpt", BURST.replace("Response", "response"), "csv", "mean 'response tokens'?"),
    ("mooncake", MOONCAKE + "{", "jsonl", "line 3: is not JSON"),
    ("mooncake", MOONCAKE.replace("3052", "null"), "jsonl", "line 2: timestamp is missing"),
    ("mooncake", MOONCAKE.replace("512", "5e12"), "jsonl", "line 2: input_length 5000000000000 is"),
    ("servegen", SERVEGEN + "1,2,3,4.5,0\n", "csv", "line 3: output_tokens 4.5 is not a whole"),
    ("servegen", "", "csv", "the file is empty"),
    ("sharegpt", "[{},", "json", "line 1 is not JSON"),
    ("sharegpt", "{}", "json", "expected a JSON list"),
    ("sharegpt", "", "json", "the file is empty"),
    ("sharegpt", "[]", "json", "no answer in it"),
    ("sharegpt", json.dumps([*SHARE, {"id": 1}]), "json", "conversation 3: has no list"),
    ("sharegpt", json.dumps(SHARE).replace("100", "-1"), "json", "conversation 1: a token_count"),
    ("sharegpt", '[{"conversations": [{"from": "gpt"}]}]', "json", "has no text 'value'"),
]


@pytest.mark.parametrize(("fmt", "content", "suffix", "expected"), BROKEN)
def test_what_is_wrong_is_named(
    tmp_path: Path, fmt: str, content: str, suffix: str, expected: str
) -> None:
    message = refused(tmp_path, fmt, content, suffix)
    assert message.startswith(f"in.{suffix}: ")
    assert expected in message


def test_a_line_of_sharegpt_that_is_not_json_is_a_bad_row(tmp_path: Path) -> None:
    content = "".join(json.dumps(each) + "\n" for each in SHARE) + '{"id": \n[[\n'
    message = refused(tmp_path, "sharegpt", content, "jsonl")
    assert "2 bad rows (line 3: is not JSON; line 4: is not JSON)" in message
    found = converted(tmp_path, "sharegpt", content, "jsonl", on_bad_rows="skip")
    assert found.height == 2


def test_sharegpt_says_that_it_replaced_half_a_character(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "a\ud83d"}, {"from": "gpt", "value": "\ude00 b"}]
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"id": "i\udfff", "model": "\ud800", "conversations": talk}]))
    found = convert("sharegpt", path, tmp_path / "h.jsonl", keep_content=True)
    row = found.frame.row(0, named=True)
    assert [row[n] for n in ("session_id", "model", "prompt_text", "output_text")] == [
        "i\ufffd", "\ufffd", "a\ufffd", "\ufffd b"
    ]  # fmt: skip
    assert sum("lone surrogate" in note for note in found.notes) == 4


def test_bad_rows_are_left_out_when_asked(tmp_path: Path) -> None:
    content = AZURE + "2023-11-16 18:15:51,1,-2\n"
    assert converted(tmp_path, "azure", content, on_bad_rows="skip").height == 3
    mixed = json.dumps([*SHARE, {"id": 1}])
    assert converted(tmp_path, "sharegpt", mixed, "json", on_bad_rows="skip").height == 2
    with pytest.raises(HistoryRowError, match="no good row"):
        converted(tmp_path, "azure", AZURE[:40] + "x,1,1\n", on_bad_rows="skip")


def test_unknown_format_and_impossible_targets(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="azure, burstgpt, mooncake, servegen, sharegpt"):
        convert("splitwise", tmp_path / "in.csv", tmp_path / "out.csv")
    for fmt in FORMATS:
        with pytest.raises(HistoryError, match=r"cannot write \.xlsx"):
            convert(fmt, tmp_path / "missing.csv", tmp_path / "out.xlsx")
        with pytest.raises(HistoryError, match=r"(?i)no such file"):
            convert(fmt, tmp_path / "missing.csv", tmp_path / "out.csv")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real traces at {DATA}")
def test_the_estimate_is_near_the_counted_tokens() -> None:
    frame = pl.read_parquet(DATA / "prompts" / "sharegpt.parquet").head(2000)
    ratios = [
        estimate_tokens(text) / length
        for text, length in frame.select("output_text", "actual_length").iter_rows()
        if length >= 20
    ]
    assert 0.95 < np.median(ratios) < 1.05
    assert np.mean([0.9 <= ratio <= 1.1 for ratio in ratios]) > 0.75


@pytest.mark.parametrize("mapping", [None, {"actual_length": "actual_length"}])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_no_finish_reason_is_made_up(tmp_path: Path, mapping: Any, suffix: str) -> None:
    source, target = tmp_path / "in.csv", tmp_path / f"out.{suffix}"
    for rows, stated in (
        ("max_length,actual_length\n9,9\n9,5\n", None),
        ("max_length,actual_length,finish_reason\n9,9,\n9,5,\n9,4,eos\n", [None, None, "stop"]),
    ):
        source.write_text(rows)
        found = convert(None, source, target, mapping=mapping)
        if stated is None:
            assert "finish_reason" not in found.frame.columns
        else:
            assert found.frame["finish_reason"].to_list() == stated
        summary = HistorySummary.of(found)
        assert summary.reasons["length"] == pytest.approx(1 / found.frame.height)
        original = read_history(source, cap_reached="stop")
        again = read_history(target, cap_reached="stop")
        assert_frame_equal(again.frame, original.frame)
        assert again.cap_reached == original.cap_reached == 1
        target.unlink()
