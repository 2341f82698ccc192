"""The hidden components that ship with the recorded answers."""

from importlib import resources

import numpy as np
import pytest

from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT
from sagellm_lifetime.workloads.recorded import recorded


@pytest.mark.parametrize("low", [False, True])
def test_components_come_with_all_answers_as_far_as_these_go(low):
    plain, frame = recorded(low=low), recorded(hidden=True, low=low)
    assert not set(COLUMNS) & set(plain.columns)
    assert frame.drop(COLUMNS).equals(plain)
    lengths = frame["actual_length"].to_numpy()
    first = frame[COLUMNS[0]].is_not_null().to_numpy()
    assert first.all()
    for age, name in zip(READ_AT, COLUMNS, strict=True):
        known = frame[name].is_not_null().to_numpy()
        assert (known == (first & (lengths > age))).all()
        vectors = np.array(frame[name].drop_nulls().to_list())
        assert vectors.shape[1] == 16
        assert np.isfinite(vectors).all()
        assert (vectors.astype(np.float16) == vectors).all()


@pytest.mark.parametrize("low", [False, True])
def test_the_first_reading_orders_the_answers(low):
    frame = recorded(hidden=True, low=low).drop_nulls(COLUMNS[0])
    x = np.array(frame[COLUMNS[0]].to_list())
    y = np.log(frame["actual_length"].to_numpy())
    half = len(y) // 2
    design = np.column_stack([x, np.ones(len(y))])
    weights = np.linalg.lstsq(design[:half], y[:half], rcond=None)[0]
    assert np.corrcoef(design[half:] @ weights, y[half:])[0, 1] > 0.5


def test_low_temperatures_are_low_and_what_ships_is_small():
    frame = recorded(low=True)
    assert frame["temperature"].round(2).unique().sort().to_list() == [0.0, 0.2]
    assert len(frame) > 1000
    assert frame["actual_length"].max() == 512
    certain = frame.filter(frame["temperature"] == 0.0)
    alone = certain.filter(certain["turn"].is_null())
    assert alone["prompt_id"].is_unique().all()
    folder = resources.files("sagellm_lifetime.workloads.recorded")
    assert (
        sum(len(one.read_bytes()) for one in folder.iterdir() if one.name.endswith("parquet")) < 6e6
    )
