"""Values that a caller may pass where another is meant."""

from __future__ import annotations

import datetime
import decimal
import fractions
import math
from random import Random
from typing import Any

import numpy as np

NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 15, 16, 17, 131_072, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1),
    *(10**400, 10**5000, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e18, 1e308, math.inf, -math.inf, math.nan),
]
ODD: list[Any] = [
    *(None, True, False, "", "a", "7", "nan", "é", "\ud800", "\x00", "x" * 5000),
    *(b"", b"\xff", [], [1], [None], [[1]], (), (1, 2), {}, {"a": 1}, set(), object(), print),
    *(1j, decimal.Decimal("1.5"), fractions.Fraction(1, 3), datetime.datetime(2026, 1, 1)),
]
ARRAYS: list[Any] = [
    *(np.int64(3), np.uint8(200), np.float32(1.5), np.float64("nan"), np.bool_(True), np.str_("a")),
    *(
        np.array(5),
        np.array([1, 2]),
        np.array([]),
        np.array([1.5]),
        np.array(["a"]),
        np.array([True]),
    ),
    np.zeros((2, 2)),
]


def anything(rng: Random) -> Any:
    """Return a value that may be of any kind."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(ODD)
    if kind < 0.9:
        return rng.choice(ARRAYS)
    return [rng.choice(NUMBERS + ODD) for _ in range(rng.randrange(4))]


def mostly(rng: Random, usual: Any, share: float = 0.7) -> Any:
    """Return ``usual`` in a share of the cases, else anything."""
    return usual if rng.random() < share else anything(rng)


def as_json(rng: Random, depth: int = 0) -> Any:
    """Return a value that JSON can carry."""
    simple: list[Any] = [None, True, False, 0, -1, 1, 7, 2**64, 1e308, 0.5, "", "a", "é\u0000", []]
    if depth > 2 or rng.random() < 0.6:
        return rng.choice(simple)
    if rng.random() < 0.5:
        return [as_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["a", "mode", "x" * 50]): as_json(rng, depth + 1) for _ in range(2)}


def damaged(rng: Random, data: bytes) -> bytes:
    """Return bytes with a few of them changed, cut out, doubled or cut off."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        if not found:
            break
        at = rng.randrange(len(found))
        end = min(at + rng.choice([1, 2, 8, 64, 1024]), len(found))
        match rng.randrange(6):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end]
            case 3:
                del found[at:]
            case 4:
                found[at:end] = rng.randbytes(end - at)
            case _:
                found[at:at] = rng.choice(
                    [b"\x00", b"\n", b",", b'"', b"\xff\xfe", b"NaN", b"[" * 9]
                )
    return bytes(found)
