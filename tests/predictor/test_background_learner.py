"""Learning in a process of its own: what it learns, and what happens when something dies."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sagellm_lifetime import (
    PREDICTORS,
    BackgroundLearner,
    CheckpointError,
    PredictionRequest,
    RequestError,
    create_predictor,
    load_predictor,
)
from sagellm_lifetime.networks.serving import Session
from sagellm_lifetime.predictor.registry import has_network
from sagellm_lifetime.testing.common import finished_sequences, outlooks, questions, teach

SMALL = {"lstm": {"hidden_size": 16}, "transformer": {"d_model": 16, "nhead": 2}}
SOON = 60.0
"""Seconds: starting a process takes half of one, PyTorch in it several, on a busy machine more."""


def made(name="survival", **options):
    if has_network(name):
        pytest.importorskip("torch")
    return create_predictor(name, **{**SMALL.get(name, {}), **options})


def ask(predictor, stream):
    for lesson in stream:
        for request in lesson.requests:
            predictor.predict(request)


def finish(predictor, stream):
    for lesson in stream:
        predictor.update(
            lesson.requests[0].sequence_id,
            lesson.length,
            lesson.seconds,
            finish_reason=lesson.finish_reason,
        )


def assert_knows_the_same(predictor, twin):
    found, wanted = predictor.state(), twin.state()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_counts_add_up(predictor, learned):
    metrics = predictor.get_metrics()
    gone = ("lessons_on_the_way", "lessons_dropped", "lessons_lost")
    assert metrics["lessons_taken"] == learned + sum(metrics[each] for each in gone), metrics
    return metrics


def until(happens, seconds=SOON):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_alive(process):
    """Whether it runs; one whose new parent has not looked yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def learning(*arguments, **options):
    """A learner that does not outlive the test."""
    learner = BackgroundLearner(*arguments, **options)
    try:
        yield learner
    finally:
        learner.stop()
        assert learner._supervisor.process.poll() is not None
        assert not learner._supervisor.is_alive()


# -- what is learned -------------------------------------------------------------------------


NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if has_network(name) else name for name in PREDICTORS
]


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_what_learning_inline_would(name, tmp_path):
    """All are asked about before any is learned from, then again when all were learned."""
    predictor = made(name)
    with learning(predictor, tmp_path / "state", every=3600.0) as learner:
        twin = predictor.clone()  # with its secret, which is drawn for a new state
        for at in range(2):
            stream = list(finished_sequences(70, seed=at, name=f"round {at}"))
            for each in (predictor, twin):
                ask(each, stream)
                finish(each, stream)
            assert learner.drain(SOON)
            assert_knows_the_same(predictor, twin)
            assert outlooks(predictor, questions(f"{at}")) == outlooks(twin, questions(f"{at}"))
        metrics = assert_counts_add_up(predictor, learned=140)
        assert metrics["lessons"] == 140
        assert metrics["learner_swaps"] == 2
        for field, value in twin.get_metrics().items():
            assert metrics[field] == value, field
        if name != "auto":  # whose network, if any, comes from a fit
            assert metrics.get("training_steps", 1) > 0, "the network was not trained"
    assert_knows_the_same(load_predictor(tmp_path / "state"), twin)


def test_update_moves_only_the_instant_parts():
    """Scores, seconds per token and recent completions at once; tables after the swap."""
    predictor = made("lstm")
    with learning(predictor, every=3600.0) as learner:
        before = predictor.state()
        teach(predictor, 40)
        after = predictor.state()
        changed = {name for name in after if not np.array_equal(after[name], before.get(name))}
        assert changed == {
            "predictor.recent.keys",
            "predictor.recent.finished",
            "timing_order",
            *(f"timing_shares.{name}" for name in ("new", "accounts", "loud")),
            *(f"timing.{model}" for model in ("", "m0", "m1")),
        }
        metrics = predictor.get_metrics()
        assert metrics["completions"] + metrics["censored"] == metrics["lessons_taken"] == 40
        assert metrics["lessons"] == 0
        assert learner.drain(SOON)
        assert predictor.get_metrics()["lessons"] == 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "transformer"])  # auto has none without a fit
