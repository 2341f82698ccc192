"""Logs of other programs: small ones in the shape that each program writes, read as histories."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import refused, write

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history import History, read_history
from sagellm_lifetime.history.formats import FORMATS, recognise
from sagellm_lifetime.history.records import sample


def lines(*records: Any) -> str:
    return "\n".join(json.dumps(record) for record in records) + "\n"


def table(*records: dict[str, Any]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[0]))
    writer.writeheader()
    writer.writerows(
        {k: json.dumps(v) if isinstance(v, dict) else v for k, v in record.items()}
        for record in records
    )
    return stream.getvalue()


def read(tmp_path: Path, name: str, content: str, **options: Any) -> History:
    return read_history(write(tmp_path / name, content), **options)


def rows(history: History, *columns: str) -> list[tuple[Any, ...]]:
    return history.frame.select(columns).rows()


VLLM = {
    "date": "20260301-120000", "backend": "openai-chat", "model_id": "org/model",
    "num_prompts": 3, "completed": 2, "failed": 1, "total_output_tokens": 12,
    "input_lens": [40, 50, 60], "output_lens": [3, 9, 0],
    "start_times": [100.5, 101.0, 102.0], "ttfts": [0.5, 0.25, 0.0],
    "itls": [[0.25, 0.25], [0.125] * 8, []], "generated_texts": ["a", "b", ""],
    "errors": ["", "", "Traceback: timed out"],
}  # fmt: skip
TOTALS = {"date": "d", "model_id": "m", "completed": 2, "total_output_tokens": 12}


def test_vllm_bench(tmp_path: Path) -> None:
    found = read(tmp_path, "r.json", json.dumps(VLLM))
    assert found.formats == ["a result of vllm bench serve"]
    assert rows(
        found, "model", "arrival_time", "prompt_length", "actual_length", "actual_time"
    ) == [
        ("org/model", 100.5, 40, 3, 1.0),
        ("org/model", 101.0, 50, 9, 1.25),
        ("org/model", 102.0, 60, 0, None),
    ]
    assert found.frame["finish_reason"].to_list() == ["stop", "stop", "error"]
    # Several runs in one file, as --append-result writes them, and a stated latency.
    more = {**VLLM, "latencies": [2.0, 3.0, 0.0]}
    found = read(tmp_path, "r.json", json.dumps(VLLM) + "\n" + json.dumps(more))
    assert found.frame["actual_time"].to_list() == [1.0, 1.25, None, 2.0, 3.0, None]


def test_a_benchmark_without_details_says_how_to_get_them(tmp_path: Path) -> None:
    message = refused(write(tmp_path / "r.json", json.dumps(TOTALS)))
    assert "totals only: run the benchmark again with --save-detailed" in message
    run = {"backend": "sglang", "completed": 2, "total_output_tokens_retokenized": 3}
    assert "--output-details" in refused(write(tmp_path / "r.jsonl", lines(run)))
    uneven = {**VLLM, "itls": [[]]}
    assert "has 1 itls for 3 output_lens" in refused(write(tmp_path / "r.json", json.dumps(uneven)))


def test_sglang_bench(tmp_path: Path) -> None:
    run = {
        "tag": None, "backend": "sglang", "dataset_name": "random", "request_rate": 4.0,
        "completed": 2, "total_output_tokens": 7, "total_output_tokens_retokenized": 7,
        "input_lens": [10, 20], "output_lens": [2, 5], "ttfts": [0.5, 0.5],
        "itls": [[0.5], [0.25] * 4], "generated_texts": ["", ""], "errors": ["", ""],
    }  # fmt: skip
    found = read(tmp_path, "r.jsonl", lines(run, run))
    assert "arrival_time" not in found.frame.columns  # it does not say when a request started
    assert rows(found, "actual_length", "actual_time") == [(2, 1.0), (5, 1.5)] * 2
    assert any("--disable-ignore-eos" in note for note in found.notes)


def metric(value: Any, unit: str = "tokens") -> dict[str, Any]:
    return {"value": value, "unit": unit}


def aiperf(number: int, metrics: dict[str, Any], error: Any = None, **meta: Any) -> dict[str, Any]:
    start = 1_760_000_000_000_000_000 + number * 500_000_000
    metadata = {
        "session_num": number, "x_request_id": f"r{number}", "x_correlation_id": f"s{number}",
        "conversation_id": "c", "turn_index": 0, "request_start_ns": start,
        "request_end_ns": start + 3_000_000_000, "was_cancelled": False,
    }  # fmt: skip
    return {"metadata": {**metadata, **meta}, "metrics": metrics, "error": error}


def test_aiperf(tmp_path: Path) -> None:
    whole = {
        "input_sequence_length": metric(550),
        "output_sequence_length": metric(30),
        "output_token_count": metric(10),
        "reasoning_token_count": metric(20),
        "request_latency": metric(2500.0, "ms"),
    }
    apart = {key: whole[key] for key in ("output_token_count", "reasoning_token_count")}
    cancelled = {"code": 499, "type": "RequestCancellationError", "message": "secret"}
    found = read(
        tmp_path,
        "profile_export.jsonl",
        lines(
            aiperf(0, whole, turn_index=2),
            aiperf(1, apart),
            aiperf(2, {"error_isl": metric(550)}, cancelled, was_cancelled=True),
            aiperf(3, {"output_sequence_length": metric(4)}, cancelled),
            aiperf(4, {"output_sequence_length": metric(5)}, {"code": 500, "type": "X"}),
        ),
    )
    assert rows(found, "request_id", "session_id", "turn", "actual_length", "actual_time") == [
        ("r0", "s0", 2, 30, 2.5),
        ("r1", "s1", 0, 30, 3.0),
        ("r3", "s3", 0, 4, 3.0),
        ("r4", "s4", 0, 5, 3.0),
    ]
    assert found.frame["arrival_time"].to_list() == [1.76e9, 1.76e9 + 0.5, 1.76e9 + 1.5, 1.76e9 + 2]
    assert found.frame["finish_reason"].to_list() == ["stop", "stop", "abort", "error"]
    assert found.left_out == {"failed or cancelled requests without a count of tokens": 1}
    assert "reasoning_token_count is counted apart, and was added" in found.notes
    assert not any("secret" in note for note in found.notes)


def batch(number: int, body: Any, **over: Any) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": f"x{number}", "body": body}
    record = {"id": f"b{number}", "custom_id": f"q{number}", "response": response, "error": None}
    return {**record, **over}


def chat(reason: str, tokens: int, choices: int = 1) -> dict[str, Any]:
    usage = {
        "prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens,
        "completion_tokens_details": {"reasoning_tokens": tokens // 2},
    }  # fmt: skip
    choice = {"index": 0, "message": {"role": "assistant", "content": "hm"}}
    return {
        "id": "c", "object": "chat.completion", "created": 1_770_000_000, "model": "gpt",
        "choices": [{**choice, "finish_reason": reason}] * choices, "usage": usage,
    }  # fmt: skip


def test_openai_batch(tmp_path: Path) -> None:
    response = {
        "object": "response", "created_at": 1_770_000_005, "model": "gpt", "max_output_tokens": 64,
        "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 9, "output_tokens": 64, "total_tokens": 73},
    }  # fmt: skip
    embedding = {"object": "list", "data": [{"object": "embedding"}], "usage": {"prompt_tokens": 2}}
    found = read(
        tmp_path,
        "out.jsonl",
        lines(
            batch(0, chat("tool_calls", 20)),
            batch(1, chat("content_filter", 5)),
            batch(2, response),
            batch(3, None, response=None, error={"code": "batch_expired"}),
            batch(4, chat("stop", 50, choices=2)),
            batch(5, embedding),
            batch(6, {"error": {}}, response={"status_code": 400, "body": {"error": {}}}),
        ),
    )
    assert rows(found, "request_id", "prompt_length", "max_length", "actual_length") == [
        ("q0", 7, None, 20),  # reasoning is inside of completion_tokens, and not added
        ("q1", 7, None, 5),
        ("q2", 9, 64, 64),
    ]
    assert found.frame["finish_reason"].to_list() == ["stop", "abort", "length"]
    assert found.frame["arrival_time"].to_list() == [1.77e9, 1.77e9, 1.77e9 + 5]
    assert sum(found.left_out.values()) == 4
    assert len(found.left_out) == 3


UNFINISHED: dict[str, dict[str, Any]] = {
    "failed": {"status": "failed", "usage": None, "error": {"code": "server_error"}},
    "no usage": {**chat("stop", 3), "usage": None},
    "in progress": {"status": "in_progress", "created_at": 1_770_000_000},
    "queued, counted so far": {"status": "queued", "usage": {"output_tokens": 0}},
}


@pytest.mark.parametrize("case", UNFINISHED)
def test_openai_batch_leaves_out_what_failed_or_goes_on(tmp_path: Path, case: str) -> None:
    log = lines(batch(0, chat("stop", 20)), batch(1, UNFINISHED[case]))
    found = read(tmp_path, "out.jsonl", log)
    assert rows(found, "request_id", "actual_length") == [("q0", 20)]
    why = "failed, expired or unfinished requests without a count of tokens"
    assert found.left_out == {why: 1}
    assert any(f"left out: 1 {why}" in note for note in found.notes)


def test_an_answer_without_its_count_is_a_bad_row(tmp_path: Path) -> None:
    body = {"choices": [], "usage": {"prompt_tokens": 3}}
    assert "line 1: has no usage" in refused(write(tmp_path / "o.jsonl", lines(batch(0, body))))


def spend(number: int, **over: Any) -> dict[str, Any]:
    record = {
        "request_id": f"r{number}", "call_type": "acompletion", "api_key": "hashed", "spend": 0.1,
        "total_tokens": 110, "prompt_tokens": 100, "completion_tokens": 10,
        "startTime": f"2026-02-03 04:05:0{number}.5", "endTime": f"2026-02-03 04:05:0{number + 2}",
        "model": "qwen", "user": "u", "end_user": "", "session_id": "s", "status": "success",
        "cache_hit": "False", "metadata": {"tags": 1},
    }  # fmt: skip
    return {**record, **over}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_litellm(tmp_path: Path, suffix: str) -> None:
    records = [
        spend(0, end_user="e"),
        spend(1, completion_tokens=0, status="failure"),
        spend(2, call_type="aembedding", completion_tokens=0),
        spend(3, cache_hit="True"),
    ]
    path = tmp_path / f"spend.{suffix}"
    if suffix == "parquet":
        times = pl.col("startTime", "endTime").str.to_datetime(time_zone="UTC")
        pl.DataFrame(records).with_columns(times).write_parquet(path)
    else:
        text = {"csv": table(*records), "jsonl": lines(*records), "json": json.dumps(records)}
        write(path, text[suffix])
    found = read_history(path)
    assert found.formats == ["a LiteLLM spend log"]
    start = 1_770_091_500.5  # 2026-02-03 04:05:00.5 UTC
    assert rows(found, "client_id", "session_id", "arrival_time", "actual_time") == [
        ("e", "s", start, 1.5),
        ("u", "s", start + 1, None),
    ]
    assert found.frame["finish_reason"].to_list() == ["stop", "error"]
    assert sum(found.left_out.values()) == 2
    assert "metadata" in found.ignored
    assert "api_key" not in found.ignored


def test_litellm_with_request_and_response(tmp_path: Path) -> None:
    stored = spend(
        0,
        response={"choices": [{"finish_reason": "length"}]},
        proxy_server_request={"max_tokens": 10, "temperature": 0.5},
    )
    found = read(tmp_path, "spend.csv", table(stored))
    assert rows(found, "max_length", "finish_reason", "temperature") == [(10, "length", 0.5)]


def test_litellm_responses_and_several_choices(tmp_path: Path) -> None:
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    two = {"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}
    asked = {"max_output_tokens": 10}
    log = [
        spend(0, call_type="aresponses", response=cut, proxy_server_request=asked),
        spend(1, call_type="aresponses", response={"status": "completed"}),
        spend(2, response=two),
        spend(3, model_parameters={"n": 3}),
        spend(4, call_type="aresponses", response={"status": "in_progress"}),
    ]
    found = read(tmp_path, "spend.jsonl", lines(*log))
    assert rows(found, "request_id", "max_length", "finish_reason") == [
        ("r0", 10, "length"),
        ("r1", None, "stop"),
    ]
    assert found.left_out == {
        "requests with several choices, whose tokens are counted together": 2,
        "unfinished requests, whose tokens are not all counted": 1,
    }
    odd = spend(0, response={"status": "incomplete", "incomplete_details": None})
    assert "'incomplete'" in refused(write(tmp_path / "spend.jsonl", lines(odd)))


def test_langfuse_from_clickhouse(tmp_path: Path) -> None:
    """Rows of version 3's table, as ``FORMAT JSONEachRow`` writes them."""
    row = {
        "id": "o1", "trace_id": "t", "project_id": "p", "type": "GENERATION",
        "start_time": "2026-02-02 02:40:00.500", "end_time": "2026-02-02 02:40:02.000",
        "level": "DEFAULT", "provided_model_name": "gpt", "internal_model_id": None,
        "model_parameters": '{"max_tokens": "64"}',
        "usage_details": {"input": "100", "output": "30", "total": "130"},
        "user_id": "ann", "session_id": "chat-1", "is_deleted": 0,
    }  # fmt: skip
    log = lines(row, {**row, "id": "o2", "is_deleted": 1}, {**row, "id": "o3", "type": "AGENT"})
    found = read(tmp_path, "observations.jsonl", log)
    assert found.formats == ["a Langfuse export"]
    columns = ("request_id", "client_id", "session_id", "prompt_length", "max_length")
    assert rows(found, *columns) == [("o1", "ann", "chat-1", 100, 64)]
    assert rows(found, "actual_length", "actual_time") == [(30, 1.5)]
    assert found.left_out == {
        "deleted observations": 1,
        "observations that are no generations": 1,
    }


