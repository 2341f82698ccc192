"""Runs of a study, one after another."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_lifetime import create_predictor
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.evaluation.study import Study, StudySettings
from sagellm_lifetime.workloads import generate

SETTINGS = StudySettings(predictors=("survival",), online=True)


def data() -> Dataset:
    return Dataset.of(generate("chat", 120, seed=1), "chat")


def test_every_run_scores_the_same_also_after_an_interrupted_one() -> None:
    study = Study(data(), SETTINGS)
    first = study.run().evaluations[0].to_dict()

    def interrupt(what: str, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(interrupt)
    assert study.run().evaluations[0].to_dict() == first


def test_a_predictor_that_is_given_learns_nothing() -> None:
    given = create_predictor("survival")
    before = given.state()
    Study(data(), SETTINGS, train=data(), predictor=given).run()
    assert given.lessons == 0
    assert given.get_metrics()["total_predictions"] == 0
    for name, array in given.state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
