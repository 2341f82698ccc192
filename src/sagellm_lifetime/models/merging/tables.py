"""Merged residual-life trees: counts of equal nodes are added.

The key of a node is a hash of what its requests have in common, so under one secret two servers
have the same key for the same group. Counts, single lengths and the scores of the weights are
sums. Hazards are left out: they are computed anew from the sums.

Counts of more nodes than a tree may have, and of more single lengths than a node may have, are cut
to the largest; up to there the merge is associative and commutative, exactly for whole counts
(below 2**24 a bin), else but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import MOST
from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.core.merging import heaviest, sums_by_key
from sagellm_lifetime.models.merging.regimes import merged_regimes
from sagellm_lifetime.models.merging.shares import merged_shares
from sagellm_lifetime.models.recent_prompts import MOST_PROMPTS
from sagellm_lifetime.models.recurring_lengths import Place
from sagellm_lifetime.models.residual_life import (
    MOST_WEIGHTS,
    START,
    ResidualLife,
    most_single_lengths,
)

_SCORES = ("losses", "effect_losses", "scored")
_STARTS = {"choice": np.array(START), "trust": np.ones(len(START), dtype=np.int64)}
"""Choices of a level that has no scores."""


def merge_tables(tables: ResidualLife, others: Sequence[ResidualLife], most_nodes: int) -> None:
    """Add what other trees have learned to a tree, and compute its hazards anew.

    Args:
        tables: changed in place.
        others: unchanged.
        most_nodes: nodes that are kept, those with the most completions.
    """
    tables.restore(merged_tables([each.state() for each in (tables, *others)], most_nodes))
    tables.settle_known()


def merged_tables(states: Sequence[Arrays], most_nodes: int) -> Arrays:
    """Return the state of a tree with the sums of several, without hazards.

    Args:
        states: states of at least one :class:`~sagellm_lifetime.models.residual_life.ResidualLife`.
        most_nodes: nodes that are kept.
    """
    keys, counted = sums_by_key([(state["keys"], state["counted"]) for state in states])
    kept = heaviest(counted, keys, most_nodes)
    sums = {
        name: sums_by_key([(state["keys"], state[name]) for state in states])[1][kept]
        for name in ("ended", "left")
    }
    keys, counted = keys[kept], counted[kept]
    count = len(keys)
    habits, until = _single_lengths(states, keys)
    return {
        "keys": keys,
        **{name: array.astype(np.float32) for name, array in sums.items()},
        "cached": np.zeros((count, BINS)),
        "counted": np.minimum(counted, MOST).astype(np.int64),
        "fresh": np.full((count, 2), -1, dtype=np.int64),
        **{name: _largest(states, name, keys) for name in ("above", "main")},
        "habits": habits,
        "habits_until": until,
        "atoms": np.zeros(0, dtype=np.int64),
        "atom_shares": np.zeros(0),
        "atoms_until": np.zeros(count + 1, dtype=np.int64),
        **_weights(states),
        "scores": np.minimum(np.sum([state["scores"] for state in states], axis=0), MOST),
        "prompts": np.unique(np.concatenate([state["prompts"] for state in states]))[:MOST_PROMPTS],
        "tried": np.unique(np.concatenate([state["tried"] for state in states]), axis=0),
        "count": np.minimum(np.sum([state["count"] for state in states], axis=0), MOST),
        **_under("shares.", merged_shares([part(state, "shares.") for state in states])),
        **_under("regimes.", merged_regimes([part(state, "regimes.") for state in states])),
    }


def without_hazards(state: Arrays) -> Arrays:
    """Return the state of a tree without its hazards, which a merge computes anew."""
    return {
        **state,
        "cached": np.zeros_like(state["cached"]),
        "fresh": np.full_like(state["fresh"], -1),
        "atoms": np.zeros(0, dtype=np.int64),
        "atom_shares": np.zeros(0),
        "atoms_until": np.zeros_like(state["atoms_until"]),
    }


def _largest(states: Sequence[Arrays], name: str, keys: np.ndarray) -> np.ndarray:
    """Return the largest value of each node among all states, int64 of shape ``(N,)``."""
    order = np.argsort(keys)
    values = np.full(len(keys), -2, dtype=np.int64)
    for state in states:
        place = np.searchsorted(keys, state["keys"], sorter=order)
        is_kept = place < len(keys)
        is_kept[is_kept] = keys[order[place[is_kept]]] == state["keys"][is_kept]
        at = order[place[is_kept]]
        values[at] = np.maximum(values[at], state[name][is_kept])
    return values


def _single_lengths(states: Sequence[Arrays], keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the counts of single lengths, and the end of each node in them."""
    sums: dict[int, dict[int, list[int]]] = {}
    for state in states:
        ends = state["habits_until"]
        for row in np.flatnonzero(np.diff(ends)).tolist():
            places = sums.setdefault(state["keys"].item(row), {})
            for length, hits, credit in state["habits"][ends[row] : ends[row + 1]].tolist():
                place = places.setdefault(length, [0, 0])
                place[0] += hits
                place[1] += credit
    merged: list[Place] = []
    until = [0]
    for key in keys.tolist():
        places = sums.get(key, {})
        order = sorted(places, key=lambda length: (places[length], length))
        most = most_single_lengths(key)
        kept = order[-most:] if most else []
        merged.extend((length, places[length][0], places[length][1]) for length in kept)
        until.append(len(merged))
    table = np.array(merged, dtype=np.int64).reshape(len(merged), 3)
    return np.minimum(table, MOST), np.array(until, dtype=np.int64)


def _weights(states: Sequence[Arrays]) -> Arrays:
    """Return the weights of the first trees, then of later generations, by the sums of scores."""
    first = {name: np.sum([state[name][:1] for state in states], axis=0) for name in _SCORES}
    later = [
        sums_by_key([(state["later"], state[name][1:].astype(np.float64)) for state in states])
        for name in _SCORES
    ]
    keys = later[0][0]
    kept = np.sort(heaviest(later[2][1], keys, MOST_WEIGHTS - 1))
    weights = {
        name: np.concatenate([first[name], sums[kept]])
        for name, (_, sums) in zip(_SCORES, later, strict=True)
    }
    scored = np.minimum(weights.pop("scored"), MOST).astype(np.int64)
    chosen = {}
    for name, losses in (("choice", "losses"), ("trust", "effect_losses")):
        has_scores = weights[losses].any(axis=2)
        chosen[name] = np.where(has_scores, weights[losses].argmin(axis=2), _STARTS[name])
    return {**weights, **chosen, "scored": scored, "later": keys[kept]}


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}{name}": array for name, array in arrays.items()}
