"""Values from callers: taken where they are exactly what is wanted, whatever their type.

NumPy's integers, floats and arrays count like Python's. Booleans are no numbers, and text is none.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from math import isfinite
from operator import index
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import SequenceId

_BOOLEANS: Final = (bool, np.bool_)
_NO_REALS: Final = (*_BOOLEANS, complex, np.complexfloating)
_UNORDERED: Final = (str, bytes, bytearray, Set, Mapping)
_PLAIN: Final = {int, str}


def whole(value: Any) -> int | None:
    """Return an integer of any kind as an ``int``; ``None`` for floats, booleans and the rest."""
    if type(value) is int:
        return value
    if isinstance(value, _BOOLEANS):
        return None
    try:
        return index(value)
    except Exception:  # noqa: BLE001 - the value's own code: it is no whole number then
        return None


def whole_or_exact(value: Any) -> int | None:
    """Return a whole number as an ``int``, a float without a fraction too; ``None`` for others."""
    found = whole(value)
    if found is None:
        real = number(value)
        found = int(real) if real is not None and real.is_integer() else None
    return found


def number(value: Any) -> float | None:
    """Return a finite number of any kind as a ``float``; ``None`` for booleans, text, NaN, …"""
    if type(value) is float:
        return value if isfinite(value) else None
    is_array = getattr(value, "ndim", None) not in (None, 0)
    if is_array or isinstance(value, _NO_REALS) or not hasattr(value, "__float__"):
        return None
    try:
        found = float(value)
    except Exception:  # noqa: BLE001 - the value's own code: it is no number then
        return None
    return found if isfinite(found) else None


def is_path(text: str) -> bool:
    """Return True if files may be named so: it is not empty, has no NUL, and has bytes."""
    try:
        return b"\0" not in (named := os.fsencode(text)) and bool(named)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON may have it
        return False


def as_sequence_id(value: Any) -> SequenceId:
    """Return an id as a plain ``int`` or ``str``.

    Raises:
        RequestError: it is neither. ``True`` and 1.0 are not the id 1, though Python's dictionaries
            take them for it.
    """
    if isinstance(value, str):
        return str.__str__(value)
    found = whole(value)
    if found is None:
        raise RequestError(f"sequence_id must be an int or a str: {shown(value)}")
    return found


def as_sequence_ids(values: Any) -> Sequence[SequenceId]:
    """Return ids in order, a list of plain ones as it is.

    Raises:
        RequestError: no list, tuple or array, or one with something that is no id.
    """
    if type(values) is not list:
        values = as_list("sequence_ids", values)
    return values if _PLAIN.issuperset(map(type, values)) else [as_sequence_id(v) for v in values]


def as_list(name: str, values: Any) -> list[Any]:
    """Return the items of a list, a tuple, a one-dimensional array or another ordered collection.

    Raises:
        RequestError: text, sets, mappings, iterators (which can be read only once), and the rest.
    """
    dimensions = getattr(values, "ndim", 1)
    if dimensions == 1 and hasattr(values, "tolist"):
        values = values.tolist()
    ordered = isinstance(values, Collection) and not isinstance(values, _UNORDERED)
    if dimensions != 1 or not ordered:
        raise RequestError(f"{name} must be a list: {shown(values)}")
    return list(values)


def as_option(name: str, value: Any, least: int, most: int) -> int:
    """Return an option that is a whole number from ``least`` to ``most``.

    Raises:
        RequestError: it is not.
    """
    found = whole(value)
    if found is None or not least <= found <= most:
        raise RequestError(
            f"{name} must be a whole number from {least} to {most}, got {shown(value)}"
        )
    return found


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
    ages = values if isinstance(values, np.ndarray) else _objects(values)
    if ages.shape != (count,):
        shape = " x ".join(map(str, ages.shape)) or "one number"
        raise RequestError(f"ages must be one for each of {count} sequences, got {shape}")
    if ages.dtype != np.int64:
        ages = _exact(ages, most)
    # One pass: the bits of all ages together are negative, or too large, where one of them is.
    together = np.bitwise_or.reduce(ages)
    if not 0 <= together <= most and not (ages.min() >= 0 and ages.max() <= most):
        raise _no_ages(most)
    return ages


def _objects(values: Any) -> np.ndarray:
    """Array of the objects of a list: NumPy would make numbers of booleans and of text."""
    items = as_list("ages", values)
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def _exact(ages: np.ndarray, most: int) -> np.ndarray:
    """Ages of another type as int64: unsigned, narrower, floats without a fraction, objects."""
    if ages.dtype.kind == "O":
        found = [whole_or_exact(each) for each in ages.tolist()]
        if not all(each is not None and 0 <= each <= most for each in found):
            raise _no_ages(most)
        return np.array(found, dtype=np.int64)
    if ages.dtype.kind not in "iuf":
        raise _no_ages(most)
    if not np.all((ages >= 0) & (ages <= most) & (np.floor(ages) == ages)):
        raise _no_ages(most)
    return ages.astype(np.int64)


def _no_ages(most: int) -> RequestError:
    return RequestError(f"ages must be whole numbers from 0 to {most}")


def as_levels(values: Any) -> float | np.ndarray:
    """Return a quantile level as a float, or several as an array of shape ``(Q,)``.

    Raises:
        RequestError: something that is no number from 0 to 1, or an array of more dimensions.
    """
    if type(values) is float and 0.0 <= values <= 1.0:
        return values
    if isinstance(values, Iterable) and getattr(values, "ndim", 1) == 1:
        levels = [number(each) for each in as_list("levels", values)]
        if all(each is not None and 0.0 <= each <= 1.0 for each in levels):
            return np.array(levels, dtype=np.float64)
    else:
        level = number(values)
        if level is not None and 0.0 <= level <= 1.0:
            return level
    raise RequestError(f"quantile levels must be numbers from 0 to 1: {shown(values)}")
