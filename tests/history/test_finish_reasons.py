"""Finish reasons of every server that people run, and what is made of unknown ones."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from history_help import refused, write

from sagellm_lifetime.history import read_history

SERVERS: dict[str, dict[str, str]] = {
    "OpenAI": {
        "stop": "stop", "tool_calls": "stop", "function_call": "stop", "length": "length",
        "content_filter": "abort", "completed": "stop", "max_output_tokens": "length",
        "failed": "error", "cancelled": "abort",
    },
    "Anthropic": {
        "end_turn": "stop", "stop_sequence": "stop", "tool_use": "stop", "max_tokens": "length",
        "model_context_window_exceeded": "length", "refusal": "abort", "pause_turn": "abort",
    },
    "Gemini": {
        "STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "abort", "RECITATION": "abort",
        "LANGUAGE": "abort", "BLOCKLIST": "abort", "PROHIBITED_CONTENT": "abort", "SPII": "abort",
        "IMAGE_SAFETY": "abort", "TOO_MANY_TOOL_CALLS": "abort", "MALFORMED_FUNCTION_CALL": "error",
        "UNEXPECTED_TOOL_CALL": "error", "MISSING_THOUGHT_SIGNATURE": "error",
        "FINISH_REASON_UNSPECIFIED": "stop",
    },
    "vLLM": {
        "stop": "stop", "length": "length", "abort": "abort", "error": "error",
        "repetition": "abort",
    },
    "SGLang": {"stop": "stop", "length": "length", "abort": "abort"},
    "TGI": {"eos_token": "stop", "stop_sequence": "stop", "length": "length"},
}  # fmt: skip


@pytest.mark.parametrize("server", SERVERS)
def test_the_words_of_a_server(tmp_path: Path, server: str) -> None:
    words = SERVERS[server]
    frame = pl.DataFrame({"finish_reason": list(words)}).with_columns(actual_length=9)
    assert read_history(frame).frame["finish_reason"].to_list() == list(words.values())
    lines = "".join(
        json.dumps({"usage": {"out": 9}, "choices": [{"end": word}]}) + "\n" for word in words
    )
    log = write(tmp_path / "log.jsonl", lines)
    mapping = {"actual_length": "usage.out", "finish_reason": "choices[0].end"}
    history = read_history(log, mapping=mapping)
    assert history.frame["finish_reason"].to_list() == list(words.values())
    known = {word.lower() for word in words if word.lower() != words[word]}
    known -= {"finish_reason_unspecified"}
    said = next((note for note in history.notes if note.startswith("finish reasons: ")), "")
    assert all(f"{word} → " in said for word in known)


def test_sglang_answers_with_an_object(tmp_path: Path) -> None:
    meta = [{"type": "stop", "matched": 2}, {"type": "length", "length": 64}]
    lines = "".join(
        json.dumps({"meta_info": {"completion_tokens": 9, "finish_reason": reason}}) + "\n"
        for reason in meta
    )
    mapping = {
        "actual_length": "meta_info.completion_tokens",
        "finish_reason": "meta_info.finish_reason",
    }
    history = read_history(write(tmp_path / "log.jsonl", lines), mapping=mapping)
    assert history.frame["finish_reason"].to_list() == ["stop", "length"]


@pytest.mark.parametrize("word", ["OTHER", "gave_up"])
def test_other_words_are_listed_with_the_four(word: str) -> None:
    frame = pl.DataFrame({"actual_length": [5, 6], "finish_reason": ["stop", word]})
    told = "a finish reason is stop, length, abort or error (length where a cap was met, abort"
    message = refused(frame)
    assert told in message
    assert f"write one of them for {word!r}" in message


def test_thoughts_of_gemini_are_added_by_the_total(tmp_path: Path) -> None:
    log = (
        "timestamp,promptTokenCount,candidatesTokenCount,thoughtsTokenCount,totalTokenCount\n"
        "0,10,5,100,115\n"
    )
    history = read_history(write(tmp_path / "gemini.csv", log))
    assert history.frame["actual_length"].to_list() == [105]
    assert any("counted apart" in note for note in history.notes)
