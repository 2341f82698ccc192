"""Completions on disk: nothing lost but the last second, nothing torn, nothing in the way."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import polars as pl
from engine_help import Engine, fitted, mixed_load

from sagellm_lifetime.history import read
from sagellm_lifetime.vllm.journal import Journal, recover_journals
from sagellm_lifetime.vllm.record_rows import to_line
from sagellm_lifetime.vllm.recorder import Recorder


def row(i, **more):
    return {"request_id": f"r{i}", "actual_length": i + 1, "finish_reason": "stop", **more}


def read_history(folder):
    return read.read_history(folder).frame


def names(folder):
    return sorted(path.suffix for path in folder.iterdir())


def until(holds, recorder):
    """Flush, as the writer thread does, until another process has done its work."""
    ends = time.monotonic() + 60.0
    while time.monotonic() < ends:
        recorder.flush()
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("nobody did")


def test_what_was_recorded_is_a_history(tmp_path):
    engine = Engine().predict_with(fitted(), mode="act", record=str(tmp_path / "rec"))
    mixed_load(engine, n=30, steps=2)
    engine.abort(engine.add(50).request_id)
    engine.run()
    engine.scheduler.shutdown()
    assert names(tmp_path / "rec") == [".parquet"]
    frame = read_history(tmp_path / "rec")
    assert len(frame) == 31
    assert frame["finish_reason"].value_counts().sort("count").rows() == [
        ("abort", 1),
        ("stop", 30),
    ]
    lengths = dict(frame.select("request_id", "actual_length").iter_rows())
    assert {n: v for n, v in lengths.items() if v} == {
        n: v for n, v in engine.lengths.items() if lengths[n]
    }
    assert set(frame["client_id"].drop_nulls()) == {"long", "short"}
    assert (frame["actual_time"] >= 0).all()
    assert "prompt_token_ids" not in frame.columns
    from sagellm_lifetime import create_predictor

    assert create_predictor("survival").fit(tmp_path / "rec").summary["rows"] > 0


def test_content_only_when_asked_for(tmp_path):
    engine = Engine().on(mode="off", record=str(tmp_path), content=True)
    engine.add(3, prompt=[4, 5, 6])
    engine.run()
    engine.scheduler.shutdown()
    frame = read_history(tmp_path)
    assert frame["prompt_token_ids"].to_list() == [[4, 5, 6]]
    assert frame["output_token_ids"].to_list() == [[7, 7, -1]]


def test_rotated_by_rows_and_by_time(tmp_path):
    recorder = Recorder(tmp_path, "w", rotate_rows=3)
    for i in range(8):
        recorder.add(row(i))
        recorder.flush()
        until(lambda: names(tmp_path).count(".journal") < 2, recorder)
    assert names(tmp_path) == [".journal", ".parquet", ".parquet"]
    recorder._rotate_s = 0.0
    until(lambda: ".journal" not in names(tmp_path), recorder)
    recorder.close()
    assert names(tmp_path) == [".parquet"] * 3
    assert sorted(read_history(tmp_path)["request_id"]) == [f"r{i}" for i in range(8)]
    assert recorder.recorded == 8


def test_a_killed_process_loses_the_last_second_at_most(tmp_path):
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from sagellm_lifetime.vllm.periodic_thread import PeriodicThread
        from sagellm_lifetime.vllm.recorder import Recorder
        recorder = Recorder(Path({str(tmp_path)!r}), "w")
        PeriodicThread("writer", 0.2, [recorder.flush]).start()
        for i in range(10_000):
            row = {{"request_id": f"r{{i}}", "actual_length": 1, "arrival_time": time.time()}}
            recorder.add(row)
            print(i, flush=True)
            time.sleep(0.01)
    """)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 150:
                break
        process.send_signal(signal.SIGKILL)
        killed = time.time()
    assert names(tmp_path) == [".journal"]
    recorder = Recorder(tmp_path, "next")
    until(lambda: names(tmp_path) == [".parquet"], recorder)
    recorder.close()
    frame = read_history(tmp_path)
    assert frame["request_id"].to_list() == [f"r{i}" for i in range(len(frame))]
    assert killed - frame["arrival_time"].max() < 1.0


def test_a_torn_line_is_dropped_and_a_living_writer_left_alone(tmp_path):
    living = Journal(tmp_path, "alive")
    living.write([to_line(row(0))])
    torn = tmp_path / "completions-x.journal"
    torn.write_text(json.dumps(row(1)) + '\n{"request_id": "to')
    damaged = tmp_path / "completions-y.journal"
    damaged.write_text(json.dumps(row(2)) + "\n{broken}\n\0\0\n" + json.dumps(row(3)) + "\n")
    empty = tmp_path / "completions-z.journal"
    empty.write_text("")
    assert [path.name for path in recover_journals(tmp_path)] == [
        "completions-x.parquet",
        "completions-y.parquet",
    ]
    assert read_history(tmp_path)["request_id"].to_list() == ["r1", "r2", "r3"]
    assert living.path.exists()
    living.close()
    assert len(list(recover_journals(tmp_path))) == 1
    assert not list(tmp_path.glob("*.journal"))


def test_a_journal_taken_up_twice_counts_once(tmp_path):
    journal = Journal(tmp_path, "w")
    journal.write([to_line(row(0)), to_line(row(1))])
    journal.close()
    text = journal.path.read_bytes()
    list(recover_journals(tmp_path))
    journal.path.write_bytes(text)  # a crash between the Parquet and the end of its journal
    list(recover_journals(tmp_path))
    assert len(read_history(tmp_path)) == 2


def test_what_cannot_be_turned_into_parquet_is_said_and_stays(tmp_path, caplog):
    left = tmp_path / "completions-x.journal"
    left.write_text(json.dumps(row(1)) + "\n")
    left.with_suffix(".parquet").mkdir()  # in the way
    recorder = Recorder(tmp_path, "w")
    until(lambda: caplog.records, recorder)
    assert "cannot be turned into Parquet" in caplog.records[0].message
    assert left.exists()
    left.with_suffix(".parquet").rmdir()
    recorder.add(row(2))
    recorder.close()
    assert sorted(read_history(tmp_path)["request_id"]) == ["r1", "r2"]
    assert (recorder.recorded, recorder.lost) == (1, 0)


def test_what_nobody_writes_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("sagellm_lifetime.vllm.recorder._MOST_WAITING", 5)
    recorder = Recorder(tmp_path, "w")
    for i in range(8):
        recorder.add(row(i))
    recorder.close()
    assert (recorder.recorded, recorder.lost) == (5, 3)
    assert len(pl.read_parquet(tmp_path / "*.parquet")) == 5


def test_a_row_that_cannot_be_made_is_counted(tmp_path, monkeypatch, caplog):
    engine = Engine().on(mode="off", record=str(tmp_path))

    def broken(request):
        raise AttributeError("a secret")

    monkeypatch.setattr(engine.scheduler.request_events.adapter, "who", broken)
    engine.add(3)
    engine.add(4)
    engine.run()
    engine.scheduler.shutdown()
    assert engine.stats()["record_lost"] == 2
    (said,) = [r.message for r in caplog.records if "cannot be recorded" in r.message]
    assert said.endswith(": AttributeError")
    assert "a secret" not in caplog.text
