"""The most recent completions of each session and of each client."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.checked import MOST, checked
from sagellm_lifetime.features.name_keys import LARGEST_KEY
from sagellm_lifetime.features.request import RequestFeatures

OF_SESSION: Final = 3
OF_CLIENT: Final = 2
_FIELDS: Final = 5
_ONCE: Final = 4
"""Inverse of the share of the capacity that those with one completion may have."""
_LONGEST: Final = 10**8
"""Most tokens of a completion."""


class Finished(NamedTuple):
    """Record of a completion.

    Attributes:
        length: generated tokens.
        censored: True if the length is only a lower bound.
        prompt_length: prompt tokens, ``None`` if unknown.
        client_key: hash of the client, 0 if unknown.
    """

    length: int
    censored: bool
    prompt_length: int | None
    client_key: int


class RecentCompletions:
    """The last completions of each session and client, bounded.

    Sessions and clients with one completion replace each other once they are a quarter of the
    capacity, so that a million that occur once do not replace those that recur.

    Args:
        capacity: sessions and clients that are kept; the least recently finished is dropped.
    """

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._items: OrderedDict[tuple[int, int], deque[Finished]] = OrderedDict()
        self._once: OrderedDict[tuple[int, int], None] = OrderedDict()
        """Sessions and clients with one completion, the oldest first."""

    def session(self, session: int) -> list[Finished]:
        """Return the last completions of a session, oldest first; none for the key 0."""
        return list(self._items.get((0, session), ())) if session else []

    def client(self, features: RequestFeatures) -> list[Finished]:
        """Return the last completions of a client, oldest first."""
        key = features.client_key
        return list(self._items.get((1, key), ())) if key else []

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> None:
        """Record one completion of ``length`` tokens, ``censored`` if it is a lower bound."""
        client = features.client_key
        finished = Finished(length, censored, features.prompt_length, client)
        if session:
            self._append((0, session), finished, OF_SESSION)
        if client:
            self._append((1, client), finished, OF_CLIENT)

    def _append(self, owner: tuple[int, int], finished: Finished, size: int) -> None:
        items = self._items.get(owner)
        if items is not None:
            self._items.move_to_end(owner)
            self._once.pop(owner, None)
            items.append(finished)
            return
        if len(self._items) >= self._capacity:
            if len(self._once) * _ONCE >= self._capacity:
                oldest, _ = self._once.popitem(last=False)
                del self._items[oldest]
            else:
                oldest, _ = self._items.popitem(last=False)
                self._once.pop(oldest, None)
        self._items[owner] = deque([finished], size)
        self._once[owner] = None

    def state(self) -> dict[str, np.ndarray]:
        """Return the completions as arrays: keys, and (owner, length, censored, prompt, client)."""
        keys = np.array(list(self._items), dtype=np.int64).reshape(-1, 2)
        rows = [
            (
                owner,
                finished.length,
                finished.censored,
                -1 if finished.prompt_length is None else finished.prompt_length,
                finished.client_key,
            )
            for owner, items in enumerate(self._items.values())
            for finished in items
        ]
        return {"keys": keys, "finished": np.array(rows, dtype=np.int64).reshape(-1, _FIELDS)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace the completions with those of a :meth:`state`.

        Raises:
            ValueError: arrays that do not fit, or with impossible completions.
        """
        sizes = (OF_SESSION, OF_CLIENT)
        rows = checked(state, "keys", np.int64, (None, 2), 0, LARGEST_KEY)
        finished = checked(state, "finished", np.int64, (None, _FIELDS), -1, LARGEST_KEY)
        # Owner, length, censored, prompt length (-1 for none), client key.
        least, most = [0, 0, 0, -1, 0], [len(rows) - 1, _LONGEST, 1, MOST, LARGEST_KEY]
        if (rows > [len(sizes) - 1, LARGEST_KEY]).any() or len(rows) > self._capacity:
            raise ValueError("'keys' names impossible sessions or clients")
        if (finished < least).any() or (finished > most).any():
            raise ValueError("'finished' holds impossible completions")
        keys = [(owner_type, key) for owner_type, key in rows.tolist()]
        if len(set(keys)) < len(keys):
            raise ValueError("'keys' names one twice")
        self._items = OrderedDict((key, deque(maxlen=sizes[key[0]])) for key in keys)
        for owner, length, censored, prompt, client in finished.tolist():
            self._items[keys[owner]].append(
                Finished(length, bool(censored), None if prompt < 0 else prompt, client)
            )
        once = [key for key, items in self._items.items() if len(items) == 1]
        self._once = OrderedDict.fromkeys(once)
