"""Checks of the arrays of a file: name, type, shape and range.

A checkpoint can agree with its own checksum and still hold impossible values. So each array is
checked when a state is restored; an array that passes is safe to compute with.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Final

import numpy as np

MOST: Final = 2**53
"""Largest count; up to here a float64 holds every whole number exactly."""


def checked(
    state: Mapping[str, np.ndarray],
    name: str,
    dtype: Any,
    shape: tuple[int | None, ...],
    low: float = -MOST,
    high: float = MOST,
) -> np.ndarray:
    """Return the array ``name`` of a state.

    Args:
        state: arrays by name.
        name: name of the array.
        dtype: the exact type, for instance ``np.float64``.
        shape: its shape; ``None`` stands for any length.
        low: smallest value allowed.
        high: largest value allowed. NaN never is.

    Raises:
        ValueError: it is missing, or of another type, shape or range.
    """
    array = state.get(name)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name!r} is missing")
    if array.dtype != dtype:
        raise ValueError(f"{name!r} holds {array.dtype}, not {np.dtype(dtype)}")
    if array.ndim != len(shape) or any(
        wanted is not None and size != wanted
        for size, wanted in zip(array.shape, shape, strict=True)
    ):
        text = " x ".join("N" if size is None else str(size) for size in shape)
        raise ValueError(f"{name!r} has the shape {array.shape}, not {text}")
    # Two passes and no copy. An array with NaN has NaN for minimum, and the comparison fails.
    if array.size and not (low <= array.min() and array.max() <= high):
        bounds = f"from {low:g} to {high:g}" if high < inf else f"of at least {low:g}"
        raise ValueError(f"{name!r} holds values that are not {bounds}")
    return array


def checked_count(state: Mapping[str, np.ndarray], name: str) -> int:
    """Return the count that is the one value of an int64 array.

    Raises:
        ValueError: it is missing, of another type or shape, negative, or beyond any count.
    """
    return int(checked(state, name, np.int64, (1,), 0)[0])


def count_array(value: int) -> np.ndarray:
    """Return a count as :func:`checked_count` takes it: int64 of shape (1,), at most ``MOST``."""
    return np.array([min(value, MOST)], dtype=np.int64)


def checked_keys(names: Mapping[str, Any], low: int, high: int) -> list[int]:
    """Return the keys of a state whose names are whole numbers, in order.

    Raises:
        ValueError: a name is no whole number, or out of range.
    """
    keys = []
    for name in names:
        digits = name.removeprefix("-")
        # Not only int(), which reads "1_0", " 10" and "010" as the same number.
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise ValueError(f"{name[:40]!r} is no key")
        key = int(name)
        if str(key) != name or not low <= key <= high:
            raise ValueError(f"{name!r} is no key")
        keys.append(key)
    return keys