def otlp(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        inner = {"arrayValue": {"values": [{"stringValue": item} for item in value]}}
    else:
        inner = {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
    return {"key": name, "value": inner}


GEN_AI = {
    "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.max_tokens": 99,
    "gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 34,
    "gen_ai.usage.reasoning.output_tokens": 30, "gen_ai.response.finish_reasons": ["end_turn"],
    "gen_ai.conversation.id": "c1",
}  # fmt: skip
START = 1_770_000_000_000_000_000


def spans() -> list[dict[str, Any]]:
    """Return a chat, the agent above it (which counts its tokens again), a query, a failure."""
    agent = {**GEN_AI, "gen_ai.operation.name": "invoke_agent"}
    failed = {k: v for k, v in GEN_AI.items() if "usage" not in k} | {"error.type": "timeout"}
    return [
        {"name": "chat m", "attributes": GEN_AI},
        {"name": "invoke_agent", "attributes": agent},
        {"name": "SELECT", "attributes": {"db.system": "postgresql"}},
        {"name": "chat m", "attributes": failed},
    ]


def test_otel_otlp_json(tmp_path: Path) -> None:
    inner = [
        {
            "traceId": "t", "spanId": "s", "name": span["name"], "kind": 3,
            "startTimeUnixNano": str(START), "endTimeUnixNano": str(START + 2_500_000_000),
            "attributes": [otlp(*item) for item in span["attributes"].items()],
            "status": {"code": 0},
        }
        for span in spans()
    ]  # fmt: skip
    export = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": inner}]}]}
    for name, text in (("t.jsonl", lines(export)), ("t.json", json.dumps(export, indent=2))):
        found = read(tmp_path, name, text)
        assert rows(found, "model", "session_id", "prompt_length", "max_length") == [
            ("m", "c1", 12, 99)
        ]
        # Reasoning is inside of the output tokens, by the conventions.
        assert rows(found, "actual_length", "actual_time", "arrival_time") == [(34, 2.5, 1.77e9)]
        assert sum(found.left_out.values()) == 3


def test_otel_flat_spans(tmp_path: Path) -> None:
    times = {"start_time": "2026-02-02T02:40:00.5Z", "end_time": "2026-02-02T02:40:02Z"}
    flat = [
        {**span, **times, "context": {}, "status": {"status_code": "UNSET"}} for span in spans()
    ]
    old = {
        "name": "llm_request", "start_time_unix_nano": START, "end_time_unix_nano": START + 10**9,
        "attributes": {
            "gen_ai.usage.prompt_tokens": 5, "gen_ai.usage.completion_tokens": 6,
            "gen_ai.request.id": "cmpl-1",
        },
        "status": {"code": "ERROR"},
    }  # fmt: skip
    found = read(tmp_path, "spans.jsonl", lines(*flat, old))
    assert rows(found, "request_id", "actual_length", "actual_time", "finish_reason") == [
        (None, 34, 1.5, "stop"),
        ("cmpl-1", 6, 1.0, "error"),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_otel_finish_reasons_as_json_text(tmp_path: Path, suffix: str) -> None:
    log = [
        {"name": "chat", "start_time_unix_nano": START + i, "end_time_unix_nano": START + 10**9,
         "attributes": {**GEN_AI, "gen_ai.response.finish_reasons": reasons}}
        for i, reasons in enumerate(['["length"]', '["stop", "length"]', "[]", "max_tokens"])
    ]  # fmt: skip
    found = read(tmp_path, f"s.{suffix}", table(*log) if suffix == "csv" else lines(*log))
    assert found.frame["finish_reason"].to_list() == ["length", "stop", "length"]
    assert list(found.left_out.values()) == [1]
    log[0]["attributes"]["gen_ai.response.finish_reasons"] = "[length"
    damaged = write(tmp_path / "d.jsonl", lines(*log))
    assert "line 1: gen_ai.response.finish_reasons is no list" in refused(damaged)


def test_langfuse_caps(tmp_path: Path) -> None:
    base = {"traceId": "t", "startTime": "2026-01-01T00:00:00Z", "usageDetails": {"output": 4}}
    caps: list[Any] = [9.0, "9", "9.0", 9, None, "free text", 9.5, {"a": 1}]
    log = [
        {**base, "id": f"o{i}", "modelParameters": {"max_tokens": c}} for i, c in enumerate(caps)
    ]
    found = read(tmp_path, "l.jsonl", lines(*log))
    assert found.frame["max_length"].to_list() == [9] * 4 + [None] * 4
    assert any("caps that are no whole number were not read" in note for note in found.notes)
    assert not any("caps that" in note for note in read(tmp_path, "l.jsonl", lines(*log[:5])).notes)


def test_langfuse_from_the_page_and_from_storage(tmp_path: Path) -> None:
    usage = {"input": 100, "input_cached_tokens": 20, "output": 5, "output_reasoning_tokens": 30,
             "total": 155}  # fmt: skip
    page = {
        "id": "o1", "traceId": "t", "type": "GENERATION", "name": "secret prompt",
        "startTime": "2026-02-02T02:40:00.500Z", "endTime": "2026-02-02T02:40:02.000Z",
        "model": "gpt", "modelParameters": {"max_tokens": 64, "temperature": 0.2},
        "usageDetails": usage, "level": "DEFAULT", "sessionId": "s", "userId": "u",
    }  # fmt: skip
    inside = {**usage, "total": 105}  # here the total shows that the parts are inside
    storage = {
        "id": "o2", "trace_id": "t", "type": "GENERATION", "start_time": "2026-02-02 02:40:00.5",
        "end_time": "2026-02-02 02:40:02.0", "provided_model_name": "gpt",
        "model_parameters": {"max_tokens": 64}, "usage_details": inside, "level": "ERROR",
        "session_id": "s", "user_id": "u",
    }  # fmt: skip
    span = {**page, "type": "SPAN"}
    for name, text in (
        ("l.jsonl", lines(page, span)),
        ("l.json", json.dumps({"data": [page, span], "meta": {}})),
        ("l.csv", table(page, span)),
    ):
        found = read(tmp_path, name, text)
        columns = ("prompt_length", "actual_length", "max_length", "actual_time", "session_id")
        assert rows(found, *columns) == [(120, 35, 64, 1.5, "s")]
        assert found.left_out == {"observations that are no generations": 1}
        assert any("output_reasoning_tokens counted apart" in note for note in found.notes)
    found = read(tmp_path, "s.jsonl", lines(storage))
    assert rows(found, "prompt_length", "actual_length", "finish_reason") == [(100, 5, "error")]
    assert found.frame["arrival_time"].to_list() == [1_770_000_000.5]


def test_multi_turn_trace(tmp_path: Path) -> None:
    turn = {"input_length": 9, "output_length": 3, "hash_ids": [1]}
    first = {"session_id": "a", **turn, "timestamp": 1500.0, "group_id": 7}
    trace = lines(
        first,
        {"session_id": "b", **turn, "timestamp": 9000.0},
        {"session_id": "a", **turn, "delay": 250.5},
        {"session_id": "c", **turn},
        {"session_id": "a", **turn, "delay": 1000.0},
    )
    path = write(tmp_path / "t.jsonl", trace)
    assert "line 4: timestamp is missing, and so is a delay" in refused(path)
    found = read_history(path, on_bad_rows="skip")
    # A delay counts from an end that the trace does not say: no arrival time is made up.
    assert rows(found, "session_id", "turn", "arrival_time") == [
        ("a", 0, 1.5), ("b", 0, 9.0), ("a", 1, None), ("a", 2, None)
    ]  # fmt: skip
    assert found.frame["prefix_hashes"].to_list() == [[1]] * 4
    assert found.ignored == ["group_id"]


def test_bailian(tmp_path: Path) -> None:
    base = {"input_length": 20, "output_length": 3, "type": "text", "hash_ids": [5, 6]}
    trace = lines(
        {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.25, "turn": 1, **base},
        {"chat_id": 2, "parent_chat_id": 1, "timestamp": 61.5, "turn": 2, **base},
        {"chat_id": 3, "parent_chat_id": 2, "timestamp": 90.0, "turn": 3, **base},
        {"chat_id": 9, "parent_chat_id": -1, "timestamp": 91.0, "turn": 1, **base},
    )
    found = read(tmp_path, "t.jsonl", trace)
    assert rows(found, "session_id", "turn", "arrival_time") == [
        ("1", 0, 0.25), ("1", 1, 61.5), ("1", 2, 90.0), ("9", 0, 91.0)
    ]  # fmt: skip
    assert any("16 tokens" in note for note in found.notes)


USAGE = """ts,model_name,conversation_id,promptTokens,completionTokens,max_new_tokens,finishReason,\
latency_ms,region
2026-01-05T10:00:00Z,big,c1,11,64,64,MAX_TOKENS,1500,eu
2026-01-05T10:00:01Z,small,c2,12,7,64,end_turn,200,us
"""


def test_a_flat_log_is_read_with_every_column_that_has_a_place(tmp_path: Path) -> None:
    found = read(tmp_path, "usage.csv", USAGE)
    columns = ("model", "session_id", "prompt_length", "max_length", "actual_length", "actual_time")
    assert rows(found, *columns) == [
        ("big", "c1", 11, 64, 64, 1.5), ("small", "c2", 12, 64, 7, 0.2)
    ]  # fmt: skip
    assert found.frame["finish_reason"].to_list() == ["length", "stop"]
    assert found.frame["arrival_time"].diff().to_list() == [None, 1.0]
    assert found.ignored == ["region"]
    assert "completionTokens → actual_length" in " ".join(found.notes)
    assert "latency_ms (milliseconds) → actual_time" in " ".join(found.notes)


HEADER = "timestamp,prompt_tokens,completion_tokens"
UNPLAIN = {
    "only one column": ("completion_tokens\n5\n", "rename 'completion_tokens' to 'actual_length'"),
    "two for one": (f"{HEADER},output_tokens\n1,2,3,4\n", "'prompt_tokens' to 'prompt_length'"),
    "several requests a row": (f"{HEADER},num_requests\n1,2,3,4\n", "count several requests each"),
    "unit of the times": (f"{HEADER}\n0,2,3\n90000,2,3\n", "rename it to 'timestamp_s' or"),
    "unit of the durations": (f"{HEADER},latency\n1,2,90,90000000\n", "unit of 'latency' cannot"),
    "a time that is none": (f"{HEADER}\nnoon,2,3\n", "line 2: timestamp is no time"),
}


@pytest.mark.parametrize("case", UNPLAIN)
def test_a_flat_log_that_is_not_plain_is_refused(tmp_path: Path, case: str) -> None:
    content, expected = UNPLAIN[case]
    assert expected in refused(write(tmp_path / "u.csv", content), HistoryError)


ENDS: dict[str, tuple[dict[str, Any], str, str, float]] = {
    # more columns, the names of start and end, how many of their units a second has
    "block hashes": ({"hash_ids": [1]}, "start_time", "end_time", 1e3),
    "no hashes": ({}, "start_time", "end_time", 1e3),
    "seconds": ({}, "start_time", "end_time", 1.0),
    "start says it": ({}, "start_time_ms", "end_time", 1e3),
    "end says it": ({}, "start_time", "end_time_ms", 1e3),
}


@pytest.mark.parametrize("gap", [0.05, 7.0, 900.0])
@pytest.mark.parametrize("case", ENDS)
def test_start_and_end_are_scaled_alike(tmp_path: Path, case: str, gap: float) -> None:
    more, start, end, scale = ENDS[case]
    log = [
        {start: i * gap * scale, end: (i * gap + 4.0) * scale, "model": "m",
         "input_length": 30, "output_length": 100, **more}
        for i in range(30)
    ]  # fmt: skip
    path = write(tmp_path / "u.jsonl", lines(*log))
    found = read_history(path).frame
    assert found["arrival_time"].to_list() == pytest.approx([i * gap for i in range(30)])
    assert found["actual_time"].to_list() == pytest.approx([4.0] * 30)
    some = read_history(path, columns=["arrival_time"]).frame  # by whatever is asked for
    assert some["arrival_time"].to_list() == found["arrival_time"].to_list()


def test_ends_since_1970_say_their_unit_and_a_stated_duration_comes_first(tmp_path: Path) -> None:
    log = {"start_time_ms": 1_770_000_000_000, "end_time": 1_770_000_300, "input_tokens": 5,
           "output_tokens": 100}  # fmt: skip
    found = read(tmp_path, "u.jsonl", lines(log))
    assert rows(found, "arrival_time", "actual_time") == [(1.77e9, 300.0)]
    found = read(tmp_path, "u.jsonl", lines({**log, "latency_ms": 1500}))
    assert found.frame["actual_time"].to_list() == [1.5]
    assert found.ignored == ["end_time"]


@pytest.mark.parametrize("cell", ["x", "", "NaN", "inf", "-1", "1" * 400])
@pytest.mark.parametrize("column", ["start_time", "end_time", "output_tokens"])
def test_a_damaged_row_does_not_decide_the_unit(tmp_path: Path, column: str, cell: str) -> None:
    log: list[dict[str, Any]] = [
        {"start_time": i * 9000, "end_time": i * 9000 + 3000, "input_tokens": 5,
         "output_tokens": 100}
        for i in range(9)
    ]  # fmt: skip
    log[4][column] = cell
    found = read(tmp_path, "u.csv", table(*log), on_bad_rows="skip").frame
    assert found["actual_time"].to_list().count(3.0) >= 8


def test_ends_of_no_unit_are_refused(tmp_path: Path) -> None:
    header = "start_time,end_time,prompt_tokens,completion_tokens\n"
    path = write(tmp_path / "u.csv", header + "0,90000000,2,90\n")
    assert "rename it to 'start_time_s' or" in refused(path)


def test_reasoning_is_added_where_the_total_shows_that_it_is_apart(tmp_path: Path) -> None:
    header = "timestamp,prompt_tokens,completion_tokens,reasoning_tokens,total_tokens\n"
    found = read(tmp_path, "u.csv", header + "0,10,5,100,115\n1,10,105,100,115\n")
    assert found.frame["actual_length"].to_list() == [105, 105]
    assert any("counted apart" in note for note in found.notes)


def test_nested_tokens_of_no_known_log_are_pointed_at(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", lines({"result": {"usage": {"completion_tokens": 5}}}))
    assert "may be in 'result.usage.completion_tokens'" in refused(path)


FOREIGN: dict[str, Any] = {
    "aiperf": aiperf(0, {"output_sequence_length": metric(4)}),
    "openai-batch": batch(0, chat("stop", 4)),
    "litellm": spend(0),
    "otel": {"name": "chat", "start_time_unix_nano": START, "attributes": GEN_AI},
    "langfuse": {
        "id": "o",
        "traceId": "t",
        "startTime": "2026-01-01",
        "usageDetails": {"output": 4},
    },
    "multi-turn": {"session_id": "a", "timestamp": 0, "output_length": 3, "delay": None},
    "bailian": {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "output_length": 3},
    "sglang-bench": {"input_lens": [1], "output_lens": [2], "ttfts": [0.1], "itls": [[0.1]]},
    "vllm-bench": VLLM,
    "genai-perf": {
        "experiments": [
            {
                "requests": [
                    {
                        "timestamp": START,
                        "request_inputs": {"payload": "{}"},
                        "response_timestamps": [START + 10**9],
                        "response_outputs": [
                            {"response": '{"usage": {"completion_tokens": 4}, "choices": []}'}
                        ],
                    }
                ]
            }
        ]
    },
    "kv-cache-tester": {
        "id": "t",
        "block_size": 64,
        "requests": [{"t": 0.0, "in": 9, "out": 4, "hash_ids": [1]}],
    },
    "kv-cache-tester-result": {
        "context_size": 9,
        "output_tokens": 4,
        "launch_time": 1.7e9,
        "finish_time": 1.7e9 + 2,
        "ttft": 0.1,
    },
    "usage": {"ts": 5.5, "prompt_tokens": 3, "completion_tokens": 4},
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_log_is_of_its_own_format_alone(tmp_path: Path, name: str) -> None:
    beginning = sample(write(tmp_path / "log.jsonl", lines(FOREIGN[name])))
    assert recognise(beginning) is FORMATS[name]
    others = [form.name for form in FORMATS.values() if form.recognises(beginning)]
    assert others in ([name], [name, "usage"])  # a flat log is tried last


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_record_is_a_bad_row_and_not_a_traceback(tmp_path: Path, name: str) -> None:
    good = FOREIGN[name]
    damaged: list[Any] = [7, None, [], {}]
    damaged += [{key: value for key, value in good.items() if key != gone} for gone in good]
    damaged += [
        {**good, key: wrong} for key in good for wrong in ("x", -1, [1], {"a": {}}, True, 10**30)
    ]
    path = write(tmp_path / "log.jsonl", lines(*[good] * 3, *damaged))
    found = read_history(path, on_bad_rows="skip")
    assert found.frame.height >= 3
    assert found.frame["actual_length"].min() >= 0
    for problem in found.problems:
        assert "\n" not in problem


def test_foreign_logs_in_a_folder_beside_what_is_no_log(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(FOREIGN["aiperf"]))
    write(tmp_path / "b.json", json.dumps(VLLM))
    write(tmp_path / "c.csv", "actual_length\n5\n")
    write(tmp_path / "settings.json", '{"share": 0.1}')
    found = read_history(tmp_path)
    assert found.frame["actual_length"].to_list() == [4, 3, 9, 0, 5]
    assert "passed over settings.json: no log that is known" in found.notes
    message = refused(write(tmp_path / "settings.json", '{"share": 0.1}'))
    assert "no column 'actual_length'" in message


def test_columns_that_were_asked_for_are_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "spend.csv", table(spend(0)))
    frame = read_history(path, columns=["turn", "actual_length"]).frame
    assert frame.rows() == [(None, 10)]


def test_one_damaged_span_or_request_is_one_bad_row(tmp_path: Path) -> None:
    good = {"startTimeUnixNano": str(START), "attributes": [otlp(*i) for i in GEN_AI.items()]}
    bad = {**good, "startTimeUnixNano": "noon"}
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [good, bad, good]}]}]}
    path = write(tmp_path / "t.json", json.dumps(export))
    assert "1 bad row (record 1, request 2: start is no time)" in refused(path)
    assert read_history(path, on_bad_rows="skip").frame.height == 2
    run = {**VLLM, "ttfts": [0.5, "soon", 0.0]}
    path = write(tmp_path / "r.json", json.dumps(run))
    assert "1 bad row (record 1, request 2: ttfts is not a number)" in refused(path)


def test_a_column_that_comes_late_is_not_lost(tmp_path: Path) -> None:
    first = {"ts": 1.5, "prompt_tokens": 3, "completion_tokens": 4}
    late = {**first, "stop_reason": "max_tokens", "region": "eu", "output_len": 9}
    found = read(tmp_path, "u.jsonl", lines(*[first] * 30, late))
    assert found.frame["finish_reason"].to_list() == ["stop"] * 30 + ["length"]
    assert sorted(found.ignored) == ["output_len", "region"]


@pytest.mark.parametrize("name", ["h.json", "h.jsonl"])
def test_numbers_beyond_any_are_one_line(tmp_path: Path, name: str) -> None:
    for digits in (400, 5000):
        record = json.dumps(FOREIGN["litellm"]).replace("100", "1" * digits)
        refused(write(tmp_path / name, record))
        times = json.dumps(FOREIGN["usage"]).replace("5.5", "1" * digits)
        refused(write(tmp_path / name, times))
