"""Forked children: whole predictors, no claims, no lessons."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sagellm_lifetime import (
    BackgroundLearner,
    LifetimeError,
    PredictionRequest,
    create_predictor,
    load_predictor,
)
from sagellm_lifetime.core import forking
from sagellm_lifetime.core.forking import ClosedInChild
from sagellm_lifetime.predictor.checkpoint_lock import claim, release
from sagellm_lifetime.vllm.prediction_statistics import PredictionStatistics

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(check: Callable[[], object], seconds: int = 20) -> int:
    """Run ``check`` in a forked child; return its exit code: 0 true, 1 false, -14 too late."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            signal.alarm(seconds)
            code = 0 if check() else 1
        except BaseException:  # noqa: BLE001 - shown, and told by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def consistent(metrics: dict[str, Any]) -> bool:
    parts = ("completions", "censored", "running", "expired", "replaced", "discarded")
    return bool(metrics["total_predictions"] == sum(metrics[part] for part in parts))


@pytest.mark.parametrize("forks", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["survival", "baseline"])
@pytest.mark.usefixtures("often_switched")
def test_a_child_forked_while_others_predict_and_learn(name: str, forks: int) -> None:
    """Without the locks that are taken before a fork nearly every child hangs."""
    predictor, tally = create_predictor(name), PredictionStatistics()
    done = threading.Event()

    def work(who: int) -> None:
        i = 0
        while not done.is_set():
            key = f"{who}-{i}"
            predictor.predict(PredictionRequest(key, [], 0, None, {"client_id": key}))
            tally.predicted(key, 9, 0.5)
            predictor.update(key, 5, 1.0)
            tally.ended(key, 5, 1.0, "stop")
            i += 1

    def check() -> bool:
        predictor.predict(PredictionRequest("child", [], 0, None))
        predictor.update("child", 7, 1.0)
        predictor.clone().predict(PredictionRequest("child", [], 0, None))
        return consistent(predictor.get_metrics()) and tally.snapshot()["total_predictions"] >= 0

    threads = [threading.Thread(target=work, args=[who]) for who in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert [in_child(check) for _ in range(forks)] == [0] * forks
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert consistent(predictor.get_metrics())


def test_a_child_forked_by_the_thread_that_holds_the_lock() -> None:
    predictor = create_predictor("orca")
    with predictor.lock:
        assert in_child(lambda: predictor.predict(PredictionRequest(0, [], 0, None))) == 0
    assert in_child(lambda: predictor.predict(PredictionRequest(0, [], 0, None))) == 0


def test_a_fork_in_the_middle_of_a_long_change_does_not_wait_for_it() -> None:
    predictor, other = create_predictor("orca"), create_predictor("orca")
    holds, done = threading.Event(), threading.Event()

    def change() -> None:
        with predictor.lock:
            holds.set()
            done.wait(60)

    thread = threading.Thread(target=change)
    thread.start()
    holds.wait()

    def check() -> bool:
        other.predict(PredictionRequest(0, [], 0, None))
        for call in (predictor.get_metrics, predictor.clone, lambda: predictor.discard(0)):
            with pytest.raises(LifetimeError, match="load or create one here"):
                call()
        # A grandchild finds the same.
        return in_child(other.get_metrics) == 0

    started = time.monotonic()
    try:
        assert in_child(check) == 0
        assert time.monotonic() - started < 10
    finally:
        done.set()
        thread.join()
    predictor.predict(PredictionRequest(0, [], 0, None))


def test_a_child_does_not_keep_a_claim(tmp_path: Path) -> None:
    held = claim(tmp_path / "state", 0.0)
    ours = os.fstat(held)

    def lets_go() -> bool:
        try:
            return not os.path.samestat(os.fstat(held), ours)
        except OSError:
            return True

    assert in_child(lets_go) == 0
    # It is the parent's still …
    with pytest.raises(LifetimeError, match="another process"):
        claim(tmp_path / "state", 0.0)
    # … and not the child's.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    release(held)
    release(claim(tmp_path / "state", 5.0))
    os.close(writer)
    os.waitpid(pid, 0)


def test_a_descriptor_that_was_closed_and_used_again_stays_open_in_a_child(tmp_path: Path) -> None:
    held = claim(tmp_path / "state", 0.0)
    os.close(held)  # not by way of release()
    with (tmp_path / "file").open("w") as file:
        assert file.fileno() == held
        assert in_child(lambda: file.write("x")) == 0


def test_locked_files_of_others_are_closed_in_a_child(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("xb", buffering=0) as file:
        guard = ClosedInChild(file)
        assert in_child(lambda: file.closed) == 0
        assert not file.closed
        del guard
        gc.collect()
        assert in_child(lambda: not file.closed) == 0


def test_a_learner_stays_with_the_process_that_made_it(tmp_path: Path) -> None:
    predictor = create_predictor("orca")

    def teach(count: int) -> None:
        for i in range(count):
            predictor.predict(PredictionRequest(i, [], 0, None))
            predictor.update(i, 50, 1.0)

    def check() -> bool:
        before = predictor.get_metrics()
        started = time.monotonic()
        with pytest.warns(RuntimeWarning, match="was forked from the one that learns"):
            teach(2)
        teach(1)
        after = predictor.get_metrics()
        assert after["lessons_dropped"] == before["lessons_dropped"] + 3
        assert "clone()" in after["learner_trouble"]
        assert not after["learner_running"]
        assert after["lessons_on_the_way"] == 0
        assert after["lessons"] == before["lessons"]
        assert not elsewhere.drain(30)
        elsewhere.stop()
        twin = predictor.clone()
        twin.predict(PredictionRequest(0, [], 0, None))
        twin.update(0, 50, 1.0)
        assert twin.get_metrics()["lessons"] == before["lessons"] + 1
        with BackgroundLearner(twin, tmp_path / "child", every=0.1) as own:
            assert own.drain(30)
        return time.monotonic() - started < 30

    with BackgroundLearner(predictor, tmp_path / "state", every=0.1) as elsewhere:
        teach(3)
        assert elsewhere.drain(30)
        assert in_child(check, 60) == 0
        # The parent's goes on, as if nothing had happened.
        teach(4)
        assert elsewhere.drain(30)
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
    try:
        # A child that lives on holds nobody up.
        started = time.monotonic()
        again = create_predictor("orca")
        with BackgroundLearner(again, tmp_path / "state"):
            assert again.get_metrics()["lessons"] == 7
        assert time.monotonic() - started < 9
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert load_predictor(tmp_path / "state").get_metrics()["lessons"] == 7


def test_a_temporary_state_is_not_removed_by_a_child() -> None:
    predictor = create_predictor("orca")

    def stop() -> bool:
        elsewhere.stop()
        return True

    with BackgroundLearner(predictor) as elsewhere:
        assert in_child(stop) == 0
        assert elsewhere.path.exists()
    assert not elsewhere.path.parent.exists()


def test_objects_that_are_gone_are_not_told() -> None:
    class Gone:
        def _fork_lock(self) -> None:
            raise AssertionError

        def _after_fork(self, *, whole: bool) -> None:
            raise AssertionError

    gone = Gone()
    forking.register(gone)
    del gone
    gc.collect()
    assert in_child(lambda: True) == 0