@pytest.mark.usefixtures("new_weights_at_once")
def test_all_sessions_a_network_needs_are_built_at_the_start(name, monkeypatch):
    """For onnxruntime holds the GIL while it builds one; weights come and go without any."""
    built = []
    init = Session.__init__
    monkeypatch.setattr(Session, "__init__", lambda self, graph: built.append(init(self, graph)))
    predictor = made(name)
    teach(predictor, 20, seed=5, name="first")
    assert predictor.model.runner is not None
    built.clear()
    predictor = predictor.clone()
    assert len(built) == 1, "the session of the weights in use"
    with learning(predictor, every=3600.0) as learner:
        assert len(built) == 2
        for swaps in range(1, 4):
            teach(predictor, 20)
            assert learner.drain(SOON)
            assert learner.counts()["learner_swaps"] == swaps
            assert predictor.model.runner is not None
        assert len(built) == 2
    with learning(predictor.clone()):
        assert len(built) == 4


def test_a_swap_leaves_running_sequences_as_they_are():
    """They are tracked, their rows stand, and what came since the snapshot is not undone."""
    predictor = made("survival")
    teach(predictor, 40)
    with learning(predictor, every=3600.0) as learner:
        running = PredictionRequest("running", [], 0, 900, {"client_id": "c1"})
        predictor.predict(running)
        teach(predictor, 5, seed=9, name="more")
        assert learner.drain(SOON)
        assert predictor.get_metrics()["lessons"] == 45
        row = predictor._tracker.get("running", 0).answers[-1]
        # 40 and 45 lie between the same two powers of two: rows stand until what is known doubles.
        predictor.predict(running)
        assert predictor._tracker.get("running", 0).answers[-1] is row
        teach(predictor, 30, seed=10, name="many")
        assert learner.drain(SOON)
        predictor.predict(running)
        assert predictor._tracker.get("running", 0).answers[-1] is not row
        predictor.update("running", 70, 1.0)
        assert predictor.get_metrics()["unknown_updates"] == 0


def test_aborted_and_capped_sequences_are_lower_bounds():
    """30 % aborted at ages drawn uniformly, of sequences of 400: it learns 400."""
    predictor = made("survival")
    rng = np.random.default_rng(1)
    with learning(predictor) as learner:
        for i in range(160):
            predictor.predict(PredictionRequest(i, [], 0, 2048))
            if i % 10 < 3:
                cut = int(rng.integers(1, 400))
                predictor.update(i, cut, 1.0, finish_reason=("abort", "error")[i % 2])
            else:
                predictor.update(i, 400, 1.0)
        assert learner.drain(SOON)
        distribution = predictor.predict(PredictionRequest("new", [], 0, 2048)).distribution
        assert distribution.quantile(0.15) >= 280
        assert predictor.get_metrics()["censored"] == 48


def test_it_learns_by_itself_while_nobody_waits():
    predictor = made("survival")
    with learning(predictor, every=0.05):
        for at in range(3):
            teach(predictor, 5, seed=at, name=f"{at}")
            until(lambda at=at: predictor.get_metrics()["lessons"] == 5 * (at + 1))
        until(lambda: predictor.get_metrics()["learner_swaps"] >= 3)  # counted after the swap


# -- stopping and starting -------------------------------------------------------------------


def test_a_restart_goes_on_from_the_checkpoint(tmp_path):
    predictor = made("survival")
    with learning(predictor, tmp_path / "state", every=3600.0):
        twin = predictor.clone()  # with the same secret for the keys of names
        for each in (predictor, twin):
            teach(each, 1)
    with learning(made("survival", capacity=7), tmp_path / "state", every=3600.0) as learner:
        assert_knows_the_same(learner.predictor, twin)
        with_options = load_predictor(tmp_path / "state").options
        assert with_options["capacity"] == 7, "the process learns with the options of this run"
        for each in (learner.predictor, twin):
            teach(each, 1, seed=5, name="more")
        assert learner.drain(SOON)
        assert_knows_the_same(learner.predictor, twin)
    assert_knows_the_same(load_predictor(tmp_path / "state"), twin)


