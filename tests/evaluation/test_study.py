"""``Study``: predictors and baselines on a history, as one library call."""

import polars as pl
import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime.core.errors import HistoryError, RequestError, UnknownNameError
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.evaluation.study import Study, StudySettings
from sagellm_lifetime.workloads import generate


@pytest.fixture(scope="module")
def data():
    return Dataset.of(generate("chat", 200, seed=1), "chat")


def test_several_predictors_stand_beside_the_same_baselines(data):
    steps = []
    study = Study(data, StudySettings(predictors=("survival", "baseline"), online=False))
    result = study.run(lambda what, share: steps.append((what, share)))
    first, second = result.evaluations
    assert (first.name, second.name) == ("survival", "baseline")
    assert first.rows == second.rows == 60
    rivals = set(first.scores) - {"survival"}
    assert rivals == set(second.scores) - {"baseline"}
    for name in rivals:
        assert first.scores[name] == second.scores[name]
    assert result.settings["training_rows"] == 140
    assert set(result.to_json()["predictors"]) == {"survival", "baseline"}
    assert all(0 <= share <= 1 for _, share in steps)
    for stage in ("training the baselines", "training survival", "scoring baseline"):
        assert any(what.startswith(stage) for what, _ in steps), stage


def test_a_trained_predictor_is_scored_on_all_rows(data):
    predictor = create_predictor("survival").fit(data.rows)
    study = Study(data, StudySettings(online=False), predictor=predictor, origin="here")
    assert study.how.startswith("survival of here, scored on 200 rows; each baseline")
    result = study.run()
    assert [each.name for each in result.evaluations] == ["survival"]
    assert "constant_median" in result.evaluations[0].scores
    assert result.settings["split"] is None


def test_it_learns_online_where_every_row_has_an_arrival(data):
    settings = StudySettings(predictors=("baseline",))
    assert Study(data, settings).online
    undated = Dataset.of(data.rows.drop("arrival_time"))
    assert not Study(undated, settings).online
    with pytest.raises(HistoryError, match="arrival_time"):
        Study(undated, StudySettings(predictors=("baseline",), online=True))


def test_bad_settings_are_refused_at_once(data):
    with pytest.raises(UnknownNameError, match="nobody"):
        StudySettings(predictors=("nobody",))
    with pytest.raises(RequestError, match="no predictor"):
        StudySettings(predictors=())
    with pytest.raises(RequestError, match="max_rows"):
        StudySettings(max_rows=0)
    with pytest.raises(UnknownNameError, match="split"):
        Study(data, StudySettings(split="row"))


def test_what_cannot_be_scored_or_trained_on_is_refused():
    settings = StudySettings(predictors=("survival",))
    empty = Dataset.of(pl.DataFrame({"actual_length": [0] * 20}))
    with pytest.raises(HistoryError, match="nothing to evaluate"):
        Study(empty, settings)
    late = Dataset.of(pl.DataFrame({"actual_length": [0] * 14 + [5] * 6}))
    with pytest.raises(HistoryError, match="nothing to train on"):
        Study(late, settings)


def test_a_dataset_knows_its_clock(tmp_path):
    rows = generate("chat", 50, seed=1)
    rows.write_parquet(tmp_path / "h.parquet")
    read = Dataset.read(tmp_path / "h.parquet")
    assert read.name == str(tmp_path / "h.parquet")
    assert read.recorded_clock == read.clock == "wall"
    assert Dataset.of(rows, clock="session").recorded_clock == "session"
    assert Dataset.of(rows.drop("arrival_time")).recorded_clock is None
