"""Merged generations of the models served (:mod:`~sagellm_lifetime.models.regimes`).

Which generation of a model is the present one cannot be averaged. So of each model one record is
taken as a whole: that with the newest generation, and of several the one that has been present for
longest. A server that notices a change first thus leads the others, until it goes back itself. The
result is exactly associative and commutative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST
from sagellm_lifetime.models.regimes import MOST_MODELS

_RECORDED = ("kept", "better", "recent", "usual", "suspicion", "trial", "gains")
"""Arrays with one row a model, besides the counts."""
_TOTALS = ("changes", "returns", "trials")


class _Record(NamedTuple):
    """Record of one model, compared from the first field on."""

    newest_kept: int
    since: int
    lost: int
    values: tuple[Any, ...]
    support: tuple[tuple[int, float], ...]


def merged_regimes(states: Sequence[Arrays]) -> Arrays:
    """Return the state of :class:`~sagellm_lifetime.models.regimes.Regimes` of all.

    Args:
        states: states of at least one, each checked.
    """
    records: dict[int, _Record] = {}
    newest: dict[int, int] = {}
    seen: dict[int, int] = {}
    for state in states:
        supports = _supports(state)
        for row, (key, number, completions, since, lost) in enumerate(state["models"].tolist()):
            values = tuple(_plain(state[name][row]) for name in _RECORDED)
            record = _Record(max(values[0]), since, lost, values, supports.get(row, ()))
            records[key] = max(records.get(key, record), record)
            newest[key] = max(newest.get(key, 0), number)
            seen[key] = min(seen.get(key, 0) + completions, MOST)
    kept = sorted(records, key=lambda key: (seen[key], key))[-MOST_MODELS:]
    counts = [(key, newest[key], seen[key], records[key].since, records[key].lost) for key in kept]
    support = [(row, *one) for row, key in enumerate(kept) for one in records[key].support]
    columns = {
        name: np.array([records[key].values[i] for key in kept], dtype=states[0][name].dtype)
        for i, name in enumerate(_RECORDED)
    }
    return {
        "models": np.array(counts, dtype=np.int64).reshape(-1, 5),
        **{name: array.reshape(-1, *states[0][name].shape[1:]) for name, array in columns.items()},
        "support": np.array([one[:2] for one in support], dtype=np.int64).reshape(-1, 2),
        "support_nats": np.array([one[2] for one in support], dtype=np.float64),
        # One change of the workload is noticed by every server that sees it.
        **{name: np.maximum.reduce([state[name] for state in states]) for name in _TOTALS},
    }


def _supports(state: Arrays) -> dict[int, tuple[tuple[int, float], ...]]:
    """Return the clients that support the candidate of each row, with their nats."""
    found: dict[int, list[tuple[int, float]]] = {}
    for (row, client), nats in zip(
        state["support"].tolist(), state["support_nats"].tolist(), strict=True
    ):
        found.setdefault(row, []).append((client, nats))
    return {row: tuple(sorted(clients)) for row, clients in found.items()}


def _plain(value: np.ndarray) -> Any:
    """Return a row as a tuple of plain numbers, or one plain number."""
    plain = value.tolist()
    return tuple(plain) if isinstance(plain, list) else plain
