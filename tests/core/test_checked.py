"""Arrays of a file that are asked for by name, type, shape and range."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_lifetime.core.checked import MOST, checked, checked_count, checked_keys

STATE = {
    "sums": np.array([[0.0, 1.5], [2.0, 3.0]]),
    "count": np.array([7]),
    "empty": np.zeros((0, 2)),
}


def test_an_array_that_is_as_it_should_be_is_returned_itself() -> None:
    assert checked(STATE, "sums", np.float64, (2, None), 0.0, 3.0) is STATE["sums"]
    assert checked(STATE, "empty", np.float64, (None, 2), 5.0) is STATE["empty"]
    assert checked_count(STATE, "count") == 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 3.5])
def test_one_value_out_of_range_is_enough(value: float) -> None:
    sums = STATE["sums"].copy()
    sums[1, 0] = value
    with pytest.raises(ValueError, match="'sums' holds values that are not from 0 to 3"):
        checked({"sums": sums}, "sums", np.float64, (2, 2), 0.0, 3.0)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (None,), (None, None, None), ()])
def test_shapes(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ValueError, match="has the shape"):
        checked(STATE, "sums", np.float64, shape)


def test_types_and_names() -> None:
    for dtype in (np.float32, np.int64, np.bool_):
        with pytest.raises(ValueError, match="holds float64"):
            checked(STATE, "sums", dtype, (2, 2))
    with pytest.raises(ValueError, match="'more' is missing"):
        checked(STATE, "more", np.float64, (2, 2))


@pytest.mark.parametrize(
    "value", [np.array([-1]), np.array([MOST + 1]), np.array([1.0]), np.array(1), np.array([1, 2])]
)
def test_counts(value: np.ndarray) -> None:
    with pytest.raises(ValueError, match="'count'"):
        checked_count({"count": value}, "count")


def test_keys() -> None:
    assert checked_keys({"-2": 0, "0": 0, "4294967295": 0}, -2, 2**32 - 1) == [-2, 0, 2**32 - 1]
    for name in ("", "-", "-3", "01", "1_0", " 1", "+1", "1.0", "¹", "٣", "4294967296", "9" * 5000):
        with pytest.raises(ValueError, match="is no key"):
            checked_keys({name: 0}, -2, 2**32 - 1)
