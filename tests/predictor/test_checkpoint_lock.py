"""One writer for a checkpoint."""

import os
import subprocess
import sys
import threading
import time

import pytest

from sagellm_lifetime import CheckpointError
from sagellm_lifetime.predictor.checkpoint_lock import claim


def test_a_second_claim_is_refused(tmp_path):
    path = tmp_path / "deep" / "state"
    held = claim(path, 0.0)
    with pytest.raises(CheckpointError, match="choose another directory") as error:
        claim(path, 0.1)
    assert "\n" not in str(error.value)
    os.close(held)
    os.close(claim(path, 0.0))


def test_a_claim_waits_for_the_last_one(tmp_path):
    held = claim(tmp_path / "state", 0.0)
    threading.Timer(0.2, os.close, [held]).start()
    start = time.monotonic()
    os.close(claim(tmp_path / "state", 10.0))
    assert time.monotonic() - start > 0.15


def test_a_child_that_inherits_it_holds_it(tmp_path):
    held = claim(tmp_path / "state", 0.0)
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[held]
    ) as child:
        os.close(held)
        with pytest.raises(CheckpointError):
            claim(tmp_path / "state", 0.1)
        child.communicate(b"")
    os.close(claim(tmp_path / "state", 5.0))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        claim(tmp_path / "file" / "state", 0.0)
