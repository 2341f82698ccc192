"""GenAI-Perf, kv-cache-tester, compressed logs, and formats of other packages."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from history_help import refused, write

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.history import formats, read_history
from sagellm_lifetime.history.convert import convert
from sagellm_lifetime.history.formats import all_formats, format_named, recognise, registered
from sagellm_lifetime.history.prequential import relative_times
from sagellm_lifetime.history.records import sample

START = 1_770_000_000_000_000_000


def event(choices: Any, **more: Any) -> str:
    chunk = {"id": "c", "object": "chat.completion.chunk", "model": "qwen", "choices": choices}
    return f"data: {json.dumps(chunk | more)}\n\n"


def genai_request(number: int, tokens: int | None, reason: str = "stop") -> dict[str, Any]:
    """Return a request as perf_analyzer writes it, with the answer as a stream."""
    usage = {"prompt_tokens": 40, "completion_tokens": tokens, "total_tokens": 40 + (tokens or 0)}
    outputs = [
        event([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]),
        event([{"index": 0, "delta": {"content": "a secret"}, "finish_reason": None}])
        + event([{"index": 0, "delta": {}, "finish_reason": reason}]),
        *([event([], usage=usage)] if tokens is not None else []),
        "data: [DONE]\n\n",
    ]
    start = START + number * 500_000_000
    payload = {"messages": [{"role": "user", "content": "a secret"}], "model": "qwen"}
    return {
        "timestamp": start,
        "request_inputs": {"payload": json.dumps(payload | {"max_tokens": 64, "stream": True})},
        "response_timestamps": [start + i * 500_000_000 for i in range(1, len(outputs) + 1)],
        "response_outputs": [{"response": text} for text in outputs],
    }


def genai(*requests: dict[str, Any]) -> str:
    experiment = {"experiment": {"mode": "concurrency", "value": 2}, "requests": list(requests)}
    export = {"service_kind": "openai", "endpoint": "v1/chat/completions"}
    return json.dumps(export | {"experiments": [experiment, experiment]})


def test_genai_perf(tmp_path: Path) -> None:
    export = genai(genai_request(0, 12), genai_request(1, 64, "length"), genai_request(2, None))
    history = read_history(write(tmp_path / "profile_export.json", export))
    assert history.formats == ["a GenAI-Perf profile_export.json"]
    columns = ("prompt_length", "max_length", "actual_length", "actual_time", "finish_reason")
    assert history.frame.select(columns).rows() == [
        (40, 64, 12, 2.0, "stop"), (40, 64, 64, 2.0, "length")
    ] * 2  # fmt: skip
    assert history.frame["arrival_time"].to_list()[:2] == [1.77e9, 1.77e9 + 0.5]
    assert history.frame["model"].unique().to_list() == ["qwen"]
    assert history.left_out == {"requests without a count of tokens": 2}
    assert "secret" not in f"{history}"


def test_genai_perf_without_counts_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "profile_export.json", genai(genai_request(0, None)))
    assert "it holds no token counts: run it again with usage in the answers" in refused(path)
    statistics = {"unit": "tokens", "avg": 12.5, "p50": 12}
    names = ("request_throughput", "request_latency", "output_sequence_length")
    write(path, json.dumps(dict.fromkeys(names, statistics) | {"input_config": {}}))
    assert "it holds statistics of a run" in refused(path)


def agent(number: int, scope: str, **more: Any) -> dict[str, Any]:
    request = {"type": "s", "model": "m", "hash_ids": [1, 2], "input_types": ["text"]}
    inner = [{**request, "t": 0.0, "in": 30, "out": 4, "stop": "end_turn"}]
    return {
        "id": f"trace_{number}", "models": ["m"], "block_size": 64, "tool_tokens": 9,
        "system_tokens": 1, "hash_id_scope": scope,
        "requests": [
            {**request, "t": 0.0, "in": 100, "out": 5, "stop": "tool_use", "api_time": 1.5},
            {"t": 10.0, "type": "subagent", "requests": inner},
            {**request, "t": 20.0, "in": 200, "out": 7, "stop": "max_tokens", **more},
            {**request, "t": 30.0, "in": 210, "out": 8, "stop": ""},
        ],
    }  # fmt: skip


def test_kv_cache_tester_traces(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"trace_{number}.json", json.dumps(agent(number, "local")))
    history = read_history(tmp_path)
    columns = ("session_id", "turn", "arrival_time", "prompt_length", "actual_length")
    assert history.frame.select(columns).rows()[:4] == [
        ("trace_0", 0, 0.0, 100, 5),
        ("trace_0/1", 0, 0.0, 30, 4),
        ("trace_0", 1, 20.0, 200, 7),
        ("trace_0", 2, 30.0, 210, 8),
    ]
    assert history.frame["finish_reason"].to_list()[:4] == ["stop", "stop", "length", "stop"]
    assert history.frame["actual_time"].to_list()[:2] == [1.5, None]
    blocks = history.frame["prefix_hashes"].to_list()
    assert blocks[0] == blocks[2]
    assert len({tuple(ids) for ids in blocks}) == 4  # a session has blocks of its own
    assert relative_times(history.frame)
    shared = write(tmp_path / "shared.jsonl", json.dumps(agent(0, "global")) + "\n")
    assert read_history(shared).frame["prefix_hashes"].to_list() == [[1, 2]] * 4
    odd = write(tmp_path / "odd.json", json.dumps(agent(0, "global", t="noon")))
    assert "request 3: t is not a number" in refused(odd)


def test_kv_cache_tester_results(tmp_path: Path) -> None:
    result = (
        "request_id,phase_id,cache_hit_rate,context_size,cached_tokens,output_tokens,ttft,ttlt,"
        "total_time,launch_time,finish_time,token_timestamps\n"
        'r0,c5,50,8000,3840,256,0.1,2.9,2.9,1766198448.25,1766198451.5,"[1.5, 2.5]"\n'
    )
    history = read_history(write(tmp_path / "detailed_results.csv", result))
    assert history.frame.select("arrival_time", "actual_time", "actual_length").rows() == [
        (1766198448.25, 3.25, 256)
    ]
    assert any("asks for fixed lengths" in note for note in history.notes)


def test_multi_turn_with_messages(tmp_path: Path) -> None:
    turn = {"messages": [{"role": "user", "content": "a secret"}]}
    lines = [
        {"session_id": "a", **turn, "output_length": 50, "timestamp": 0},
        {"session_id": "a", **turn, "output_length": 30, "timestamp": 2000},
        {"session_id": "b", **turn, "output_length": 512, "delay": 9, "message_mode": "delta"},
    ]
    path = write(tmp_path / "t.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    history = read_history(path)
    assert history.frame.select("turn", "arrival_time", "actual_length").rows() == [
        (0, 0.0, 50), (1, 2.0, 30)
    ]  # fmt: skip
    assert list(history.left_out.values()) == [1]
    assert history.ignored == []


TEXTS = {
    "h.csv": "actual_length,model\n5,a\n7,b\n",
    "h.jsonl": '{"actual_length": 5, "model": "a"}\n{"actual_length": 7, "model": "b"}\n',
    "h.json": '[{"actual_length": 5, "model": "a"},\n {"actual_length": 7, "model": "b"}]',
    "u.csv": "ts,model,prompt_tokens,completion_tokens\n0,a,1,5\n1,b,1,7\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packing", ["gz", "zst", "bz2", "xz"])
def test_every_text_format_is_read_packed(tmp_path: Path, name: str, packing: str) -> None:
    text = TEXTS[name].encode()
    if packing == "zst":
        zstandard = pytest.importorskip("zstandard", reason="no zstandard to write a file with")
        packed = zstandard.compress(text)
    else:
        packed = {"gz": gzip, "bz2": bz2, "xz": lzma}[packing].compress(text)
    frame = read_history(write(tmp_path / f"{name}.{packing}", packed)).frame
    assert frame.select("actual_length", "model").rows() == [(5, "a"), (7, "b")]


@pytest.mark.parametrize("name", TEXTS)
def test_zstd_needs_no_package(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8878: magic, a frame header of one segment, one raw block that is the last."""
    text = TEXTS[name].encode()
    header = b"\x28\xb5\x2f\xfd" + bytes([0x20, len(text)])
    block = ((len(text) << 3) | 1).to_bytes(3, "little")
    monkeypatch.setattr("sagellm_lifetime.history.streams.find_spec", lambda name: None)
    frame = read_history(write(tmp_path / f"{name}.zst", header + block + text)).frame
    assert frame.select("actual_length", "model").rows() == [(5, "a"), (7, "b")]


