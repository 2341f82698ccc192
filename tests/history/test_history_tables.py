"""Tables of other libraries as histories: pandas, pyarrow, and whoever else speaks Arrow."""

import sys

import numpy as np
import polars as pl
import pytest
from history_help import refused
from polars.testing import assert_frame_equal

from sagellm_lifetime import RequestError, create_predictor
from sagellm_lifetime.history import read_history

WANTED = pl.DataFrame(
    {
        "request_id": ["a", "b", "c"],
        "max_length": [None, 64, 64],
        "actual_length": [5, 64, 7],
        "actual_time": [0.5, None, 2.0],
        "finish_reason": ["stop", "length", "stop"],
        "prompt_token_ids": [[1, 2], None, [3]],
    }
)


class Foreign:
    """A table of a library that nobody here has heard of."""

    def __init__(self, frame):
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self._frame.__arrow_c_stream__(requested_schema)


class Deaf:
    def __arrow_c_stream__(self, requested_schema=None):
        raise NotImplementedError("secret")


def test_whoever_speaks_arrow():
    found = read_history(Foreign(WANTED)).frame
    assert_frame_equal(found, read_history(WANTED).frame)
    create_predictor("survival").fit(Foreign(WANTED))
    assert "secret" not in refused(Deaf())


def test_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    rows = {name: WANTED[name].to_list() for name in WANTED.columns}
    rows["finish_reason"] = pandas.Categorical(["stop", "length", None])
    rows["actual_time"] = np.array([0.5, np.nan, 2.0])
    rows["note"] = [object(), 5, "text"]
    for index in (None, ["x", "y", "z"]):
        table = pandas.DataFrame(rows, index=index)
        for each in (table, table.drop(columns="note"), table.convert_dtypes()):
            found = read_history(each).frame
            assert_frame_equal(found, read_history(WANTED).frame)
        assert "appears twice" in refused(pandas.concat([table, table], axis=1))
        table["actual_length"] = [5, "many", 7]
        assert "'actual_length' has values of several types" in refused(table)
    assert "no column 'actual_length'" in refused(pandas.DataFrame({"model": ["m"]}))
    assert create_predictor("survival").fit(pandas.DataFrame(rows)).summary["rows"] == 3


def test_pyarrow():
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = pyarrow.Table.from_pydict({name: WANTED[name].to_list() for name in WANTED.columns})
    assert_frame_equal(read_history(table).frame, read_history(WANTED).frame)


@pytest.mark.parametrize(
    "source", [5, None, True, b"h.csv", [1], {"actual_length": [1]}, np.arange(3), object()]
)
def test_what_is_no_history(source):
    message = refused(source)
    assert "a history is a path, a polars frame or a table" in message


def test_paths_that_no_file_can_have():
    for source in ("\0", "a\0b.csv", "x" * 5000, "x" * 5000 + ".csv"):
        refused(source)


def test_progress_must_be_callable():
    predictor = create_predictor("survival")
    with pytest.raises(RequestError, match="progress"):
        predictor.fit(WANTED, progress=5)
    assert predictor.get_metrics()["lessons"] == 0


def test_nothing_is_imported_for_it():
    read_history(Foreign(WANTED))
    if "pandas" not in sys.modules:
        assert "pyarrow" not in sys.modules
