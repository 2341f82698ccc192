"""Infer the conversation of a request from shared prompt blocks.

A trace without session ids still shows conversations: a follow-up starts with the blocks of the
turn before. Blocks that many different prompts continue from (a system prompt) do not identify a
conversation; the first block after them does.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import numpy as np

from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import RequestFeatures

_LARGEST_BLOCK = 2**63 - 1
_BRANCHES = 8
"""A block followed by more than this many different blocks is a common prefix."""


class Conversations:
    """Which prompt block follows which, bounded.

    Args:
        keys: keys of names, also of a block.
        capacity: blocks that are kept; the least recently seen is dropped.
    """

    def __init__(self, keys: NameKeys, capacity: int = 50_000) -> None:
        self._keys = keys
        self._capacity = capacity
        self._next: OrderedDict[int, set[int]] = OrderedDict()

    def key(self, features: RequestFeatures) -> int:
        """Return the session key of a request: its own, else its conversation's, else 0."""
        if features.session_key or not features.prefix_head:
            return features.session_key
        for block in features.prefix_head:
            if len(self._next.get(block, ())) <= _BRANCHES:
                return self._keys.key("block", block)
        return 0

    def learn(self, features: RequestFeatures) -> None:
        """Record which blocks of a prompt follow which."""
        head = features.prefix_head
        if len(head) < 2:
            return
        for block, after in pairwise(head):
            followers = self._next.setdefault(block, set())
            self._next.move_to_end(block)
            if len(followers) > _BRANCHES:
                continue
            followers.add(after)
            break
        while len(self._next) > self._capacity:
            self._next.popitem(last=False)

    def state(self) -> dict[str, np.ndarray]:
        """Return one row per block and its followers, padded with -1; int64, shape ``(N, 10)``."""
        rows = np.full((len(self._next), _BRANCHES + 2), -1, dtype=np.int64)
        for row, (block, after) in zip(rows, self._next.items(), strict=True):
            row[0] = block
            row[1 : 1 + len(after)] = sorted(after)
        return {"blocks": rows}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was learned with a :meth:`state`.

        Raises:
            ValueError: an array that does not fit, or with impossible blocks.
        """
        rows = checked(state, "blocks", np.int64, (None, _BRANCHES + 2), -1, _LARGEST_BLOCK)
        if len(rows) > self._capacity or (len(rows) and rows[:, 0].min() < 0):
            raise ValueError(f"'blocks' holds more than {self._capacity} blocks, or none in a row")
        self._next = OrderedDict(
            (block, {follower for follower in after if follower >= 0})
            for block, *after in rows.tolist()
        )
