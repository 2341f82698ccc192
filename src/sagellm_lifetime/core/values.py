"""Values from callers as plain Python numbers, ids, lists and arrays.

NumPy's integers, floats and arrays count like Python's; booleans and text are no numbers. The
functions named ``as_…`` raise one clear line; :func:`whole` and :func:`number` return ``None``
instead, for callers that word the message themselves.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from math import inf, isfinite, isnan
from numbers import Real
from operator import index
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown

LARGEST_AGE: Final = 2**53
"""Tokens; every count up to here is exact as a float, too."""
_BOOLEANS: Final = (bool, np.bool_)
_NO_REALS: Final = (*_BOOLEANS, complex, np.complexfloating)
_UNORDERED: Final = (str, bytes, bytearray, Set, Mapping)
_ID_TYPES: Final = {int, str}


def whole(value: Any) -> int | None:
    """Return an integer of any kind as an ``int``; ``None`` for floats, booleans and the rest."""
    if type(value) is int:
        return value
    if isinstance(value, _BOOLEANS):
        return None
    try:
        return index(value)
    except Exception:  # noqa: BLE001 - the value's own code failed, so it is no whole number
        return None


def whole_or_exact(value: Any) -> int | None:
    """Return a whole number as an ``int``, a float without a fraction too; ``None`` for others."""
    result = whole(value)
    if result is None:
        real = number(value)
        result = int(real) if real is not None and real.is_integer() else None
    return result


def number(value: Any) -> float | None:
    """Return a finite number of any kind as a ``float``; ``None`` for booleans, text, NaN, …"""
    if type(value) is float:
        return value if isfinite(value) else None
    is_array = getattr(value, "ndim", None) not in (None, 0)
    if is_array or isinstance(value, _NO_REALS) or not hasattr(value, "__float__"):
        return None
    try:
        result = float(value)
    except Exception:  # noqa: BLE001 - the value's own code failed, so it is no number
        return None
    return result if isfinite(result) else None


def is_path(text: str) -> bool:
    """Return True if a file may have this name: not empty, no NUL, and encodable."""
    try:
        return b"\0" not in (encoded := os.fsencode(text)) and bool(encoded)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON may have it
        return False


def as_real(value: Any, name: str) -> float:
    """Return ``value`` as a float, infinite where it has more digits than a float can have.

    Args:
        value: an int, a float or a NumPy scalar (also an array without dimensions).
        name: name of the argument in the message.

    Raises:
        RequestError: for everything else, booleans and NaN included.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]  # not item(), which makes an int of a duration
    # NumPy counts its durations among the integers.
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, Real):
        raise RequestError(f"{name} must be one number, got {shown(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = -inf if value < 0 else inf
    if isnan(result):
        raise RequestError(f"{name} must be a number, got nan")
    return result


def as_level(value: Any, name: str) -> float:
    """Return a probability as a float. Raise :class:`RequestError` outside 0 to 1."""
    if type(value) is float and 0.0 <= value <= 1.0:
        return value
    level = as_real(value, name)
    if not 0.0 <= level <= 1.0:
        raise RequestError(f"{name} must lie between 0 and 1, got {shown(value)}")
    return level


def as_token_count(value: Any, name: str) -> int:
    """Return a count of tokens as an int; 3.0 is 3.

    Raises:
        RequestError: negative counts, fractions, and more than :data:`LARGEST_AGE`.
    """
    if type(value) is int and 0 <= value <= LARGEST_AGE:
        return value
    as_real(value, name)
    if not 0 <= value <= LARGEST_AGE or value != int(value):
        raise RequestError(
            f"{name} must be a whole number from 0 to {LARGEST_AGE}, got {shown(value)}"
        )
    return int(value)


def as_tolerance(value: Any) -> float:
    """Return a relative error as a float. Raise :class:`RequestError` outside 0 to below 1."""
    tolerance = as_real(value, "the tolerance")
    if not 0.0 <= tolerance < 1.0:
        raise RequestError(f"the tolerance must be from 0 to below 1, got {shown(value)}")
    return tolerance


def as_reals(values: Any, name: str) -> np.ndarray:
    """Return ``values`` as a float64 array of their own shape.

    Raises:
        RequestError: a value is no number, or NaN; or lists of unequal lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal lengths
        raise RequestError(f"{name} must be numbers of one shape") from None
    if array.dtype.kind not in "iuf" and array.size:
        raise RequestError(f"{name} must be numbers, got {array.dtype} values")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise RequestError(f"{name} must be numbers, got nan")
    return array


def as_sequence_id(value: Any) -> int | str:
    """Return an id as a plain ``int`` or ``str``.

    Raises:
        RequestError: it is neither. ``True`` and 1.0 are not the id 1, though Python's dictionaries
            take them for it.
    """
    if isinstance(value, str):
        return str.__str__(value)
    sequence_id = whole(value)
    if sequence_id is None:
        raise RequestError(f"sequence_id must be an int or a str: {shown(value)}")
    return sequence_id


def as_sequence_ids(values: Any) -> Sequence[int | str]:
    """Return ids in order, a list of plain ones as it is.

    Raises:
        RequestError: no list, tuple or array, or one with something that is no id.
    """
    if type(values) is not list:
        values = as_list("sequence_ids", values)
    is_plain = _ID_TYPES.issuperset(map(type, values))
    return values if is_plain else [as_sequence_id(value) for value in values]


def as_list(name: str, values: Any) -> list[Any]:
    """Return the items of a list, a tuple, a one-dimensional array or another ordered collection.

    Raises:
        RequestError: text, sets, mappings, iterators (which can be read only once), and the rest.
    """
    dimensions = getattr(values, "ndim", 1)
    if dimensions == 1 and hasattr(values, "tolist"):
        values = values.tolist()
    is_ordered = isinstance(values, Collection) and not isinstance(values, _UNORDERED)
    if dimensions != 1 or not is_ordered:
        raise RequestError(f"{name} must be a list: {shown(values)}")
    return list(values)


def as_option(name: str, value: Any, least: int, most: int) -> int:
    """Return an option that is a whole number from ``least`` to ``most``.

    Raises:
        RequestError: it is not.
    """
    option = whole(value)
    if option is None or not least <= option <= most:
        raise RequestError(
            f"{name} must be a whole number from {least} to {most}, got {shown(value)}"
        )
    return option


def as_seconds_option(name: str, value: Any) -> float:
    """Return an option that is a number of seconds, 0 or more; infinity is one.

    Raises:
        RequestError: it is not.
    """
    seconds = value if type(value) is float else number(value)
    if seconds is None or not seconds >= 0.0:
        raise RequestError(f"{name} must be seconds, 0 or more, got {shown(value)}")
    return seconds


def as_ages(values: Any, count: int, most: int) -> np.ndarray:
    """Return the ages of ``count`` sequences as an int64 array of shape ``(count,)``.

    Raises:
        RequestError: another shape, or an age that is no whole number from 0 to ``most``.
    """
    ages = values if isinstance(values, np.ndarray) else _object_array(values)
    if ages.shape != (count,):
        shape = " x ".join(map(str, ages.shape)) or "one number"
        raise RequestError(f"ages must be one for each of {count} sequences, got {shape}")
    if ages.dtype != np.int64:
        ages = _exact_ages(ages, most)
    # One pass: the bits of all ages together are negative, or too large, where one of them is.
    together = np.bitwise_or.reduce(ages)
    if not 0 <= together <= most and not (ages.min() >= 0 and ages.max() <= most):
        raise _ages_error(most)
    return ages


def _object_array(values: Any) -> np.ndarray:
    """Return a list as an array of objects: NumPy would make numbers of booleans and of text."""
    items = as_list("ages", values)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _exact_ages(ages: np.ndarray, most: int) -> np.ndarray:
    """Return ages of another type (unsigned, narrower, floats, objects) as int64."""
    if ages.dtype.kind == "O":
        numbers = [whole_or_exact(age) for age in ages.tolist()]
        if not all(age is not None and 0 <= age <= most for age in numbers):
            raise _ages_error(most)
        return np.array(numbers, dtype=np.int64)
    if ages.dtype.kind not in "iuf":
        raise _ages_error(most)
    if not np.all((ages >= 0) & (ages <= most) & (np.floor(ages) == ages)):
        raise _ages_error(most)
    return ages.astype(np.int64)


def _ages_error(most: int) -> RequestError:
    return RequestError(f"ages must be whole numbers from 0 to {most}")


def as_levels(values: Any) -> float | np.ndarray:
    """Return a quantile level as a float, or several as an array of shape ``(Q,)``.

    Raises:
        RequestError: something that is no number from 0 to 1, or an array of more dimensions.
    """
    if type(values) is float and 0.0 <= values <= 1.0:
        return values
    if isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1:
        levels = [number(value) for value in as_list("levels", values)]
        if all(level is not None and 0.0 <= level <= 1.0 for level in levels):
            return np.array(levels, dtype=np.float64)
    else:
        level = number(values)
        if level is not None and 0.0 <= level <= 1.0:
            return level
    raise RequestError(f"quantile levels must be numbers from 0 to 1: {shown(values)}")
