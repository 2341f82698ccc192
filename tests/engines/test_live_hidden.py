"""Hidden states, from the model's process to predictor, plan and record."""

import numpy as np
import polars as pl
import pytest
from engine_help import Engine

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.vllm.launch.server import HIDDEN, LaunchError, check_one_process, command
from sagellm_lifetime.vllm.settings import LiveSettings

SOURCE = "tiny layer 2"
LONG, SHORT = np.float32([1.5, 0.0]), np.float32([-1.5, 0.0])


@pytest.fixture
def board(vllm):
    from sagellm_lifetime.vllm import hidden_watch

    hidden_watch._board.__init__()
    hidden_watch._board.source = SOURCE
    return hidden_watch._board


def taught():
    """A predictor that has learned that the first number is the logarithm of the length."""
    predictor = create_predictor("survival")
    rng = np.random.default_rng(0)
    for i, (one, two) in enumerate(rng.normal(size=(150, 2))):
        given = {"hidden_state": [one, two], "hidden_source": SOURCE, "prompt_length": 20}
        predictor.predict(PredictionRequest(i, [], 0, 400, given))
        predictor.update(i, max(int(60 * np.exp(0.8 * one)), 1), 1.0)
    return predictor


def read(board, name, age, vector):
    """What the model's process does at the end of a reading."""
    board.readings.setdefault(name, {})[age] = vector
    board.fresh.add(name)


def remaining(predictor, engine, name):
    age = engine.scheduler.requests[name].num_output_tokens
    return int(predictor.quantiles([name], np.array([age]), 0.5)[0])


def test_a_reading_is_new_evidence_in_the_next_step(board):
    predictor = taught()
    engine = Engine().predict_with(predictor, hidden=True)
    engine.add(100, name="a")
    engine.add(100, name="b")
    asked = engine.scheduler.requests["a"].sampling_params.extra_args
    assert asked == {"watch_hidden": "a"}
    engine.step()
    before = remaining(predictor, engine, "a")
    read(board, "a", 0, LONG)
    read(board, "b", 0, SHORT)
    engine.step()
    assert remaining(predictor, engine, "a") > 1.5 * before > 3 * remaining(predictor, engine, "b")
    read(board, "a", 32, SHORT)  # no stage has learned of later readings: nothing changes
    engine.step()
    engine.run()
    assert engine.advisor.breaker.state == "closed"
    assert not board.readings


def test_victims_feel_a_reading_at_once(board):
    predictor = taught()
    engine = Engine().predict_with(predictor, hidden=True, mode="act")
    for name in "abc":
        engine.add(300, name=name)
    for _ in range(3):
        engine.step()
    scheduler, advisor = engine.scheduler, engine.advisor

    def order():
        views = [scheduler._view(request) for request in scheduler.running]
        places = advisor._advisor.victims(views)
        return [views[place].id for place in places]

    first = order()[-1]  # looks at all of them, and keeps the answers for some steps
    assert order()[-1] == first
    for name in "abc":
        read(board, name, 0, SHORT if name == first else LONG)
    engine.step()
    assert order()[-1] != first
    assert advisor.breaker.state == "closed"


def test_the_reservation_feels_a_reading_at_once(board):
    engine = Engine().predict_with(taught(), hidden=True, mode="act", policy="reserve")
    for name in "abc":
        engine.add(300, name=name)
    for _ in range(3):
        engine.step()
    advisor = engine.advisor._advisor
    advisor.growth()  # a look at all of them, after which the next one is some steps away
    before = advisor.withheld
    for name in "abc":
        read(board, name, 0, LONG)
    engine.step()
    longer = advisor.withheld
    assert longer > before
    for name in "abc":
        board.readings[name] = {0: SHORT}
    assert advisor.withheld == longer, "evidence counts where it is told to be new"
    assert engine.advisor.breaker.state == "closed"


@pytest.mark.parametrize("first", "ab")
def test_the_order_of_resumed_requests_feels_a_reading_at_once(board, first):
    """Also where the reading comes after the preemption, from the step before it."""
    engine = Engine().predict_with(taught(), hidden=True, mode="act", policy="sjf")
    for name in "ab":
        engine.add(300, name=name)
    for _ in range(3):
        engine.step()
    scheduler, advisor = engine.scheduler, engine.advisor._advisor
    for name in "ab":
        request = scheduler.requests[name]
        scheduler.running.remove(request)
        scheduler._preempt_request(request, engine.now)

    def order():
        views = [scheduler._view(request) for request in scheduler.waiting]
        return [views[place].id for place in advisor.order(views, 0)]

    assert len(order()) == 2
    for name in "ab":
        read(board, name, 0, SHORT if name == first else LONG)
    engine.advisor.begin_step(
        0, tuple(map(scheduler._view, scheduler.request_events.grown(scheduler.requests)))
    )
    engine.advisor.flush()
    assert order()[0] == first


def test_rows_of_a_record_hold_states_only_with_content(board, tmp_path):
    for content in (False, True):
        folder = tmp_path / str(content)
        engine = Engine().on(hidden=True, record=str(folder), content=content)
        engine.add(10, name="a")
        engine.step()
        read(board, "a", 0, np.float32([0.5, -0.25]))
        engine.run()
        engine.scheduler.shutdown()
        row = pl.concat([pl.read_parquet(path) for path in folder.glob("*.parquet")]).row(
            0, named=True
        )
        if content:
            assert (row["hidden_state"], row["hidden_source"]) == ([0.5, -0.25], SOURCE)
        else:
            assert not {"hidden_state", "hidden_source", "prompt_token_ids"} & set(row)


def test_a_fault_of_the_watch_is_one_of_the_breaker_and_the_engine_goes_on(board):
    engine = Engine().on(hidden=True)
    engine.add(50, name="a")
    engine.step()
    board.fault = ValueError("broken")
    engine.step()
    assert engine.stats()["breaker"] != "closed"
    engine.run()
    assert not engine.scheduler.requests


def test_nobody_is_watched_unless_asked_for(board):
    engine = Engine().on()
    engine.add(5, name="a")
    engine.step()
    assert not engine.scheduler.requests["a"].sampling_params.extra_args


def test_both_watches_go_together(board):
    engine = Engine().on(hidden=True, signals=True)
    engine.add(5, name="a")
    asked = engine.scheduler.requests["a"].sampling_params.extra_args
    assert asked == {"watch_eos": "a", "watch_hidden": "a"}
    engine.run()


def test_the_watch_is_loaded_where_it_is_asked_for():
    line = command("m", LiveSettings(hidden=True), ["--enforce-eager"])
    assert line[line.index("--logits-processors") + 1] == HIDDEN
    assert line[line.index("--distributed-executor-backend") + 1] == "uni"
    with pytest.raises(LaunchError, match="--watch-hidden"):
        check_one_process(["-tp=2"], "--watch-hidden")
