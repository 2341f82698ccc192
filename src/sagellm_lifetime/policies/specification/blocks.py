"""Blocks that come free when sequences go, where several sequences may hold the same block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from sagellm_lifetime.policies.eviction import select_victims


def choose(
    held: Sequence[Sequence[int]], order: np.ndarray, required: int
) -> tuple[list[int], int]:
    """The first of ``order`` that together free ``required`` blocks; all, where that is not enough.

    A block comes free with the last of its holders to go, and never while one of them stays.
    Whoever would free nothing is left out.

    Args:
        held: ids of the blocks of every sequence, ``N`` of them.
        order: indices of those that may go, first victim first.
        required: blocks needed.

    Returns:
        Indices of the victims, and how many blocks come free.
    """
    sizes = np.array([len(each) for each in held])
    if len(set(chain.from_iterable(held))) == sizes.sum():
        chosen = select_victims(order[sizes[order] > 0], sizes, required)
        return chosen.tolist(), int(sizes[chosen].sum())
    last: dict[int, int] = {}
    for i in order.tolist():
        last.update(dict.fromkeys(held[i], i))
    for i in set(range(len(held))).difference(order.tolist()):
        for block in held[i]:
            last.pop(block, None)
    frees = np.bincount(np.array(list(last.values()), dtype=np.int64), minlength=len(held))
    chosen = select_victims(order, frees, required)
    goes = set(chosen.tolist())
    useful = [i for i in chosen.tolist() if any(last.get(block) in goes for block in held[i])]
    return useful, int(frees[chosen].sum())
