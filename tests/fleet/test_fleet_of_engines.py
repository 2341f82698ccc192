"""The learner of an engine in a fleet, without an engine."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.predictor import worker
from sagellm_lifetime.predictor.worker import Task
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.learner import IDLE, Learner
from sagellm_lifetime.vllm.settings import LiveSettings


def learner(place: Path, state: Path):
    settings = LiveSettings(
        learn=True, learn_every_s=0.1, fleet=os.fspath(place), fleet_every_s=0.2
    )
    predictor = create_predictor("survival")
    return Learner(predictor, settings, state), predictor


def served(predictor, count: int) -> None:
    for i in range(count):
        predictor.predict(PredictionRequest(i, [], 0, None, {"client_id": "a"}))
        predictor.update(i, 60, 1.0)


def wait(until) -> None:
    end = time.monotonic() + 60.0
    while time.monotonic() < end and not until():
        time.sleep(0.1)
    assert until()


@pytest.mark.slow
def test_what_was_learned_alone_is_kept_aside_and_a_restart_goes_on(tmp_path, caplog) -> None:
    state, place = tmp_path / "state", tmp_path / "fleet"
    create_predictor("survival").save(state)
    with caplog.at_level(logging.WARNING, LOG.name):
        mine, predictor = learner(place, state)
    assert "learned alone" in caplog.text
    assert (tmp_path / "state.old").is_dir()
    try:
        served(predictor, 5)
        wait(lambda: mine.counts()["fleet_published"] >= 2)
        wait(lambda: predictor.lessons == 5)
    finally:
        mine.close()
    again, predictor = learner(place, state)
    try:
        wait(lambda: again.counts()["fleet_connected"])
        assert predictor.lessons == 5
        assert len(list(place.glob("*.entry"))) == 1
        assert again.counts().keys() == IDLE.keys()
    finally:
        again.close()


@pytest.mark.slow
def test_a_store_that_is_away_is_one_warning(tmp_path, caplog) -> None:
    place = tmp_path / "fleet"
    place.write_text("in the way")
    mine, predictor = learner(place, tmp_path / "state")
    try:
        with caplog.at_level(logging.INFO, LOG.name):
            wait(lambda: mine.counts()["fleet_failures"] >= 2)
            for _ in range(3):
                mine.watch()
            assert caplog.text.count("this replica goes on alone") == 1
            served(predictor, 4)
            wait(lambda: predictor.lessons == 4)  # it learns as ever
            place.unlink()
            wait(lambda: mine.counts()["fleet_connected"])
            mine.watch()
        assert "the fleet is there again" in caplog.text
        assert predictor.lessons == 4
    finally:
        mine.close()


def test_the_place_is_no_part_of_the_command_line(monkeypatch) -> None:
    task = Task("p", 1.0, 1, private=True, fleet="redis://:hush@cache:6379/0", fleet_every=3.0)
    assert "hush" not in task.text()
    assert "hush" not in repr(task)
    monkeypatch.setenv(worker.FLEET_VARIABLE, task.environment()[worker.FLEET_VARIABLE])
    assert Task.received(task.text()) == task