def test_stop_saves_what_was_taken_and_takes_no_more(tmp_path):
    predictor = made("survival")
    with learning(predictor, tmp_path / "state", every=3600.0) as learner:
        teach(predictor, 50)
        start = time.monotonic()
        learner.stop(SOON)
        assert time.monotonic() - start < SOON / 2
        assert load_predictor(tmp_path / "state").get_metrics()["lessons"] == 50
        assert predictor.get_metrics()["lessons"] == 50, "what it saved at last was swapped in"
        teach(predictor, 3, name="late")
        metrics = assert_counts_add_up(predictor, learned=50)
        assert metrics["lessons_dropped"] == 3
        learner.stop()
    twin = predictor.clone()
    teach(twin, 1, name="alone")
    assert twin.get_metrics()["lessons"] == 51, "a clone learns by itself"


def test_stop_ends_a_process_that_hangs():
    predictor = made("survival")
    with learning(predictor, every=3600.0) as learner:
        assert learner.drain(SOON)
        os.kill(learner._supervisor.process.pid, signal.SIGSTOP)
        teach(predictor, 20)
        start = time.monotonic()
        learner.stop(0.5)
        assert time.monotonic() - start < 3.0
        assert_counts_add_up(predictor, learned=0)


def test_a_temporary_state_is_gone_at_the_end():
    with learning(made("orca")) as learner:
        assert (learner.path / "model.safetensors").exists()
    assert not learner.path.parent.exists()


# -- when something dies ---------------------------------------------------------------------


def test_a_process_that_dies_is_started_anew_from_the_checkpoint():
    predictor = made("survival")
    with learning(predictor, every=3600.0) as learner:
        teach(predictor, 30)
        assert learner.drain(SOON)
        teach(predictor, 4, name="lost")
        until(lambda: not learner._waiting)
        os.kill(learner._supervisor.process.pid, signal.SIGKILL)
        until(lambda: predictor.get_metrics()["learner_restarts"] == 1)
        answer = predictor.predict(PredictionRequest("asked", [], 0, 512))
        assert answer.source == "model", "the engine goes on with what it has"
        teach(predictor, 6, name="after")
        assert learner.drain(SOON)
        metrics = assert_counts_add_up(predictor, learned=36)
        assert metrics["lessons_lost"] == 4
        assert metrics["lessons"] == 36
        assert metrics["learner_running"]


def test_a_process_that_hangs_is_killed_and_started_anew(monkeypatch):
    from sagellm_lifetime.predictor import supervisor

    predictor = made("survival")
    with learning(predictor, every=3600.0) as learner:
        teach(predictor, 30)
        assert learner.drain(SOON)
        os.kill(learner._supervisor.process.pid, signal.SIGSTOP)
        # More than a pipe holds, so that the supervisor is blocked in the middle of an order.
        teach(predictor, 400, name="lost")
        with monkeypatch.context() as short:
            short.setattr(supervisor, "_MOST_SILENT", 2)
            until(lambda: learner._supervisor.restarts == 1)
        assert "hung" in predictor.get_metrics()["learner_trouble"]
        teach(predictor, 6, name="after")
        assert learner.drain(SOON)
        metrics = predictor.get_metrics()
        assert metrics["lessons"] + metrics["lessons_lost"] == 436
        assert metrics["lessons_lost"] > 0
        assert metrics["learner_running"]
        assert metrics["learner_trouble"] is None


def test_pauses_grow_where_it_dies_at_once(monkeypatch, capfd):
    from sagellm_lifetime.predictor import supervisor

    broken = [sys.executable, "-c", "import sys; sys.exit('broken')"]
    monkeypatch.setattr(supervisor, "command", lambda *_: broken)
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_S", 0.05)
    predictor = made("baseline")
    with learning(predictor) as learner:
        start = time.monotonic()
        until(lambda: learner._supervisor.restarts >= 4)
        assert time.monotonic() - start > 0.05 + 0.1 + 0.2
        teach(predictor, 5)
        assert not learner.drain(0.1)
        assert predictor.predict(PredictionRequest(1, [], 0, 100)).source == "prior"
    assert "broken" in capfd.readouterr().err


