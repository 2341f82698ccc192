"""Numbers as callers give them: NumPy scalars are taken, everything else is refused in one line."""

from __future__ import annotations

from math import inf, isnan
from numbers import Real
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown

LARGEST_AGE: Final = 2**53
"""Up to here every count of tokens is exact as a float, too."""


def real(value: Any, what: str) -> float:
    """Return ``value`` as a float, infinite where it has more digits than a float can have.

    Args:
        value: an int, a float or a NumPy scalar (also an array without dimensions).
        what: name of the argument in the message.

    Raises:
        RequestError: for everything else, booleans and NaN included.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]  # not item(), which makes an int of a duration
    # NumPy counts its durations among the integers.
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, Real):
        raise RequestError(f"{what} must be one number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = -inf if value < 0 else inf
    if isnan(number):
        raise RequestError(f"{what} must be a number, got nan")
    return number


def level(value: Any, what: str) -> float:
    """Return a probability as a float. Raise :class:`RequestError` outside 0 to 1."""
    if type(value) is float and 0.0 <= value <= 1.0:
        return value
    number = real(value, what)
    if not 0.0 <= number <= 1.0:
        raise RequestError(f"{what} must lie between 0 and 1, got {shown(value)}")
    return number


def tokens(value: Any, what: str) -> int:
    """Return a count of tokens as an int; 3.0 is 3.

    Raises:
        RequestError: negative counts, fractions, and more than :data:`LARGEST_AGE`.
    """
    if type(value) is int and 0 <= value <= LARGEST_AGE:
        return value
    real(value, what)
    if not 0 <= value <= LARGEST_AGE or value != int(value):
        raise RequestError(
            f"{what} must be a whole number from 0 to {LARGEST_AGE}, got {shown(value)}"
        )
    return int(value)


def tolerance(value: Any) -> float:
    """Return a relative error as a float. Raise :class:`RequestError` outside 0 to below 1."""
    number = real(value, "the tolerance")
    if not 0.0 <= number < 1.0:
        raise RequestError(f"the tolerance must be from 0 to below 1, got {shown(value)}")
    return number


def reals(values: Any, what: str) -> np.ndarray:
    """Return ``values`` as a float64 array of any shape.

    Raises:
        RequestError: what is not numbers, and NaN.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal lengths
        raise RequestError(f"{what} must be numbers of one shape") from None
    if array.dtype.kind not in "iuf" and array.size:
        raise RequestError(f"{what} must be numbers, got {array.dtype} values")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise RequestError(f"{what} must be numbers, got nan")
    return array
