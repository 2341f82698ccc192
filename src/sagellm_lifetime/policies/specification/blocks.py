"""The blocks that evictions free, where several sequences may hold the same block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from sagellm_lifetime.policies.eviction import select_victims


def choose(
    held: Sequence[Sequence[int]], order: np.ndarray, required: int
) -> tuple[list[int], int]:
    """Return the first of ``order`` that together free ``required`` blocks, or all if too few.

    A block is freed by the eviction of its last holder. A sequence that would free no block is left
    out.

    Args:
        held: block ids of each of the ``N`` sequences.
        order: indices of the sequences that may be evicted, first victim first.
        required: blocks needed.

    Returns:
        The indices of the victims, and the number of freed blocks.
    """
    sizes = np.array([len(block_ids) for block_ids in held])
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
