"""Pickle, deepcopy and repr of predictors, models and distributions; swapping the model."""

import copy
import pickle
from functools import cache
from threading import Thread

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime import (
    PREDICTORS,
    LengthDistribution,
    LengthModel,
    LifetimeError,
    PredictionRequest,
    Predictor,
    RequestError,
    create_predictor,
)
from sagellm_lifetime.core.hazard import ROW, WIDE
from sagellm_lifetime.models.survival import SurvivalModel
from sagellm_lifetime.predictor.registry import has_network
from sagellm_lifetime.testing.common import outlooks, questions, teach

pytestmark = pytest.mark.usefixtures("new_weights_at_once")

SMALL = {"lstm": {"hidden_size": 16}, "transformer": {"d_model": 16, "nhead": 2}}
COPIES = {
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@cache
def taught_once(name):
    predictor = create_predictor(name, **{**SMALL.get(name, {}), "capacity": 99})
    teach(predictor, 60)
    return predictor


def taught(name):
    if has_network(name):
        pytest.importorskip("torch")
    return taught_once(name).clone()


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", PREDICTORS)
def test_a_copy_knows_the_same_and_shares_and_tracks_nothing(name, how):
    predictor = taught(name)
    predictor.summary = {"rows": 3}
    predictor.predict(PredictionRequest("running", [], 0, None))
    twin = COPIES[how](predictor)
    assert type(twin) is type(predictor)
    assert twin.options == predictor.options
    assert twin.summary == {"rows": 3}
    metrics = twin.get_metrics()
    assert (metrics["running"], metrics["total_predictions"], metrics["lessons"]) == (0, 0, 60)
    assert outlooks(twin, questions()) == outlooks(predictor, questions())
    before = predictor.state()
    teach(twin, 20, seed=3, name="of the copy")
    for key, value in predictor.state().items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    assert twin.lessons == 80


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", PREDICTORS)
def test_a_copy_of_a_model_knows_the_same(name, how):
    predictor = taught(name)
    model = COPIES[how](predictor.model)
    assert type(model) is type(predictor.model)
    assert (model.options, model.lessons) == (predictor.model.options, 60)
    found, wanted = model.state(), predictor.model.state()
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_distribution_says_the_same(how):
    result = taught("survival").predict(PredictionRequest("x", [], 30, 4096))
    twin = COPIES[how](result.distribution)
    assert isinstance(twin, LengthDistribution)
    assert repr(twin) == repr(result.distribution)
    assert twin.survival(100) == result.distribution.survival(100)
    assert twin.given(5).quantile(0.9) == result.distribution.given(5).quantile(0.9)
    assert COPIES[how](result).distribution.mean() == result.distribution.mean()


def test_what_a_predictor_looks_like():
    predictor = create_predictor("baseline", window_size=7)
    predictor.predict(PredictionRequest("a", [], 0, None))
    assert repr(predictor) == (
        "<BaselineLifetimePredictor(seed=0, window_size=7, capacity=65536, expire_after=3600.0), "
        "0 lessons, 1 running>"
    )
    assert repr(predictor.model) == "<BaselineModel(seed=0, window_size=7), 0 lessons>"
    assert "median=" in repr(predictor.predict(PredictionRequest("a", [], 0, None)).distribution)


def test_a_model_is_swapped_by_assignment_and_running_sequences_are_answered_anew():
    predictor, other = create_predictor("survival"), create_predictor("survival")
    request = PredictionRequest("running", [], 0, 4096, {"client_id": "c"})
    before = predictor.predict(request)
    for i in range(50):
        other.predict(PredictionRequest(i, [], 0, 4096, {"client_id": "c"}))
        other.update(i, 1000, 1.0)
    predictor.summary = {"rows": 3}
    predictor.model = copy.deepcopy(other.model)
    assert predictor.summary == {}, "of the model that was replaced"
    assert predictor.lessons == 50
    after = predictor.predict(request)
    assert (before.source, after.source) == ("prior", "model")
    assert 900 <= after.estimated_remaining_tokens <= 1100
    assert predictor.get_metrics()["running"] == 1


def test_a_model_of_another_class_is_refused_and_changes_nothing():
    predictor = create_predictor("survival")
    with pytest.raises(RequestError, match="around SurvivalModel cannot go on with"):
        predictor.model = create_predictor("orca").model
    with pytest.raises(RequestError, match="made around a LengthModel"):
        Predictor("survival")
    assert predictor.model.name == "survival"


def test_a_model_that_another_predictor_has_is_refused():
    predictor, other = create_predictor("survival"), create_predictor("survival")
    taken, own = other.model, predictor.model
    with pytest.raises(RequestError, match="another predictor has this model"):
        predictor.model = taken
    assert predictor.model is own
    predictor.model = own
    del other
    predictor.model = taken
    assert predictor.model is taken


@pytest.mark.parametrize("option", ["capacity", "expire_after"])
def test_a_model_with_an_option_of_the_predictor_is_refused(option):
    class Sized(SurvivalModel):
        name = "sized"

    model = Sized()
    model.options[option] = 10
    with pytest.raises(RequestError, match=f"model 'sized' has an option '{option}'"):
        Predictor(model)


def test_other_threads_predict_while_a_fit_runs():
    predictor = create_predictor("survival")
    asked = PredictionRequest("a", [], 0, None)
    answers = []

    def progress(step: str, share: float) -> None:
        if not answers:
            thread = Thread(target=lambda: answers.append(predictor.predict(asked)), daemon=True)
            thread.start()
            thread.join(10.0)
            assert answers, "the fit keeps the predictor's lock"

    predictor.fit(pl.DataFrame({"actual_length": [40] * 60}), progress=progress)
    assert answers[0].source == "prior"
    assert predictor.predict(asked).estimated_remaining_tokens == 40


def test_a_fit_that_fails_in_the_middle_leaves_the_model_in_use():
    class Fails(LengthModel):
        name = "fails"
        width = ROW

        def hazards(self, evidence):
            return [np.linspace(0, 5, self.width, dtype=np.float32) for _ in evidence]

        def learn(self, feedback):
            if feedback.replayed:
                raise ZeroDivisionError

        def state(self):
            return {}

        def restore(self, state):
            pass

    predictor = Predictor(Fails())
    predictor.predict(PredictionRequest("a", [], 0, None))
    model = predictor.model
    with pytest.raises(ZeroDivisionError):
        predictor.fit(pl.DataFrame({"actual_length": [5, 6, 7]}))
    assert predictor.model is model
    assert predictor.get_metrics()["running"] == 1
    predictor.update("a", 5, 1.0)
    assert predictor.lessons == 1
    predictor.model.width = 7
    with pytest.raises(LifetimeError, match=f"has {ROW} or {WIDE} numbers, and the model's has 7"):
        predictor.predict(PredictionRequest("b", [], 0, None))


def test_a_model_is_shown_the_traffic_it_asks_for():
    class Asks(SurvivalModel):
        name = "asks"
        context = ("recent",)

        def observe(self, request):
            self.shown = [done.length for done in request.recent.client(request.features)]
            return super().observe(request)

    predictor = Predictor(Asks())
    for i, length in enumerate((30, 40, 50)):
        predictor.predict(PredictionRequest(i, [], 0, None, {"client_id": "c"}))
        predictor.update(i, length, 1.0)
    predictor.predict(PredictionRequest("new", [], 0, None, {"client_id": "c"}))
    assert predictor.model.shown == [40, 50]
    predictor.predict(PredictionRequest("other", [], 0, None, {"client_id": "d"}))
    assert predictor.model.shown == []
    parts = ("predictor.recent.", "predictor.conversations.")
    assert {key for key in predictor.state() if key.startswith(parts)} == {
        "predictor.recent.keys",
        "predictor.recent.finished",
    }
    Asks.context = ("weather",)
    with pytest.raises(RequestError, match="no such context: 'weather'"):
        Predictor(Asks())


def test_arrays_that_do_not_fit_change_nothing():
    predictor = taught("survival")
    known = predictor.state()
    lie = {**known, "predictor.tables.count": np.array([-1])}
    with pytest.raises(ValueError, match="count"):
        predictor.restore(lie)
    with pytest.raises(ValueError, match="timing"):
        predictor.restore({**known, "timing.m0": np.zeros(0)})
    for key, value in predictor.state().items():
        np.testing.assert_array_equal(value, known[key], err_msg=key)
