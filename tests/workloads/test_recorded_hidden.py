"""The hidden components that ship with the recorded answers."""

import numpy as np

from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT
from sagellm_lifetime.workloads.recorded import recorded


def test_components_come_with_all_answers_as_far_as_these_go():
    plain, frame = recorded(), recorded(hidden=True)
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


def test_the_first_reading_orders_the_answers():
    frame = recorded(hidden=True).drop_nulls(COLUMNS[0])
    x = np.array(frame[COLUMNS[0]].to_list())
    y = np.log(frame["actual_length"].to_numpy())
    half = len(y) // 2
    design = np.column_stack([x, np.ones(len(y))])
    weights = np.linalg.lstsq(design[:half], y[:half], rcond=None)[0]
    assert np.corrcoef(design[half:] @ weights, y[half:])[0, 1] > 0.5
