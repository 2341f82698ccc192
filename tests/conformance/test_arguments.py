"""What may be passed to every public call: taken where it is exact, else refused in one line."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_conformance import MAKES

from sagellm_lifetime import (
    PREDICTORS,
    BackgroundLearner,
    CheckpointError,
    LifetimeError,
    PredictionRequest,
    RequestError,
    UnknownNameError,
    UnknownSequenceError,
    create_predictor,
    load_predictor,
)
from sagellm_lifetime.core.errors import shown

HUGE = 3**20_000


def kind_of(value):
    """Return the name of a case: pytest cannot write a number of 4,300 digits either."""
    return type(value).__name__


def refused(kind, call):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, LifetimeError)
    assert "\n" not in message
    assert len(message) <= 600
    return message


@pytest.fixture
def predictor():
    made = create_predictor("survival")
    for name, age in (("a", 50), (1, 0), ("b", 0)):
        made.predict(PredictionRequest(name, [], age, 200))
    return made


def asks(predictor, ids, ages):
    """Return the three calls of the array form."""
    return (
        partial(predictor.quantiles, ids, ages, 0.5),
        partial(predictor.distributions, ids, ages),
        partial(predictor.confidences, ids, ages),
    )


def test_arrays_of_numpy_and_lists_give_the_same(predictor):
    wanted = predictor.quantiles(["a", "b"], np.array([60, 3]), np.array([0.1, 0.5])).tolist()
    for ids in (("a", "b"), np.array(["a", "b"])):
        for ages in ([60, 3], np.array([60, 3], dtype=np.uint8), np.array([60.0, 3.0])):
            assert predictor.quantiles(ids, ages, [0.1, 0.5]).tolist() == wanted
            batch = predictor.distributions(ids, ages)
            assert batch.quantile(0.1).tolist() == [row[0] for row in wanted]
            assert predictor.confidences(ids, ages).shape == (2,)
    one = predictor.quantiles([1], [5], 0.5).tolist()
    for same in (np.array([1]), [np.int64(1)]):
        assert predictor.quantiles(same, [5], np.float32(0.5)).tolist() == one
    assert predictor.quantiles([], np.array([]), 0.5).shape == (0,)


@pytest.mark.parametrize("age", [-5, float("nan"), 0.5, True, HUGE, "60"], ids=kind_of)
def test_ages_that_cannot_be(predictor, age):
    for ask in asks(predictor, ["a"], [age]):
        refused(RequestError, ask)


@pytest.mark.parametrize(
    "ids", ["a", {"a"}, None, 5, [[1]], [None], [True], [1.0], [b"a"]], ids=kind_of
)
def test_ids_that_are_none(predictor, ids):
    for ask in asks(predictor, ids, [60]):
        refused(RequestError, ask)


@pytest.mark.parametrize(("ids", "count"), [(["a"], 2), (["a", "b"], 1), (["a"], 0)])
def test_one_age_for_each_id(predictor, ids, count):
    for ask in asks(predictor, ids, np.full(count, 60)):
        assert "one for each" in refused(RequestError, ask)


@pytest.mark.parametrize("unknown", ["nobody", 10**20, HUGE, ""], ids=kind_of)
def test_an_unknown_id_is_a_key_error_too(predictor, unknown):
    for ask in asks(predictor, ["a", unknown], [60, 3]):
        assert "is not tracked" in refused(UnknownSequenceError, ask)
        refused(KeyError, ask)


@pytest.mark.parametrize(
    "level", [-0.1, 2, float("nan"), True, "0.5", None, [0.1, 1.1], [[0.5]]], ids=kind_of
)
def test_levels_outside_0_to_1(predictor, level):
    refused(RequestError, lambda: predictor.quantiles(["a"], [60], level))
    assert predictor.quantiles(["a"], [60], 0).tolist() == [1]
    assert predictor.quantiles(["a"], [60], [0, 1]).shape == (1, 2)


def test_an_age_below_the_tracked_one_is_answered_and_is_no_news(predictor):
    """As documented: from what is known now, and nothing that is tracked changes."""
    younger = predictor.quantiles(["a"], [10], 0.5).item()
    bare = create_predictor("survival").predict(PredictionRequest("x", [], 10, 200))
    assert younger == bare.estimated_remaining_tokens
    metrics = predictor.get_metrics()
    assert (metrics["running"], metrics["replaced"]) == (3, 0)


@pytest.mark.parametrize("bad", [True, np.True_, 1.0, None, [1], (1,), b"1"], ids=kind_of)
def test_what_is_no_id_is_no_id_anywhere(predictor, bad):
    for call in (
        lambda: predictor.predict(PredictionRequest(bad, [], 0, 9)),
        lambda: predictor.predict_batch([PredictionRequest(bad, [], 0, 9)]),
        lambda: predictor.update(bad, 5, 1.0),
        lambda: predictor.discard(bad),
    ):
        assert "sequence_id must be an int or a str" in refused(RequestError, call)
    assert predictor.get_metrics()["running"] == 3


def test_completions_of_numpy_and_others(predictor):
    predictor.update(np.int64(1), np.uint8(20), np.float32(2.0), finish_reason=np.str_("stop"))
    predictor.update("a", 60, 3)
    metrics = predictor.get_metrics()
    assert (metrics["completions"], metrics["unknown_updates"]) == (2, 0)
    predictor.state()


@pytest.mark.parametrize(
    ("length", "seconds", "reason"),
    [
        (5, 1e308, "stop"),
        (5, 10**400, "stop"),
        (5, 2e8, "stop"),
        (5, True, "stop"),
        (5, "1", "stop"),
        (5, None, "stop"),
        (5, np.array([1.0]), "stop"),
        (5, 1j, "stop"),
        (HUGE, 1.0, "stop"),
        (5.0, 1.0, "stop"),
        (True, 1.0, "stop"),
        (None, 1.0, "stop"),
        (5, 1.0, None),
        (5, 1.0, ["stop"]),
        (5, 1.0, np.array(["stop", "stop"])),
        (5, 1.0, "x" * 10**6),
    ],
    ids=range(16),
)
def test_completions_that_cannot_be(predictor, length, seconds, reason):
    refused(RequestError, lambda: predictor.update("a", length, seconds, finish_reason=reason))
    predictor.update("a", 60, 1.0)
    assert predictor.get_metrics()["completions"] == 1, "the refused completion lost the sequence"


@pytest.mark.parametrize(
    "batch", [None, 5, PredictionRequest(1, [], 0, 1), [None], ["a"], "ab"], ids=kind_of
)
def test_batches_that_are_none(predictor, batch):
    refused(RequestError, lambda: predictor.predict_batch(batch))


def test_a_generator_is_a_batch(predictor):
    stream = (PredictionRequest(i, [], 0, 9) for i in range(3))
    assert len(predictor.predict_batch(stream)) == 3


ODD = (0, -1, None, "x", 1.5, float("nan"), True, HUGE, [1], np.array([1, 2]), object())
FINE = {("seed", "0"), ("expire_after", "0"), ("expire_after", "1.5")}
OPTIONS = {
    "baseline": ["window_size"],
    "survival": ["max_nodes"],
    "lstm": ["hidden_size", "num_layers", "epochs", "online"],
    "transformer": ["d_model", "nhead", "num_layers", "epochs", "online"],
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_options_that_cannot_be(name):
    for option in [*OPTIONS.get(name, []), "capacity", "seed", "expire_after"]:
        for value in ODD:
            if (option, shown(value)) in FINE:
                continue
            message = refused(RequestError, lambda o=option, v=value: MAKES[name](**{o: v}))
            assert option in message
    seeded = MAKES[name](capacity=np.int32(7), expire_after=np.float64(9.0))
    assert seeded.options["capacity"] == 7
    assert type(seeded.options["capacity"]) is int
    assert "no_such_option" in refused(RequestError, lambda: MAKES[name](no_such_option=1))


def test_names_of_predictors(tmp_path):
    for name in (None, 5, b"survival", ["survival"], "Survival", "", "\0\n" * 1000, HUGE):
        refused(UnknownNameError, lambda n=name: create_predictor(n))


def test_paths_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor = create_predictor("survival")
    for path in (5, b"x", "", "\0", "a\0b", ["x"], True, object(), "x" * 5000):
        for call in (load_predictor, predictor.save, partial(BackgroundLearner, predictor)):
            refused(CheckpointError, lambda c=call, p=path: c(p))
    for call in (load_predictor, predictor.save):
        refused(CheckpointError, lambda c=call: c(None))
    assert not predictor.learns_elsewhere
    assert list(tmp_path.iterdir()) == []
    predictor.save(str(tmp_path / "one"))
    assert load_predictor(Path(tmp_path / "one")).name == load_predictor("one").name


def test_arguments_of_learning_elsewhere(tmp_path):
    predictor = create_predictor("survival")
    for wrong in (None, "survival", 5, type(predictor)):
        refused(RequestError, lambda w=wrong: BackgroundLearner(w, tmp_path / "state"))
    for value in (None, "5", float("nan"), -1, True, HUGE, [1]):
        for option in ("every", "most_waiting"):
            make = partial(BackgroundLearner, predictor, tmp_path / "state", **{option: value})
            assert option in refused(RequestError, make)
    assert list(tmp_path.iterdir()) == [], "refused before anything was made"
    with BackgroundLearner(predictor, tmp_path / "state", every=np.float64(5.0)) as learner:
        for timeout in (None, "5", float("nan"), -1):
            refused(RequestError, lambda t=timeout: learner.drain(t))
            refused(RequestError, lambda t=timeout: learner.stop(t))
        assert learner.drain(float("inf"))


@pytest.mark.parametrize("name", ["baseline", "orca"])
def test_tables_that_are_full_keep_what_is_in_use(name, tmp_path, monkeypatch):
    """Names that come late are learned, and a checkpoint goes on in the same order."""
    module = f"sagellm_lifetime.models.{name}"
    monkeypatch.setattr(f"{module}._MAX_{'BUCKETS' if name == 'baseline' else 'MODELS'}", 4)
    predictor = create_predictor(name)

    def completed(i, length=30):
        said = {"model": f"m{i}"}
        predictor.predict(PredictionRequest(0, [], 0, 100 + 10 * i, said))
        predictor.update(0, length, 1.0)

    for i in range(40):
        completed(0)
        completed(1 + i)
    table = predictor.model._windows if name == "baseline" else predictor.model._moments
    keys = list(table)
    assert len(keys) == 4
    for _ in range(10):
        completed(0)
        completed(99, 90)
    late = predictor.predict(PredictionRequest("late", [], 0, 1090, {"model": "m99"}))
    assert 60 <= late.estimated_remaining_tokens <= 110
    predictor.save(tmp_path / "state")
    again = load_predictor(tmp_path / "state")
    restored = again.model._windows if name == "baseline" else again.model._moments
    assert list(restored) == list(table)


def test_seconds_per_token_go_on_in_their_order(tmp_path):
    predictor = create_predictor("survival")
    for model in ("c", "a", "b", "order", "a", "\ud800"):
        predictor.predict(PredictionRequest(0, [], 0, 100, {"model": model}))
        predictor.update(0, 30, 1.0)
    predictor.save(tmp_path / "state")
    names = list(load_predictor(tmp_path / "state")._timing._timing.state())
    assert names == ["", "c", "b", "order", "a", "\\ud800"]


@pytest.mark.parametrize("question", ["survival", "quantile", "interval", "given", "within"])
def test_a_duration_is_no_number(question):
    found = create_predictor("survival").predict(PredictionRequest(1, [], 0, None)).distribution
    for value in (np.timedelta64(3, "s"), np.array(np.timedelta64(3, "ns")), np.timedelta64("NaT")):
        with pytest.raises(RequestError):
            getattr(found, question)(value)


def test_an_array_without_dimensions_is_no_batch():
    with pytest.raises(RequestError, match="a batch must be a list"):
        create_predictor("survival").predict_batch(np.array(3))


@pytest.mark.parametrize("completion", [None, (), "completion", 3])
def test_what_is_no_completion_changes_nothing(completion):
    predictor = create_predictor("survival")
    with pytest.raises(RequestError, match="a completion must be"):
        predictor.learn(completion)
    assert predictor.get_metrics()["total_predictions"] == 0


@pytest.mark.parametrize("name", ["baseline", "survival", "lstm"])
@pytest.mark.parametrize("newest", [None, "a", 1.5, True, 2**63, -(2**63) - 1])
def test_the_newest_token_is_an_integer_for_every_predictor_and_age(name, newest):
    predictor = create_predictor(name)
    for age in (0, 2, 5, 40):
        request = PredictionRequest("x", [7, 8, newest], age, None, {})
        with pytest.raises(RequestError, match="token_ids"):
            predictor.predict(request)
        with pytest.raises(RequestError, match="token_ids"):
            predictor.predict_batch([request])
    assert predictor.get_metrics()["total_predictions"] == 0
    for fine in ([7, np.int64(8)], np.array([7, 8]), [-(2**63)], [2**63 - 1], [], None):
        predictor.predict(PredictionRequest("y", fine, 0, None, {}))
