"""The prompts, the plan, what the recorder wrote, and all of it on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import read_history
from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.vllm.journal import Journal
from sagellm_lifetime.vllm.record_rows import to_line

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SOURCE = BENCHMARKS.parent / "src"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def asks():
    return import_module("answers.plan").plan()


@pytest.fixture
def recording():
    return import_module("answers.recording")


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


def test_the_plan_of_low_temperatures(asks):
    low = import_module("answers.plan").plan(low=True)
    assert len({ask.key for ask in low}) == len(low) > 2400
    assert {ask.key for ask in low} < {ask.key for ask in asks}
    assert {json.dumps(ask.messages) for ask in low} == {json.dumps(ask.messages) for ask in asks}
    samples = Counter(ask.prompt_id for ask in low if ask.turn is None)
    at = {ask.prompt_id: ask.temperature for ask in low}
    assert {at[prompt_id] for prompt_id, count in samples.items() if count == 5} == {0.2}
    assert Counter(at.values()).keys() == {0.0, 0.2}
    assert not any(ask.sample for ask in low if ask.temperature == 0.0 or ask.session)


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
    """An answer as the recorder writes it, under vLLM's name for the ask."""
    return {
        "request_id": f"{key}-0a1b2c3d",
        "model": "m",
        "client_id": "story",
        "prompt_id": "what an engine takes for it",
        "arrival_time": 1e9,
        "prompt_length": 2,
        "max_length": 1024,
        "actual_length": 3,
        "actual_time": 0.5,
        "finish_reason": "stop",
        "temperature": 0.8,
        "prompt_token_ids": [1, 49151],
        "output_token_ids": [7, 8, 2],
        "eos_logprob": [],
        "entropy": [],
        **changes,
    }


def killed(folder, *rows):
    """A journal whose writer is gone."""
    journal = Journal(folder, "w")
    journal.write([to_line(row) for row in rows])
    journal.close()
    return journal.path


def test_what_a_killed_recording_wrote_is_found_again(recording, tmp_path):
    folder = tmp_path / "out.recording"
    assert recording.answered(folder).is_empty()
    killed(folder, row("list-087/0"))
    assert recording.answered(folder)["request_id"].to_list() == ["list-087/0"]
    failed = row("e-mail-1/0", finish_reason="error")
    with killed(folder, row("e-mail-3/1"), failed).open("ab") as torn:
        torn.write(b'{"request_id": "e-mail-2/0-0a1b2')
    found = recording.answered(folder)
    assert set(found["request_id"]) == {"list-087/0", "e-mail-3/1"}
    assert found["output_token_ids"].to_list() == [[7, 8, 2]] * 2
    assert {path.suffix for path in folder.iterdir()} == {".parquet", ".damaged"}


def test_a_folder_in_use_and_a_damaged_file_are_refused(recording, tmp_path):
    living = Journal(tmp_path, "w")
    with pytest.raises(SystemExit, match="another recording"):
        recording.answered(tmp_path)
    living.close()
    (tmp_path / "x.parquet").write_text("no Parquet")
    with pytest.raises(HistoryError, match=r"x\.parquet"):
        recording.answered(tmp_path)


def test_answers_are_joined_with_the_plan(asks, recording, tmp_path):
    turn = next(ask for ask in asks if ask.turn == 2)
    first = asks[0]
    longer = {"eos_logprob": [-3.25], "entropy": [1.5], "actual_length": 17, "turn": 2}
    killed(tmp_path, row(turn.key, session_id=turn.session, arrival_time=1e9 + 1, **longer))
    killed(tmp_path, row(first.key))
    path = tmp_path / "out.parquet"
    recording.write_parquet(recording.joined(recording.answered(tmp_path), asks), path)
    history = read_history(path)
    assert history.skipped == 0
    frame = history.frame
    assert frame["request_id"].to_list() == [first.key, turn.key]
    for name in ("prompt_id", "sample", "prompt_text"):
        assert frame[name].to_list() == [getattr(first, name), getattr(turn, name)]
    assert frame["session_id"].to_list() == [None, turn.session]
    assert frame["turn"].to_list() == [None, 2]
    assert frame["eos_logprob"].to_list() == [[], [-3.25]]
    assert frame["entropy"].to_list() == [[], [1.5]]


def test_the_parquet_has_the_columns_of_the_one_that_ships(asks, recording, tmp_path):
    shipped = SOURCE / "sagellm_lifetime/workloads/recorded/smollm2-answers.parquet"
    keys = [ask.key for ask in asks[:2]]
    killed(tmp_path, *map(row, keys))
    frame = recording.joined(recording.answered(tmp_path), asks)
    assert frame["request_id"].to_list() == sorted(keys) != keys, "who came at once"
    assert frame.schema == pl.read_parquet_schema(shipped)