OTHER = """
from sagellm_lifetime.history.formats import Format

class Chat(Format):
    name = "chat"
    title = "a chat log"
    used = ("who", "timestamp", "prompt_tokens", "completion_tokens")

    @classmethod
    def recognises(cls, sample):
        return sample.has("who", "completion_tokens")

    def rows(self, record):
        return [{"client_id": record["who"], "actual_length": record["completion_tokens"]}]

class Half(Format):
    name = "half"
"""
ENTRIES = """[sagellm_lifetime.formats]
chat = other_logs:Chat
half = other_logs:Half
gone = no_such_module:Gone
odd = other_logs:OTHER_NAME
usage = other_logs:Chat
misnamed = other_logs:Chat
"""


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "other_logs-1.2.dist-info"
    info.mkdir(parents=True)
    write(site / "other_logs.py", OTHER + "OTHER_NAME = 5\n")
    write(info / "METADATA", "Metadata-Version: 2.1\nName: other-logs\nVersion: 1.2\n")
    write(info / "entry_points.txt", ENTRIES)
    monkeypatch.syspath_prepend(str(site))
    registered.cache_clear()
    yield
    registered.cache_clear()


def test_formats_of_other_packages(other_package: None, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        known = all_formats()
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 5
    assert all("of other-logs 1.2 is not used: " in message for message in messages)
    for told in (
        "'gone'", "ModuleNotFoundError", "lacks recognises, rows", "is no Format class",
        "this package has its name", "it has the name 'chat'",
    ):  # fmt: skip
        assert told in " ".join(messages)
    assert list(known)[-2:] == ["chat", "usage"]  # before the format that takes any usual names
    log = write(
        tmp_path / "chat.csv", "timestamp,who,prompt_tokens,completion_tokens\n1,ann,9,33\n"
    )
    assert recognise(sample(log)) is known["chat"]
    assert read_history(log).formats == ["a chat log"]
    convert("chat", log, tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet")["client_id"].to_list() == ["ann"]


def test_without_other_packages(tmp_path: Path) -> None:
    assert list(all_formats()) == list(formats.FORMATS)
    with pytest.raises(UnknownNameError, match="unknown log format 'chat'"):
        format_named("chat")
    with pytest.raises(UnknownNameError, match="unknown trace format 'chat'"):
        convert("chat", tmp_path / "x.csv", tmp_path / "y.csv")
