"""The record on a real disk that is full, and a state on a real one that cannot be written."""

import os
import subprocess

import pytest

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.history.read import read_history
from sagellm_lifetime.vllm import recorder as recorder_module
from sagellm_lifetime.vllm.engine_state import EngineState, check_free
from sagellm_lifetime.vllm.recorder import Recorder


def mount(*args):
    return subprocess.run(["mount", *args], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A file system of one megabyte."""
    if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)):
        pytest.skip("mounting a file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def row(k):
    # Of another text each, so that Parquet is not much smaller than the journal.
    return {"request_id": os.urandom(100).hex(), "actual_length": k, "finish_reason": "stop"}


def test_what_does_not_fit_waits_for_room(disk, monkeypatch, caplog):
    monkeypatch.setattr(recorder_module, "start_recovery", lambda _: None)
    recorder = Recorder(disk / "rec", "w", rotate_rows=1000, rotate_s=1e9)
    for k in range(12_000):
        recorder.add(row(k))
        if k % 500 == 0:
            recorder.flush()
    recorder.flush()
    assert recorder.lost == 0
    assert 2000 < recorder.recorded < 6000
    assert recorder.recorded + recorder.waiting == 12_000
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
    assert mount("-o", "remount,size=64m", str(disk))
    recorder.flush()
    assert (recorder.recorded, recorder.waiting, recorder.lost) == (12_000, 0, 0)
    recorder.close()
    lengths = read_history(disk / "rec").frame["actual_length"]
    assert sorted(lengths) == list(range(12_000))


def test_a_state_that_cannot_be_written(disk):
    made = EngineState(disk / "used", 0)
    made.close()
    assert mount("-o", "remount,ro", str(disk))
    told = r"engine-0: cannot be used \(Read-only file system\): name another folder with --state"
    for name in ("used", "new"):
        with pytest.raises(LifetimeError, match=told):
            EngineState(disk / name, 0)
    with pytest.raises(LifetimeError, match=told):
        check_free(disk / "used")
