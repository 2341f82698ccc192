"""The prompts, the plan, the journal, and the recording on a model of a few hundred numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import read_history

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SOURCE = BENCHMARKS.parent / "src"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def asks():
    return import_module("answers.plan").plan()


@pytest.fixture
def journal():
    return import_module("answers.journal")


def test_the_prompts_are_those_of_the_material():
    compose = import_module("answers.compose")
    lines = compose.PROMPTS.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == compose.compose()


def test_prompts_are_many_and_of_many_kinds(asks):
    said = {json.dumps(ask.messages) for ask in asks if ask.turn in (None, 1)}
    assert len(said) > 1200
    assert len({ask.kind for ask in asks}) >= 16
    assert not any("{" in ask.prompt_text for ask in asks if ask.kind not in ("code", "json"))


def test_the_plan(asks):
    assert len(asks) >= 3000
    assert len({ask.key for ask in asks}) == len({ask.seed for ask in asks}) == len(asks)
    samples = Counter(ask.prompt_id for ask in asks if ask.turn is None)
    assert Counter(samples.values())[5] == 200
    for prompt_id, count in samples.items():
        same = [ask for ask in asks if ask.prompt_id == prompt_id] if count > 1 else []
        assert {ask.sample for ask in same} == set(range(len(same)))
        assert len({ask.temperature for ask in same}) <= 1
    assert asks == import_module("answers.plan").plan()


def test_turns_follow_each_other(asks):
    known = {}
    for ask in asks:
        if ask.after is not None:
            before = known[ask.after]
            assert (before.session, before.turn + 1) == (ask.session, ask.turn)
            assert before.temperature == ask.temperature
        known[ask.key] = ask
    later = [ask.prompt_id for ask in asks if ask.after is not None]
    assert len(set(later)) == len(later) > 400


def row(key, **changes):
    return {
        "request_id": key,
        "model": "m",
        "client_id": "story",
        "session_id": None,
        "prompt_id": key,
        "arrival_time": 1.0,
        "turn": None,
        "sample": 0,
        "prompt_length": 2,
        "max_length": 1024,
        "actual_length": 3,
        "actual_time": 0.5,
        "finish_reason": "stop",
        "temperature": 0.7,
        "prompt_text": "Schönes über “quotes”",
        "prompt_token_ids": [1, 49151],
        "output_token_ids": [7, 8, 2],
        "eos_logprob": [-3.25] * 3,
        "entropy": [1.5] * 3,
        **changes,
    }


def test_a_journal_grows_and_survives_a_crash(journal, tmp_path):
    path = tmp_path / "a.jsonl"
    assert journal.read(path) == []
    journal.append(path, [row("a"), row("b")])
    with path.open("ab") as stream:
        stream.write(b'{"request_id": "c", "mod')
    assert journal.read(path) == [row("a"), row("b")]
    journal.append(path, [row("c")])
    assert journal.read(path) == [row("a"), row("b"), row("c")]


def test_the_parquet_is_a_history(journal, tmp_path):
    path = tmp_path / "a.parquet"
    longer = {"actual_length": 35, "eos_logprob": [-3.25] * 35, "entropy": [1.5] * 35}
    journal.write_parquet([row("b", arrival_time=2.0, turn=1), row("a", **longer)], path)
    assert list(tmp_path.iterdir()) == [path]
    found = read_history(path)
    assert found.skipped == 0
    assert found.frame["request_id"].to_list() == ["a", "b"]
    assert found.frame["output_token_ids"].to_list() == [[7, 8, 2]] * 2
    assert found.frame["eos_logprob"].to_list() == [[-3.25] * 2, []]
    assert found.frame["entropy"].to_list() == [[1.5] * 2, []]
    assert pl.read_parquet(path).schema["output_token_ids"] == pl.List(pl.UInt16)


def test_another_plan_is_refused(asks):
    check = import_module("answers.plan").check
    check(asks, {asks[0].key, asks[-1].key})
    with pytest.raises(SystemExit, match="'nobody'"):
        check(asks, {asks[0].key, "nobody"})


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A folder as ``engine fetch`` writes it, whose answers are noise."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "models"))
    tiny = import_module("tiny_llama")
    from sagellm_lifetime.engines.models.gguf import read_gguf
    from sagellm_lifetime.engines.models.llama import write_llama

    folder = tmp_path / "tiny"
    folder.mkdir()
    talk = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}<|start|>"
    said = tiny.SAID | {"llama.context_length": 8192, "tokenizer.chat_template": talk}
    write_llama(read_gguf(tiny.gguf_file(said=said)[0]), folder, lambda share: None)
    return folder


@pytest.mark.usefixtures("vllm")
def test_recording_goes_on_where_it_stopped(asks, journal, model, tmp_path):
    limit = 1 + next(i for i, ask in enumerate(asks) if ask.turn == 3)
    first = row(asks[0].key, output_token_ids=[3, 4, 2], prompt_id=asks[0].prompt_id)
    journal.append(tmp_path / "out.jsonl", [first])
    command = [sys.executable, "record_answers.py", str(model), "--limit", str(limit)]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out.parquet")],
        cwd=BENCHMARKS,
        env=os.environ
        | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"1 answers are there, {limit - 1} to record" in done.stderr

    text = import_module("tokenizers").Tokenizer.from_file(str(model / "tokenizer.json")).decode
    frame = pl.read_parquet(tmp_path / "out.parquet")
    rows = {found["request_id"]: found for found in frame.iter_rows(named=True)}
    assert set(rows) == {ask.key for ask in asks[:limit]}
    assert rows[asks[0].key]["output_token_ids"] == [3, 4, 2]
    for ask in asks[1:limit]:
        found = rows[ask.key]
        length = found["actual_length"]
        assert length == len(found["output_token_ids"])
        ended = found["output_token_ids"][-1] == 2
        assert found["finish_reason"] == ("stop" if ended else "length")
        assert ended or length == 1024
        assert len(found["eos_logprob"]) == len(found["entropy"]) == length // 16
        assert all(value < 0 for value in found["eos_logprob"])
        assert all(0 <= value <= np.log(16) + 1e-3 for value in found["entropy"])
        if ask.after is not None:  # what was said before comes first, the model's answer too
            before = rows[ask.after]
            heard = text(before["prompt_token_ids"]) + text(before["output_token_ids"])
            assert text(found["prompt_token_ids"]).startswith(heard)
            assert found["arrival_time"] >= before["arrival_time"] + before["actual_time"] - 1e-2
    assert frame["arrival_time"].min() == 1.0
