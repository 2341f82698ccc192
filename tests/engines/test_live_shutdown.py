"""The end of a live engine, and a disk that hangs: one thread writes all, each part is closed."""

import threading
import time

import pytest
from engine_help import Engine, fitted

from sagellm_lifetime.history import read
from sagellm_lifetime.vllm import learner, service
from sagellm_lifetime.vllm.engine_state import read_stats, request_mode
from sagellm_lifetime.vllm.journal import Journal

PATIENCE_S = 30.0


class Disk:
    """Holds up the first write until it is let go on, or for so many seconds."""

    def __init__(self, monkeypatch, seconds):
        self.busy, self.free = threading.Event(), threading.Event()
        self.writers = []
        write = Journal.write

        def held_up(journal, rows):
            self.writers.append(threading.current_thread().name)
            if not self.busy.is_set():
                self.busy.set()
                self.free.wait(seconds)
            write(journal, rows)

        monkeypatch.setattr(Journal, "write", held_up)


def served(engine, n=3):
    for _ in range(n):
        engine.add(3)
    return engine.run()


def test_what_is_being_written_when_it_ends_is_not_lost(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, 1.0)
    engine = served(Engine().on(mode="off", record=str(tmp_path)))
    assert disk.busy.wait(PATIENCE_S)
    served(engine)
    engine.scheduler.shutdown()
    recorder = engine.scheduler.request_events.recorder
    assert (recorder.recorded, recorder.lost) == (6, 0)
    assert len(read.read_history(tmp_path).frame) == 6
    assert set(disk.writers) == {"lifetime-writer"}


@pytest.fixture
def hung(tmp_path, monkeypatch):
    """An engine whose record hangs; lets the disk go on in the end."""
    disk = Disk(monkeypatch, PATIENCE_S)
    engine = Engine().predict_with(
        fitted(), mode="shadow", state=str(tmp_path / "state"), record=str(tmp_path / "record")
    )
    served(engine)
    assert disk.busy.wait(PATIENCE_S)
    yield engine
    disk.free.set()
    engine.scheduler.shutdown()
    engine.scheduler._service._writer.join(PATIENCE_S)
    assert engine.scheduler.request_events.recorder.recorded == 3


def test_a_disk_that_hangs_leaves_the_switch_and_the_statistics(hung, tmp_path):
    state = tmp_path / "state"
    ends = time.monotonic() + PATIENCE_S / 2
    while not read_stats(state) and time.monotonic() < ends:
        time.sleep(0.05)
    assert request_mode(state, "off") == 1
    while hung.advisor.next_mode != "off" and time.monotonic() < ends:
        time.sleep(0.05)
    assert hung.advisor.next_mode == "off"


def test_a_disk_that_hangs_is_not_waited_for_for_ever(hung, monkeypatch, caplog):
    monkeypatch.setattr(service, "_CLOSE_S", 0.2)
    started = time.monotonic()
    hung.scheduler.shutdown()
    assert time.monotonic() - started < PATIENCE_S / 2
    said = [r.message for r in caplog.records if "hangs" in r.message]
    assert said == ["lifetime-writer hangs: nobody waits for it any longer"]


@pytest.mark.parametrize("part", ["burst", "learner", "state"])
def test_each_part_is_closed_whatever_becomes_of_the_others(
    vllm, part, tmp_path, monkeypatch, caplog
):
    from vllm.v1.core.sched.scheduler import Scheduler

    engine = Engine().predict_with(
        fitted(), mode="shadow", learn=True, state=str(tmp_path), record=str(tmp_path / "record")
    )
    served(engine)
    beside, closed = engine.scheduler._service, []

    def broken():
        raise RuntimeError("broken")

    def noted(owner, name, what):
        real = getattr(owner, name)

        def close(*args):
            closed.append(what)
            broken() if what == part else real(*args)

        monkeypatch.setattr(owner, name, close)

    noted(engine.advisor, "flush", "burst")
    noted(beside._learner, "close", "learner")
    noted(beside._state, "close", "state")
    noted(Scheduler, "shutdown", "vLLM")
    engine.scheduler.shutdown()  # a fault of ours is logged: vLLM shuts down all the same
    assert closed == ["burst", "learner", "state", "vLLM"]
    assert "RuntimeError" in caplog.text
    assert [path.suffix for path in (tmp_path / "record").iterdir()] == [".parquet"]
    monkeypatch.undo()
    beside._state.close()


def test_the_record_does_not_wait_for_the_learner(tmp_path, monkeypatch):
    engine = Engine().predict_with(
        fitted(), mode="shadow", learn=True, state=str(tmp_path / "state"), record=str(tmp_path)
    )
    served(engine)
    beside, written = engine.scheduler._service, []
    real = beside._learner.close

    def close():
        ends = time.monotonic() + PATIENCE_S
        while not (found := list(tmp_path.glob("*.parquet"))) and time.monotonic() < ends:
            time.sleep(0.01)
        written.extend(found)
        real()

    monkeypatch.setattr(beside._learner, "close", close)
    engine.scheduler.shutdown()
    assert len(written) == 1


def test_whatever_hangs_the_end_fits_into_what_vllm_leaves(tmp_path, monkeypatch):
    """Of ``--shutdown-timeout 10`` vLLM's workers may take five, and the process some to end."""
    assert service._CLOSE_S + service._FINAL_STATS_S <= 4.0
    assert learner._STOP_S + learner._GRACE_S <= service._CLOSE_S
    disk = Disk(monkeypatch, PATIENCE_S)
    engine = Engine().predict_with(
        fitted(), mode="shadow", learn=True, state=str(tmp_path / "state"), record=str(tmp_path)
    )
    served(engine)
    assert disk.busy.wait(PATIENCE_S)
    beside, over = engine.scheduler._service, threading.Event()
    learning = beside._learner._background
    stop = learning.stop
    monkeypatch.setattr(learning, "stop", lambda seconds: over.wait(PATIENCE_S))
    monkeypatch.setattr(beside._state, "write", lambda stats: over.wait(PATIENCE_S))
    started = time.monotonic()
    engine.scheduler.shutdown()
    took = time.monotonic() - started
    over.set()
    disk.free.set()
    beside._writer.join(PATIENCE_S)
    stop(PATIENCE_S)
    assert took < 6.0  # and a moment more, on a busy machine
