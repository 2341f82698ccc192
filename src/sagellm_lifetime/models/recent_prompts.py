"""Keys of the prompts whose completions were learned recently, to recognise repeated ones."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np

LARGEST_PROMPT: Final = 2**32
"""Largest key of a prompt."""
MOST_PROMPTS: Final = 4096
"""Prompts that are kept, the newest."""


class RecentPrompts:
    """Keys of the prompts of recent completions, bounded.

    Answers to one prompt are alike, so a second one is no evidence about new prompts. Comparisons
    of predictions with outcomes that choose weights leave it out.

    Example:
        >>> from sagellm_lifetime.models.recent_prompts import RecentPrompts
        >>> prompts = RecentPrompts()
        >>> prompts.add(17), prompts.add(17), prompts.add(0), prompts.add(0)
        (True, False, True, True)
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[int, None] = OrderedDict()

    def add(self, key: int) -> bool:
        """Add a prompt by its key, 0 for unknown; return False if it is a recent one."""
        if not key:
            return True
        if key in self._keys:
            self._keys.move_to_end(key)
            return False
        if len(self._keys) >= MOST_PROMPTS:
            self._keys.popitem(last=False)
        self._keys[key] = None
        return True

    def state(self) -> np.ndarray:
        """Return the keys, the oldest first, int64 of shape ``(N,)``."""
        return np.array(list(self._keys), dtype=np.int64)

    def restore(self, keys: np.ndarray) -> None:
        """Replace the keys with a :meth:`state`.

        Raises:
            ValueError: a key occurs twice, or there are too many.
        """
        recent = OrderedDict.fromkeys(keys.tolist())
        if not len(recent) == len(keys) <= MOST_PROMPTS:
            raise ValueError("'prompts' names one twice, or too many")
        self._keys = recent
