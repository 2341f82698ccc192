"""Fair shares: what all clients have in common learns from clients, not from requests.

One client at ten times everybody's rate would own whatever is counted by request: the counts of all
requests, the effect of a prompt length, the calibration. So a completion counts there only while
its client's part of what was accepted lately is at most a fair share: twice an even share of all
clients, or 15 %, whichever is more. What is the client's own (nodes below its name) always counts.

Clients with fewer than eight completions share one account, and so does whatever names no client:
a new name for every request buys nothing. Nothing here is random, and time is counted in
completions, so equal calls give equal answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array

LEAST_SHARE: Final = 0.25
"""Share of what was accepted that every client may have. With 15 % the busiest clients of an
ordinary trace, at a sixth of it and in bursts, are cut off: 2 % in MAE."""
_EVEN_SHARES: Final = 2.0
_ESTABLISHED: Final = 8
"""Completions from which on a client has an account of its own."""
_OLD: Final = 64
"""Completions after which a client is known so well that what he did not do before is a change."""
_MEMORY: Final = 256
"""Accepted completions after which an account is halved."""
_MEMORY_OF_NEW: Final = 64
"""The same of the account of all that are new: it is idle for long, and all names are free.
(With 64 for every account the ordinary bursts of clients would be cut off: 3 % in MAE.)"""
_SLACK: Final = 2
"""Completions beyond its share that an account may have: the first ones."""
_MOST_REFUSED: Final = 255
"""Completions refused in a row; the next one counts. So what is common to all is never frozen
where everybody whom it was learned from has gone."""
_MOST_CLIENTS: Final = 1024
_MOST_NEW: Final = 4096
_TRIES: Final = 8
"""Of the least recently used, how many are compared before one is evicted."""
_SHARED: Final = 0
"""Key of the account of all clients that are new, or not named."""


def lightest_of(entries: OrderedDict[int, Any], weight: Callable[[Any], float]) -> int:
    """Return the key of the lightest of the entries unused longest; the others become the newest.

    That is a second chance for those with a history, and costs the same however many there are.
    """
    oldest = []
    for key in entries:
        oldest.append(key)
        if len(oldest) == _TRIES:
            break
    lightest = min(oldest, key=lambda key: weight(entries[key]))
    for key in oldest:
        if key != lightest:
            entries.move_to_end(key)
    return lightest


class FairShares:
    """Accounts of clients: how much of what was lately accepted came from each.

    A client's part is measured since it came, or over the last completions accepted, so that
    nobody has saved up a burst by coming late or by keeping quiet.
    """

    def __init__(self) -> None:
        self._accounts: OrderedDict[int, list[int]] = OrderedDict({_SHARED: [0, 0, 0]})
        """Of established clients, least recently seen first: completions, those accepted lately,
        and the count of all accepted from which on they are counted."""
        self._new: OrderedDict[int, int] = OrderedDict()
        """Completions of clients that are not established yet, least recently seen first."""
        self._total = 0
        self._refused = 0
        """Completions refused since one was accepted."""

    def is_established(self, client: int) -> bool:
        """Return whether a client has an account of its own."""
        return client != _SHARED and client in self._accounts

    def is_old(self, client: int) -> bool:
        """Return whether a client has been there long enough for a change to be a change.

        What names no client is one only where nobody is named.
        """
        if client == _SHARED:
            return len(self._accounts) == 1
        account = self._accounts.get(client)
        return account is not None and account[0] >= _OLD

    def count(self, client: int) -> bool:
        """Count one completion of a client (its key, 0 for none).

        Returns:
            Whether it counts for all.
        """
        accounts = self._accounts
        account = accounts.get(client)
        if account is None:
            account = self._count_new(client)
        else:
            accounts.move_to_end(client)
        account[0] += 1
        since = self._total - account[2]
        memory = _MEMORY_OF_NEW if account is accounts[_SHARED] else _MEMORY
        while since > memory:
            since >>= 1
            account[1] >>= 1
            account[2] = self._total - since
        # Names that came a few times are clients to those with an account of their own. To each
        # other they are one, as they may be: more names never make a larger share.
        others = len(accounts) - 1
        clients = 1 + others if account is accounts[_SHARED] else others + len(self._new)
        share = max(_EVEN_SHARES / clients, LEAST_SHARE)
        if account[1] > share * since + _SLACK and self._refused < _MOST_REFUSED:
            self._refused += 1
            return False
        self._refused = 0
        account[1] += 1
        self._total += 1
        return True

    def _count_new(self, client: int) -> list[int]:
        """Count a client without an account; return the account that pays for it."""
        seen = self._new.pop(client, 0) + 1
        if seen < _ESTABLISHED:
            if len(self._new) >= _MOST_NEW:
                self._new.popitem(last=False)
            self._new[client] = seen
            return self._accounts[_SHARED]
        if len(self._accounts) > _MOST_CLIENTS and not self._make_room(seen):
            self._new[client] = seen - 1
            return self._accounts[_SHARED]
        account = self._accounts[client] = [seen - 1, 0, self._total]
        return account

    def _make_room(self, seen: int) -> bool:
        """Evict the lightest of the accounts unused longest, if it is no heavier than ``seen``.

        If it is, it is halved for the next time, so that nobody stays for ever.
        """
        accounts = self._accounts
        accounts.move_to_end(_SHARED)
        oldest = lightest_of(accounts, lambda account: account[0])
        if accounts[oldest][0] > seen:
            accounts[oldest][0] >>= 1
            accounts[oldest][1] = min(accounts[oldest][1], accounts[oldest][0])
            accounts.move_to_end(oldest)
            return False
        del accounts[oldest]
        return True

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the accounts as arrays."""
        accounts = [
            (key, min(seen, MOST), part, self._total - since)
            for key, (seen, part, since) in self._accounts.items()
        ]
        return {
            "accounts": np.array(accounts, dtype=np.int64),
            "new": np.array(list(self._new.items()), dtype=np.int64).reshape(len(self._new), 2),
            "refused": count_array(self._refused),
        }

    def restore(self, state: Arrays) -> None:
        """Replace the accounts with a :meth:`state`.

        Raises:
            ValueError: arrays that do not fit, or hold what cannot have been counted.
        """
        accounts = checked(state, "accounts", np.int64, (None, 4), 0, MOST)
        new = checked(state, "new", np.int64, (None, 2), 0, MOST)
        refused = checked_count(state, "refused")
        # Counted from the start of what is restored: only differences matter.
        found = OrderedDict(
            (key, [seen, part, -since]) for key, seen, part, since in accounts.tolist()
        )
        fresh: OrderedDict[int, int] = OrderedDict(new.tolist())
        if not len(found) == len(accounts) <= _MOST_CLIENTS + 1 or _SHARED not in found:
            raise ValueError("'accounts' names a client twice, too many, or not the shared one")
        if (accounts[:, 2] > np.minimum(accounts[:, 1], accounts[:, 3])).any():
            raise ValueError("'accounts' accepted more than there was")
        if not len(fresh) == len(new) <= _MOST_NEW or fresh.keys() & found.keys():
            raise ValueError("'new' names a client twice, or too many")
        if len(new) and not (new[:, 1].min() >= 1 and new[:, 1].max() < _ESTABLISHED):
            raise ValueError("'new' holds a client that is not new, or none")
        if refused > _MOST_REFUSED:
            raise ValueError("'refused' more in a row than are refused")
        self._accounts, self._new, self._refused = found, fresh, refused
        self._total = 0
