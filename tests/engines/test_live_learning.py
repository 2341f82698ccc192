"""A live engine learns in another process: what it goes on from, and what may happen to it."""

import os
import signal
import time
from threading import Event, Thread

import pytest
from engine_help import PATIENCE_S, Engine, fitted, mixed_load

from sagellm_lifetime import create_predictor, load_predictor
from sagellm_lifetime.cli.stats import block
from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.networks.model import NetworkModel
from sagellm_lifetime.predictor.checkpoint_lock import claim
from sagellm_lifetime.vllm import learner
from sagellm_lifetime.vllm.circuit_breaker import LOG
from sagellm_lifetime.vllm.learner import STARTED_FROM, move_aside
from sagellm_lifetime.vllm.live_predictor import make_predictor
from sagellm_lifetime.vllm.observability.merge import merge
from sagellm_lifetime.vllm.settings import LiveSettings


def until(happens):
    ends = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.02)


def kill(engine):
    os.kill(engine.learner._background._supervisor.process.pid, signal.SIGKILL)


# -- what is learned -------------------------------------------------------------------------


def test_a_network_learns_and_nothing_of_it_in_the_engine(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    settings = {"predictor": "lstm", "width": 16, "state": str(tmp_path)}
    engine = Engine().on(mode="act", learn=True, limit_s=60.0, **settings)

    def in_the_engine(_):
        raise AssertionError("a gradient step on the engine's thread")

    monkeypatch.setattr(NetworkModel, "_train_inline", in_the_engine)
    served, learned = engine.advisor.predictor, tmp_path / "engine-0" / "predictor"
    for lessons in (40, 80):
        steps = served.get_metrics()["training_steps"]
        mixed_load(engine).run()
        stats = engine.learned()
        assert stats["lessons"] == stats["lessons_taken"] == lessons
        assert load_predictor(learned).get_metrics()["lessons"] == lessons
        assert served.get_metrics()["training_steps"] > steps
        assert stats["breaker"]["state"] == "closed"
        assert sum(stats["breaker"]["faults"].values()) == 0
    found = load_predictor(learned)
    question = PredictionRequest("new", [], 0, 400, {"client_id": "long"})
    mine, theirs = served.clone().predict(question), found.predict(question)
    assert mine.estimated_remaining_tokens == theirs.estimated_remaining_tokens
    assert mine.confidence == theirs.confidence


def test_without_learning_nothing_is_learned(tmp_path):
    engine = Engine().predict_with(fitted(), mode="shadow", state=str(tmp_path))
    mixed_load(engine, n=20).run()
    engine.scheduler.shutdown()
    stats = engine.stats()
    assert stats["lessons"] == engine.advisor.predictor.get_metrics()["lessons"] == 200
    assert stats["lessons_taken"] == 0
    assert not stats["learner_running"]
    assert not (tmp_path / "engine-0" / "predictor").exists()


# -- what it goes on from --------------------------------------------------------------------


def test_a_restart_goes_on_and_another_checkpoint_starts_anew(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(learner, "_STOP_S", PATIENCE_S)
    caplog.set_level("WARNING", LOG.name)  # which the helper's scheduler has raised
    fitted().save(tmp_path / "a")
    create_predictor("survival").save(tmp_path / "b")
    state = tmp_path / "state"
    for given, lessons in (("a", 220), ("a", 240), ("", 260), ("b", 20)):
        settings = {"checkpoint": str(tmp_path / given)} if given else {"predictor": "survival"}
        engine = Engine().on(mode="shadow", learn=True, state=str(state), **settings)
        mixed_load(engine, n=20).run()
        engine.scheduler.shutdown()
        assert engine.stats()["lessons"] == lessons, "what was left is learned at the end"
        assert load_predictor(state / "engine-0" / "predictor").get_metrics()["lessons"] == lessons
    kept = state / "engine-0" / "predictor.old"
    assert load_predictor(kept).get_metrics()["lessons"] == 260
    (said,) = [r.message for r in caplog.records if str(kept) in r.message]
    assert "did not start from the checkpoint" in said


@pytest.fixture
def learned(tmp_path):
    """What was learned from the checkpoint ``a``, beside another one, ``b``."""
    for name, seed in (("a", 0), ("b", 1)):
        create_predictor("survival", seed=seed).save(tmp_path / name)
    predictor = create_predictor("survival")
    origin = learner._origin(str(tmp_path / "a"), None)
    predictor.summary = {STARTED_FROM: origin}
    predictor.save(tmp_path / "predictor")
    return tmp_path / "predictor"


def began(learned, **said):
    """Whether an engine started with these settings goes on from there."""
    settings = LiveSettings(**said)
    move_aside(learned, make_predictor(settings), learner._origin(settings.checkpoint, learned))
    return learned.exists()


def test_it_goes_on_from_what_belongs_to_what_is_given(learned):
    assert began(learned, predictor="survival")
    assert began(learned, checkpoint=str(learned.parent / "a"))
    assert began(learned, checkpoint=str(learned)), "from itself"
    assert not learned.with_name("predictor.old").exists()


@pytest.mark.parametrize(
    "said",
    [{"checkpoint": "b"}, {"predictor": "orca"}, {"predictor": "lstm", "width": 8}],
    ids=["another checkpoint", "another predictor", "a network"],
)
def test_what_does_not_belong_is_kept_under_another_name(learned, said):
    if "checkpoint" in said:
        said = {"checkpoint": str(learned.parent / said["checkpoint"])}
    for kept in ("predictor.old", "predictor.old1"):
        before = (learned / "manifest.json").read_bytes()
        assert not began(learned, **said)
        assert (learned.with_name(kept) / "manifest.json").read_bytes() == before
        create_predictor("survival").save(learned)


def test_what_a_replica_of_a_fleet_learned_itself_is_kept_with_it(learned):
    own = learned.with_name("predictor.own")
    create_predictor("survival").save(own)
    assert began(learned, checkpoint=str(learned.parent / "a"))
    assert own.exists()
    assert not began(learned, checkpoint=str(learned.parent / "b"))
    assert not own.exists()
    assert learned.with_name("predictor.old.own").exists()


def test_another_width_or_damage_starts_anew(learned):
    create_predictor("lstm", hidden_size=8).save(learned)
    assert began(learned, predictor="lstm", width=8)
    assert not began(learned, predictor="lstm", width=16)
    learned.mkdir()
    (learned / "manifest.json").write_text("{}")
    assert not began(learned)
    assert began(learned) is False, "nothing there is nothing in the way"


def test_whoever_still_writes_is_waited_for(learned, monkeypatch):
    monkeypatch.setattr(learner, "_PATIENCE_S", 0.2)
    held = claim(learned, 0.0)
    try:
        with pytest.raises(CheckpointError, match="another process learns into it"):
            began(learned, predictor="orca")
    finally:
        os.close(held)
    assert learned.exists()
    assert not began(learned, predictor="orca")


def test_without_a_state_folder_what_is_learned_is_temporary():
    engine = Engine().on(mode="shadow", learn=True)
    mixed_load(engine, n=10).run()
    assert engine.learned()["lessons"] == 10
    path = engine.learner._background.path
    assert path.exists()
    engine.scheduler.shutdown()
    assert not path.parent.exists()


# -- what may happen to it -------------------------------------------------------------------


def test_a_process_that_dies_is_reported_and_started_anew(caplog):
    caplog.set_level("WARNING", LOG.name)
    engine = Engine().predict_with(fitted(), mode="act", learn=True)
    mixed_load(engine, n=8).run()
    assert engine.learned()["learner_running"]
    kill(engine)
    until(lambda: engine.stats()["learner_restarts"] == 1)
    mixed_load(engine, n=8).run()
    stats = engine.learned()
    assert stats["lessons"] + stats["lessons_lost"] == 216
    assert stats["breaker"]["state"] == "closed"
    for _ in range(2):
        engine.learner.watch()
    (said,) = [r.message for r in caplog.records if "started anew" in r.message]
    assert "0 lessons lost" in said
    seen = block(merge([{**stats, "age": 0.0}]))
    assert "  Learning: 16 taken, 0 on the way, 0 dropped, 0 lost" in seen


def test_trouble_is_told_once(caplog, monkeypatch):
    engine = Engine().predict_with(fitted(), mode="act", learn=True)
    engine.learner._background._trouble = "no space left"
    for _ in range(2):
        engine.learner.watch()
    assert [r.message for r in caplog.records if "no space" in r.message] == [
        "the process that learns: no space left"
    ]
    seen = block(merge([{**engine.stats(), "age": 0.0}]))
    assert "  Learner Trouble: no space left" in seen


def test_a_predictor_that_hangs_does_not_keep_an_engine_from_ending(monkeypatch):
    monkeypatch.setattr(learner, "_STOP_S", 0.2)
    predictor = fitted()
    engine = Engine().predict_with(predictor, mode="act", learn=True)
    held, over = Event(), Event()

    def hang():
        with predictor.lock:
            held.set()
            over.wait(PATIENCE_S)

    hung = Thread(target=hang)
    hung.start()
    try:
        held.wait()
        assert engine.stats()["lessons"] == 200, "statistics wait for no lock"
        started = time.monotonic()
        engine.scheduler.shutdown()
        assert time.monotonic() - started < PATIENCE_S / 4
    finally:
        over.set()
        hung.join()
