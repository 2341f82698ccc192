"""``Experiment``: a history, policies and a predictor, as one library call."""

import polars as pl
import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime.core.errors import HistoryError, RequestError, UnknownNameError
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.replay.experiment import Experiment, ExperimentSettings, describe


@pytest.fixture(scope="module")
def data(frame):
    return Dataset.of(frame, "short")


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"policies": ("sjff",)}, UnknownNameError, "unknown policy 'sjff'"),
        ({"policies": ()}, RequestError, "no policy is named"),
        ({"load": "heavy"}, UnknownNameError, "unknown load 'heavy'"),
        ({"load": "nan"}, RequestError, "requests a second are possible"),
        ({"load": "0"}, RequestError, "requests a second are possible"),
        ({"predictor": "nobody"}, UnknownNameError, "nobody"),
        ({"cost_model": "tpu"}, UnknownNameError, "tpu"),
        ({"min_confidence": 2.0}, RequestError, "min_confidence"),
        ({"blocks": 1}, RequestError, "blocks must be 2 or more"),
        ({"seeds": 0}, RequestError, "seeds must be 1 or more"),
        ({"max_requests": 0}, RequestError, "max_requests must be 1 or more"),
        ({"max_model_len": 0}, RequestError, "max_model_len must be 1 or more"),
        ({"hash_block_size": 0}, RequestError, "hash_block_size must be 1 or more"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_once(given, error, told):
    with pytest.raises(error, match=told):
        ExperimentSettings(**given)


def test_what_cannot_be_replayed_is_refused_without_vllm(data):
    with pytest.raises(RequestError, match="the pool has 2: give --blocks"):
        Experiment(data, ExperimentSettings(blocks=3))
    with pytest.raises(HistoryError, match="prompt_length"):
        Experiment(Dataset.of(data.rows.drop("prompt_length")))
    idle = Dataset.of(data.rows.with_columns(actual_length=pl.lit(0)))
    with pytest.raises(HistoryError, match="nothing to train on"):
        Experiment(data, train=idle)


def test_who_is_asked_is_said(data):
    plain = Experiment(data, ExperimentSettings(policies=("fcfs",)))
    assert plain.how == f"requests from {round(len(data.rows) * 0.3)} rows; no predictor is asked"
    given = Experiment(data, predictor=create_predictor("survival"), origin="here")
    assert given.how == "survival of here"
    several = Experiment(data, ExperimentSettings(seeds=2))
    assert several.notes == [
        f"every seed draws all {round(len(data.rows) * 0.3)} requests: "
        "give a smaller --max-requests"
    ]


def test_an_experiment(vllm, data):
    settings = ExperimentSettings(
        policies=("fcfs", "lifetime"), load="4", blocks=400, max_requests=10, seeds=2
    )
    steps = []
    comparison = Experiment(data, settings).run(lambda what, share: steps.append((what, share)))
    assert {name: len(runs) for name, runs in comparison.runs.items()} == {
        "fcfs": 2,
        "lifetime": 2,
    }
    assert comparison.settings["predictor"] == "auto"
    assert comparison.settings["rates"] == [4.0, 4.0]
    assert "10 requests of short, 4 a second, medians over 2 seeds" in describe(comparison.settings)
    assert all(0 <= share <= 1 for _, share in steps)
    for stage in ("seed 0: training auto", "seed 1: lifetime"):
        assert any(what.startswith(stage) for what, _ in steps), stage
    assert Experiment(data, settings).run().figures() == comparison.figures()


def test_a_trained_predictor_is_not_changed(vllm, data):
    predictor = create_predictor("survival").fit(data.rows)
    before = predictor.get_metrics()["completions"]
    settings = ExperimentSettings(policies=("lifetime",), load="offline", max_requests=5)
    comparison = Experiment(data, settings, predictor=predictor).run()
    assert comparison.settings["rate"] is None
    assert comparison.settings["training_rows"] is None
    assert predictor.get_metrics()["completions"] == before