def test_a_process_that_cannot_be_started_is_trouble(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    predictor = made("baseline")
    learner = BackgroundLearner(predictor)
    until(lambda: predictor.get_metrics()["learner_trouble"])
    learner.stop()
    assert "cannot be started" in predictor.get_metrics()["learner_trouble"]


def test_a_lesson_that_cannot_be_learned_costs_only_itself(capfd):
    """The process dies of it, and the next one is not given it again."""
    predictor = made("survival")
    with learning(predictor, every=3600.0) as learner:
        predictor.predict(PredictionRequest("poison", [], 0, 512))
        predictor._tracker.get("poison", 0).evidence.features.prompt_length = "not a number"
        predictor.update("poison", 10, 1.0)
        until(lambda: predictor.get_metrics()["learner_restarts"] == 1)
        teach(predictor, 8)
        assert learner.drain(SOON)
        assert_counts_add_up(predictor, learned=8)
        assert predictor.get_metrics()["lessons"] == 8
    assert "Traceback" in capfd.readouterr().err


def is_supervised(learner):
    return learner._supervisor.is_alive() and learner._supervisor.is_working


def test_evidence_that_cannot_be_pickled_costs_only_its_completion():
    predictor = made("survival")
    with learning(predictor, every=3600.0) as learner:
        predictor.predict(PredictionRequest("poison", [], 0, 512))
        predictor._tracker.get("poison", 0).evidence.features.prompt_length = lambda: "a secret"
        predictor.update("poison", 10, 1.0)
        until(lambda: predictor.get_metrics()["lessons_dropped"] == 1)
        until(lambda: predictor.get_metrics()["learner_trouble"])
        trouble = predictor.get_metrics()["learner_trouble"]
        assert "a completion was dropped: the evidence of its model cannot be pickled" in trouble
        assert "secret" not in trouble
        teach(predictor, 8)
        assert learner.drain(SOON)
        assert is_supervised(learner)
        metrics = assert_counts_add_up(predictor, learned=8)
        assert (metrics["lessons"], metrics["learner_restarts"]) == (8, 0)
        assert metrics["learner_trouble"] is None, "it is over"


@pytest.mark.parametrize("method", ["restore", "release"])
def test_a_model_that_raises_while_its_state_is_taken_over_is_trouble(method, monkeypatch):
    predictor = made("survival")

    def fail(*_):
        raise ZeroDivisionError("\nno such luck")

    with learning(predictor, every=3600.0) as learner:
        with monkeypatch.context() as patch:
            patch.setattr(type(predictor.model), method, fail)
            teach(predictor, 4)
            assert learner.drain(2.0 if method == "restore" else SOON) == (method == "release")
            until(lambda: predictor.get_metrics()["learner_trouble"])
            assert "(ZeroDivisionError: no such luck)" in predictor.get_metrics()["learner_trouble"]
        assert is_supervised(learner)
        teach(predictor, 4, name="later")
        assert learner.drain(SOON)
        metrics = assert_counts_add_up(predictor, learned=8)
        assert (metrics["lessons"], metrics["learner_trouble"]) == (8, None)


def test_trouble_with_the_disk_is_told_and_gets_over(tmp_path):
    predictor = made("survival")
    with learning(predictor, tmp_path / "state", every=0.05) as learner:
        assert learner.drain(SOON)
        (tmp_path / "state" / "model.safetensors").unlink()
        teach(predictor, 5)
        until(lambda: predictor.get_metrics()["learner_trouble"])
        assert "not a checkpoint" in predictor.get_metrics()["learner_trouble"]
        (tmp_path / "state" / "manifest.json").unlink()
        until(lambda: predictor.get_metrics()["lessons"] == 5)
        assert predictor.get_metrics()["learner_trouble"] is None


ENGINE = """
import sys, time
from sagellm_lifetime import BackgroundLearner, create_predictor
from sagellm_lifetime.testing.common import teach

predictor = create_predictor("survival")
learner = BackgroundLearner(predictor, sys.argv[1], every=3600.0)
learner.drain(60.0)
teach(predictor, 30)
while learner._waiting:
    time.sleep(0.01)
print(learner._supervisor.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("whom", ["the engine", "its whole group"])
def test_an_engine_killed_loses_nothing_that_was_sent(tmp_path, whom):
    """kill -9: the process that learns sees the end of the pipe, saves, and ends."""
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, tmp_path / "state"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as engine:
        worker = int(engine.stdout.readline())
        assert is_alive(worker)
        if whom == "the engine":
            engine.kill()
        else:
            os.killpg(engine.pid, signal.SIGKILL)
    # Started at once, it waits for the last one to write.
    with learning(made("survival"), tmp_path / "state") as learner:
        assert learner.predictor.get_metrics()["lessons"] == 30
        until(lambda: not is_alive(worker))


def test_the_temporary_state_of_a_killed_engine_is_gone(tmp_path):
    code = ENGINE.replace("sys.argv[1]", "None").replace(
        "print(", "print(learner.path.parent, file=sys.stderr); print("
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as engine:
        engine.stdout.readline()
        assert len(list(tmp_path.iterdir())) == 1
        engine.kill()
    until(lambda: not list(tmp_path.iterdir()))


def test_too_many_waiting_lessons_are_dropped_oldest_first():
    predictor = made("orca")
    with learning(predictor, every=3600.0, most_waiting=10) as learner:
        assert learner.drain(SOON)
        os.kill(learner._supervisor.process.pid, signal.SIGSTOP)
        start = time.perf_counter()
        teach(predictor, 400)
        assert time.perf_counter() - start < 5.0, "it waited for a process that hangs"
        metrics = predictor.get_metrics()
        assert metrics["lessons_on_the_way"] + metrics["lessons_dropped"] == 400
        assert len(learner._waiting) <= 10
        newest = learner._waiting[-1][0]
        assert newest == 400
        os.kill(learner._supervisor.process.pid, signal.SIGCONT)
        assert learner.drain(SOON)
        dropped = predictor.get_metrics()["lessons_dropped"]
        assert dropped > 0
        assert_counts_add_up(predictor, learned=400 - dropped)
        assert predictor.get_metrics()["lessons"] == 400 - dropped


# -- what is refused -------------------------------------------------------------------------


def test_what_is_refused(tmp_path):
    predictor = made("survival")
    with learning(predictor, tmp_path / "state"):
        with pytest.raises(RequestError, match="already"):
            BackgroundLearner(predictor)
        with pytest.raises(RequestError, match="another process"):
            predictor.fit(tmp_path / "nothing")
        state, model = predictor.state(), made("survival").model
        with pytest.raises(RequestError, match="it learns in another process"):
            predictor.model = model
        with pytest.raises(RequestError, match="it learns in another process"):
            predictor.restore(state)
        with pytest.raises(RequestError, match="it learns in another process"):
            predictor.swap(predictor.successor(state))
        assert predictor.clone().lessons == 0
    with pytest.raises(CheckpointError, match="'survival' predictor, not 'orca'"):
        BackgroundLearner(made("orca"), tmp_path / "state")
    with pytest.raises(CheckpointError, match="max_nodes=20000, not 50"):
        BackgroundLearner(made("survival", max_nodes=50), tmp_path / "state")
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"a checkpoint is a directory: name it without"):
        BackgroundLearner(made("survival"), tmp_path / "model.pt")

    class Mine(type(predictor)):
        pass

    with pytest.raises(RequestError, match="registry"):
        BackgroundLearner(Mine())


def test_two_learners_of_one_checkpoint_are_refused(tmp_path, monkeypatch):
    from sagellm_lifetime.predictor import background_learner as elsewhere

    monkeypatch.setattr(elsewhere, "_PATIENCE_S", 0.1)
    with (
        learning(made("survival"), tmp_path / "state"),
        pytest.raises(CheckpointError, match="another process learns into it"),
    ):
        BackgroundLearner(made("survival"), tmp_path / "state")
