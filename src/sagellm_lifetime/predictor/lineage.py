"""The lineage of a learned state: how many completions it has of each stretch of learning.

A stretch is what one predictor learned from its start to its end: a fit, or one run of a server. A
state that was started from another, or merged of several, has their stretches and its own. So two
lineages tell whether one state is in another (as monday's checkpoint in a server that started from
it), and whether two share completions that would count twice in a merge. (Version vectors: Parker
et al. 1983.)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays

LINEAGE: Final = "lineage"
"""Key in the summary of a saved state."""
MOST_STRETCHES: Final = 256
"""Maximum number of stretches that are kept, those with the most completions."""
_LONGEST_NAME: Final = 64
_MOST: Final = 1 << 53

Lineage = dict[str, int]
"""Completions by the name of the stretch."""


def new_stretch() -> str:
    """Return the name of a new stretch of learning."""
    return secrets.token_hex(8)


def stretch_of(name: str, state: Arrays) -> str:
    """Return the name of a fit: a digest, so that fits of one history have the same one.

    Args:
        name: of the predictor.
        state: what it has learned.
    """
    return state_digest(name, state)[:16]


def state_digest(name: str, state: Arrays) -> str:
    """Return a digest of a learned state."""
    digest = sha256(name.encode())
    for key, array in sorted(state.items()):
        digest.update(f"{key}{array.shape}".encode("utf-8", "surrogatepass"))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def lineage_of(value: Any) -> Lineage:
    """Return a lineage that was read from a file; what is none is left out.

    >>> lineage_of({"a": 3, "b": "many", "c": 0}), lineage_of([1])
    ({'a': 3}, {})
    """
    if not isinstance(value, dict):
        return {}
    found = {
        name: count
        for name, count in value.items()
        if isinstance(name, str) and len(name) <= _LONGEST_NAME
        if type(count) is int and 0 < count < _MOST
    }
    return bounded(found)


def bounded(lineage: Lineage) -> Lineage:
    """Return the :data:`MOST_STRETCHES` stretches with the most completions."""
    if len(lineage) <= MOST_STRETCHES:
        return lineage
    kept = sorted(lineage, key=lambda name: (-lineage[name], name))[:MOST_STRETCHES]
    return {name: lineage[name] for name in kept}


def joined(lineages: Iterable[Mapping[str, int]]) -> Lineage:
    """Return the lineage of a merge.

    >>> joined([{"monday": 600, "a": 5}, {"a": 7, "b": 2}])
    {'monday': 600, 'a': 7, 'b': 2}
    """
    both: Lineage = {}
    for lineage in lineages:
        for name, count in lineage.items():
            both[name] = max(both.get(name, 0), count)
    return bounded(both)


def contains(whole: Mapping[str, int], part: Mapping[str, int]) -> bool:
    """Return True if all completions of ``part`` are in ``whole``; False for an empty one.

    >>> contains({"monday": 600, "live": 5}, {"monday": 600})
    True
    >>> contains({"monday": 600, "live": 5}, {"live": 7})
    False
    """
    return bool(part) and all(whole.get(name, 0) >= count for name, count in part.items())


def shared(one: Mapping[str, int], other: Mapping[str, int]) -> int:
    """Return how many completions two states have in common.

    >>> shared({"monday": 600, "live": 5}, {"monday": 600, "other": 9})
    600
    """
    return sum(min(count, other.get(name, 0)) for name, count in one.items())
