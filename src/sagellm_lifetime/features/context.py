"""The most recent completions of each session and of each client."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.checked import MOST, checked
from sagellm_lifetime.features.request import RequestFeatures

OF_SESSION: Final = 3
OF_CLIENT: Final = 2
_FIELDS: Final = 5
_LARGEST_KEY: Final = 2**32 - 1
_LONGEST: Final = 10**8
"""Tokens; no completion is told to have more."""


class Finished(NamedTuple):
    """What is remembered of one completion."""

    length: int
    censored: bool
    prompt_length: int | None
    client_key: int


class RecentCompletions:
    """Bounded memory: the least recently finished session or client goes first."""

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._items: OrderedDict[tuple[int, int], deque[Finished]] = OrderedDict()

    def session(self, session: int) -> list[Finished]:
        """Last completions of a session, oldest first; a key of 0 has none."""
        return list(self._items.get((0, session), ())) if session else []

    def client(self, features: RequestFeatures) -> list[Finished]:
        """Last completions of a client, oldest first."""
        key = features.client_key
        return list(self._items.get((1, key), ())) if key else []

    def learn(
        self, features: RequestFeatures, session: int, length: int, *, censored: bool
    ) -> None:
        """Remember one completion."""
        client = features.client_key
        finished = Finished(length, censored, features.prompt_length, client)
        if session:
            self._remember((0, session), finished, OF_SESSION)
        if client:
            self._remember((1, client), finished, OF_CLIENT)
        while len(self._items) > self._capacity:
            self._items.popitem(last=False)

    def _remember(self, owner: tuple[int, int], finished: Finished, size: int) -> None:
        items = self._items.get(owner)
        if items is None:
            items = self._items[owner] = deque(maxlen=size)
        else:
            self._items.move_to_end(owner)
        items.append(finished)

    def state(self) -> dict[str, np.ndarray]:
        """What is remembered: keys, and rows of (owner, length, censored, prompt, client)."""
        keys = np.array(list(self._items), dtype=np.int64).reshape(-1, 2)
        rows = [
            (
                owner,
                f.length,
                f.censored,
                -1 if f.prompt_length is None else f.prompt_length,
                f.client_key,
            )
            for owner, items in enumerate(self._items.values())
            for f in items
        ]
        return {"keys": keys, "finished": np.array(rows, dtype=np.int64).reshape(-1, _FIELDS)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what is remembered with a :meth:`state`.

        Raises:
            ValueError: arrays that do not fit, or with completions that cannot be.
        """
        sizes = (OF_SESSION, OF_CLIENT)
        rows = checked(state, "keys", np.int64, (None, 2), 0)
        finished = checked(state, "finished", np.int64, (None, _FIELDS), -1)
        # Owner, length, censored, prompt length (-1 for none), client key.
        least, most = [0, 0, 0, -1, 0], [len(rows) - 1, _LONGEST, 1, MOST, _LARGEST_KEY]
        if (rows > [len(sizes) - 1, _LARGEST_KEY]).any() or len(rows) > self._capacity:
            raise ValueError("'keys' names sessions or clients that cannot be")
        if (finished < least).any() or (finished > most).any():
            raise ValueError("'finished' holds completions that cannot be")
        keys = [(kind, key) for kind, key in rows.tolist()]
        self._items = OrderedDict((key, deque(maxlen=sizes[key[0]])) for key in keys)
        for owner, length, censored, prompt, client in finished.tolist():
            self._items[keys[owner]].append(
                Finished(length, bool(censored), None if prompt < 0 else prompt, client)
            )
