"""Values from callers: NumPy's like Python's, everything else refused in one bounded line."""

import uuid
from enum import IntEnum

import numpy as np
import pytest

from sagellm_lifetime.core.errors import (
    LONGEST,
    CheckpointError,
    LifetimeError,
    RequestError,
    UnknownNameError,
    UnknownSequenceError,
    shown,
)
from sagellm_lifetime.core.values import (
    as_ages,
    as_levels,
    as_list,
    as_option,
    as_seconds_option,
    as_sequence_id,
    as_sequence_ids,
    number,
    whole,
)

HUGE = 7**9000


class Failing:
    """An object whose own code fails, in every way it is asked."""

    def __index__(self):
        raise ZeroDivisionError

    def __float__(self):
        raise OSError("no float today")

    def __repr__(self):
        raise RuntimeError("no words")

    __str__ = __repr__


def kind(value):
    """Return the name of a case: pytest cannot write a number of 4,300 digits either."""
    return type(value).__name__


class Number(IntEnum):
    SEVEN = 7


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (5, 5),
        (np.uint8(5), 5),
        (np.array(5), 5),
        (Number.SEVEN, 7),
        (HUGE, HUGE),
        (True, None),
        (np.True_, None),
        (5.0, None),
        ("5", None),
        (np.array([5]), None),
        (None, None),
        (Failing(), None),
    ],
    ids=kind,
)
def test_whole(value, kept):
    found = whole(value)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (1.5, 1.5),
        (np.float32(0.5), 0.5),
        (3, 3.0),
        (np.array(2.5), 2.5),
        (float("nan"), None),
        (float("-inf"), None),
        (10**400, None),
        (True, None),
        ("1.5", None),
        (np.array([1.5]), None),
        (1j, None),
        (np.complex64(1), None),
        (Failing(), None),
    ],
    ids=kind,
)
def test_number(value, kept):
    assert number(value) == kept


@pytest.mark.parametrize(
    "value", ["a", 0, -3, HUGE, np.str_("a"), np.int16(4), Number.SEVEN], ids=kind
)
def test_ids_are_plain(value):
    found = as_sequence_id(value)
    assert found == value
    assert type(found) in (int, str)


@pytest.mark.parametrize(
    "value", [True, np.False_, 1.0, None, b"a", [1], (1,), Failing()], ids=kind
)
def test_what_is_no_id(value):
    for read in (as_sequence_id, lambda each: as_sequence_ids([5, each])):
        with pytest.raises(RequestError, match="sequence_id must be an int or a str"):
            read(value)


def test_lists():
    ids = ["a", 1]
    assert as_sequence_ids(ids) is ids
    for same in (("a", "b"), np.array(["a", "b"]), {"a": 1, "b": 2}.values()):
        assert len(as_sequence_ids(list("ab") if not isinstance(same, np.ndarray) else same)) == 2
        assert len(as_list("x", same)) == 2
    assert as_list("x", np.arange(3)) == [0, 1, 2]
    for bad in ("ab", b"ab", {1, 2}, {"a": 1}, iter([1]), 5, None, np.zeros((2, 2)), np.array(1)):
        with pytest.raises(RequestError, match="x must be a list"):
            as_list("x", bad)


@pytest.mark.parametrize(
    "ages",
    [
        [0, 7],
        (0, 7),
        np.array([0, 7]),
        np.array([0, 7], dtype=np.uint16),
        np.array([0.0, 7.0]),
        np.array([0, 7], dtype=object),
        [np.int8(0), 7.0],
    ],
    ids=kind,
)
def test_ages_are_taken_where_they_are_exact(ages):
    found = as_ages(ages, 2, 100)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 7]


@pytest.mark.parametrize(
    "bad",
    [-1, 101, 2**62, -(2**63), float("nan"), float("inf"), 0.5, True, None, "7", HUGE, Failing()],
    ids=kind,
)
def test_ages_that_cannot_be(bad):
    forms = [[3, bad], np.array([3, bad], dtype=object)]
    if isinstance(bad, float | int) and bad is not HUGE:
        forms.append(np.array([bad, bad]))
    for ages in forms:
        with pytest.raises(RequestError, match="ages must be whole numbers from 0 to 100"):
            as_ages(ages, 2, 100)


def test_the_largest_age_is_not_an_odd_sum_of_bits():
    assert as_ages(np.array([5, 10]), 2, 10).tolist() == [5, 10], "5 | 10 is 15"
    with pytest.raises(RequestError):
        as_ages(np.array([5, 11]), 2, 10)


@pytest.mark.parametrize(
    "ages", [5, [1], [1, 2, 3], np.zeros((2, 1), int), np.array(3), "12"], ids=kind
)
def test_one_age_for_each(ages):
    with pytest.raises(RequestError, match="ages must be"):
        as_ages(ages, 2, 100)
    assert as_ages(np.array([]), 0, 100).dtype == np.int64


def test_levels():
    assert as_levels(0.25) == as_levels(np.float64(0.25)) == 0.25
    assert as_levels(1) == 1.0
    assert as_levels([0, np.float32(0.5)]).tolist() == [0.0, 0.5]
    for bad in (2, -0.1, float("nan"), True, "0.5", None, [0.5, 2], [[0.5]], [True], HUGE):
        with pytest.raises(RequestError, match="level"):
            as_levels(bad)


def test_options():
    assert as_option("n", np.int64(3), 1, 9) == 3
    for bad in (0, 10, 3.0, True, None, "3", HUGE, float("nan"), [3], Failing()):
        with pytest.raises(RequestError, match="n must be a whole number from 1 to 9, got"):
            as_option("n", bad, 1, 9)
    assert as_seconds_option("s", float("inf")) == float("inf")
    assert as_seconds_option("s", 3) == 3.0
    for bad in (-1, float("nan"), True, None, "3", HUGE, [3], Failing()):
        with pytest.raises(RequestError, match="s must be seconds"):
            as_seconds_option("s", bad)


def test_what_is_shown_is_short():
    assert shown("it's") == '"it\'s"'
    assert shown(True) == "True"
    assert shown(HUGE) == f"a whole number of {HUGE.bit_length()} bits"
    assert shown(-(10**30)) == str(-(10**30))
    for value in ("x" * 10**6, b"x" * 10**6, HUGE, [HUGE], Failing(), uuid.uuid4()):
        assert len(shown(value)) < 120


def test_messages_are_one_bounded_line():
    for error in (
        LifetimeError("a\nb\tc\x00d " + "x" * 10**6 + " end"),
        CheckpointError("\n" * 5000),
        UnknownNameError("predictor", "\n" * 5000, ["one"]),
        UnknownNameError("predictor", [HUGE], ["one"]),
    ):
        assert len(str(error)) <= LONGEST
        assert "\n" not in str(error)
    assert str(LifetimeError("a\nb\tc\x00d é中")) == "a b c?d é中"
    assert str(LifetimeError("x" * 10**6 + " end")).endswith("x end"), "the end may say what to do"


def test_an_unknown_sequence_is_a_key_error_with_a_message():
    error = UnknownSequenceError("sequence 'a' is not tracked")
    assert isinstance(error, KeyError)
    assert isinstance(error, RequestError)
    assert str(error) == "sequence 'a' is not tracked", "not the repr of it, as of a KeyError"