def test_the_clock_stands_while_nobody_records(asks, recording, tmp_path):
    evening = {asks[0].key: (0.0, 3.0), asks[1].key: (1.0, 1.0), asks[2].key: (2.25, 4.0)}
    morning = {asks[3].key: (40_000.0, 1.0), asks[4].key: (40_000.5, 9.0)}
    for times in (morning, evening):
        rows = [
            row(key, arrival_time=1e9 + arrival, actual_time=seconds)
            for key, (arrival, seconds) in times.items()
        ]
        killed(tmp_path, *rows)
    frame = recording.joined(recording.answered(tmp_path), asks)
    assert frame["request_id"].to_list() == [ask.key for ask in asks[:5]]
    assert frame["arrival_time"].to_list() == [0.0, 1.0, 2.25, 6.25, 6.75]


class Engine:
    """Answers all that it is asked, in the place of a model, but for what it is to lose."""

    lost: tuple[str, ...] = ()

    def __init__(self, _model, folder, limits):
        self.folder, self.recalled, self.limits = folder, {}, limits
        Engine.last = self

    def recall(self, ask, output):
        self.recalled[ask.key] = output

    def run(self, asks):
        self.asked = [ask.key for ask in asks]
        killed(self.folder, *(row(key) for key in self.asked if key not in self.lost))
        yield from [3] * len(asks)

    def close(self):
        self.closed = True


def test_only_what_is_not_there_is_asked(asks, monkeypatch, tmp_path):
    script = import_module("record_answers")
    monkeypatch.setattr(script, "Recording", Engine)
    keys = [ask.key for ask in asks[:6]]
    killed(tmp_path, row(keys[1], output_token_ids=[3, 4, 2]), row(asks[9].key))
    monkeypatch.setattr(Engine, "lost", (keys[2], keys[4]))
    with pytest.raises(SystemExit, match="2 answers were not written"):
        script.record(tmp_path, tmp_path, 6)
    assert Engine.last.asked == [keys[0], *keys[2:]]
    assert Engine.last.recalled == {keys[1]: [3, 4, 2]}
    assert Engine.last.closed
    monkeypatch.setattr(Engine, "lost", ())
    frame = script.record(tmp_path, tmp_path, 6)
    assert Engine.last.asked == [keys[2], keys[4]]
    assert sorted(frame["request_id"]) == sorted([*keys, asks[9].key])
    last = Engine.last
    assert script.record(tmp_path, tmp_path, 6).equals(frame)
    assert Engine.last is last, "no engine is started for nothing"


def test_prompts_of_one_step_are_few_enough_to_be_prefilled_whole(asks):
    script = import_module("record_answers")
    recording = script.Recording.__new__(script.Recording)
    recording._limits, recording._said = script.Limits(cap=1, running=8), {}
    recording._prompt = lambda ask: [0] * (script.PREFILLED // 2 - 1)
    recording.recall = lambda ask, output: None
    submitted = []
    recording._submit = lambda ask, prompt: submitted.append(ask.key)
    alone = [ask for ask in asks if ask.turn is None][:5]

    counts = [0]

    def step():
        counts.append(len(submitted))
        ended = submitted[counts[-2] :]
        return [Namespace(request_id=key, outputs=[Namespace(token_ids=[1])]) for key in ended]

    recording._engine = Namespace(step=step)
    assert list(recording.run(alone)) == [1] * 5
    assert counts == [0, 2, 4, 5]


def test_another_plan_is_refused(asks):
    check = import_module("answers.plan").check
    check(asks, {asks[0].key, asks[-1].key})
    with pytest.raises(SystemExit, match="'nobody'"):
        check(asks, {asks[0].key, "nobody"})


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A folder as ``tools/fetch_model.py`` writes it, whose answers are noise."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools"))
    tiny = import_module("tiny_llama")
    from small_models.gguf import read_gguf
    from small_models.llama import write_llama

    folder = tmp_path / "tiny"
    folder.mkdir()
    talk = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}<|start|>"
    said = tiny.SAID | {"llama.context_length": 8192, "tokenizer.chat_template": talk}
    write_llama(read_gguf(tiny.gguf_file(said=said)[0]), folder, lambda share: None)
    return folder


@pytest.mark.usefixtures("vllm")
def test_recording_goes_on_where_it_stopped(asks, model, tmp_path):
    limit = 1 + next(i for i, ask in enumerate(asks) if ask.turn == 3)
    killed(tmp_path / "out.recording", row(asks[0].key, output_token_ids=[3, 4, 2]))
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
        assert (found["client_id"], found["session_id"]) == (ask.kind, ask.session)
        assert (found["turn"], found["prompt_id"]) == (ask.turn, ask.prompt_id)
        assert found["temperature"] == pytest.approx(ask.temperature)
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
    assert frame["arrival_time"].min() == 0.0
