"""Merged accounts of clients (:mod:`~sagellm_lifetime.models.fair_share`).

An account tells of the recent completions of one server, and those of two servers are of different
stretches of time. So of each client the busiest account is kept: a client that floods one server is
known as such by all. The result is exactly associative and commutative, and idempotent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.merging import largest_by_key
from sagellm_lifetime.models.fair_share import MOST_CLIENTS, MOST_NEW, SHARED


def merged_shares(states: Sequence[Arrays]) -> Arrays:
    """Return the state of :class:`~sagellm_lifetime.models.fair_share.FairShares` of all.

    Args:
        states: states of at least one, each checked.
    """
    accounts = largest_by_key([_rows(state["accounts"]) for state in states])
    shared = accounts.pop(SHARED)
    kept = sorted(accounts, key=lambda key: (accounts[key], key))[-MOST_CLIENTS:]
    new = largest_by_key([_rows(state["new"]) for state in states])
    unknown = [key for key in new if key not in accounts]
    unknown = sorted(unknown, key=lambda key: (new[key], key))[-MOST_NEW:]
    loud = [state["loud"].tolist() for state in states]
    return {
        "accounts": _table([(SHARED, *shared), *((key, *accounts[key]) for key in kept)], 5),
        "new": _table([(key, *new[key]) for key in unknown], 2),
        "refused": np.maximum.reduce([state["refused"] for state in states]),
        "loud": np.array([*max(row[:2] for row in loud), max(row[2] for row in loud)]),
    }


def _rows(table: np.ndarray) -> dict[int, tuple[int, ...]]:
    return {key: tuple(row) for key, *row in table.tolist()}


def _table(rows: list[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), width)
