"""Fair shares: state that is common to all clients learns from each client by a bounded part.

If every completion counted the same, a client at ten times the rate of the others would dominate
all common state: the counts of all requests, the effect of a prompt length, the calibration. So a
completion is accepted there only while its client's part of the recently accepted ones is at most a
fair share: the larger of twice an even share of all clients and 25 %. A client's own state (nodes
below its name) learns from all its completions.

Accounts that send more than twice an even share of all completions are *loud*, and share one bound:
half of the accepted completions, together. So several loud names get no more than two of them. In
ordinary traffic busy clients are loud, too; beside a flood, of which they are a small part, they
are not, and only the flood is cut.

A fit makes one exception: a client with more than half of a history from its beginning to its end
is the workload itself, and counts in full there (:func:`steady_majority`).

Clients with fewer than eight completions share one account with requests that name no client, so
that a new name for every request gives no larger share. Nothing here is random, and time is counted
in completions, so equal calls give equal answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array
from sagellm_lifetime.features.name_keys import LARGEST_KEY

LEAST_SHARE: Final = 0.25
"""Share of the accepted completions that every client may have. With 15 % the busiest clients of an
ordinary trace, at a sixth of it and in bursts, are cut off: 2 % in MAE."""
SHARE_OF_NEW: Final = 0.1
"""The same for the account that all new and unnamed clients share."""
EVEN_SHARES: Final = 2.0
"""Fair share of a client, in even shares of all clients."""
_LOUD_SHARES: Final = 2.0
"""Part of the completions above which an account is loud, in even shares of all clients."""
LOUD_SHARE: Final = 0.5
"""Share of the accepted completions that all loud accounts may have together."""
_OFFERED: Final = 1024
"""Completions, accepted or not, after which what accounts have sent is halved."""
_ESTABLISHED: Final = 8
"""Completions from which on a client has its own account."""
_MEMORY: Final = 256
"""Accepted completions after which an account is halved."""
_MEMORY_OF_NEW: Final = 64
"""The same for the account of new clients, which any number of names may use.
(With 64 for every account the ordinary bursts of clients would be cut off: 3 % in MAE.)"""
_SLACK: Final = 2
"""Completions that an account may have beyond its share, so that its first ones are accepted."""
_MOST_REFUSED: Final = 255
"""Maximum number of completions refused in a row; the next one is accepted. So the common state
still learns after all the clients that it was learned from have left."""
MOST_CLIENTS: Final = 1024
MOST_NEW: Final = 4096
_TRIES: Final = 8
"""Number of least recently used entries that are compared before one is evicted."""
SHARED: Final = 0
"""Key of the account of new clients, and of requests that name none."""


def lightest_of(entries: OrderedDict[int, Any], weight: Callable[[Any], float]) -> int:
    """Return the key of the lightest of the ``_TRIES`` least recently used entries.

    The other compared entries become the most recently used, as a second chance for entries with
    a history. The cost does not depend on the number of entries.

    Args:
        entries: entries by key, least recently used first.
        weight: function of an entry.
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


def steady_majority(clients: Sequence[int]) -> int | None:
    """Return the client that has more than half of each quarter of a history; ``None`` for none.

    Args:
        clients: key of the client of each completion, in time order.

    Example:
        >>> from sagellm_lifetime.models.fair_share import steady_majority
        >>> steady_majority([7, 7, 7, 5] * 100), steady_majority([7] * 300 + [5] * 100)
        (7, None)
    """
    quarters = np.array_split(np.array(clients, dtype=np.uint64), 4)
    if not quarters[-1].size:
        return None
    names, counts = np.unique(quarters[0], return_counts=True)
    found = names[counts.argmax()]
    if all(2 * np.count_nonzero(quarter == found) > quarter.size for quarter in quarters):
        return int(found)
    return None


class FairShares:
    """Accounts of clients: the part of each in the recently accepted completions.

    A client's part is measured since its first completion, at most over the last :data:`_MEMORY`
    accepted ones. So a client that starts late or pauses gets no larger share. The part of the
    loud accounts is measured over as many.

    Args:
        even_shares: fair share of a client, in even shares of all clients.
        least_share: share of the accepted completions that every client may have.
    """

    def __init__(
        self, *, even_shares: float = EVEN_SHARES, least_share: float = LEAST_SHARE
    ) -> None:
        self._even_shares = even_shares
        self._least_share = least_share
        self._accounts: OrderedDict[int, list[int]] = OrderedDict({SHARED: [0, 0, 0, 0, 0]})
        """Accounts of established clients, least recently seen first: completions; recently
        accepted ones, and the value of ``_total`` at which these begin; recently sent ones, and the
        value of ``_halvings`` up to which they are halved."""
        self._new: OrderedDict[int, int] = OrderedDict()
        """Completions of clients that are not established yet, least recently seen first."""
        self._total = 0
        """Accepted completions of all clients."""
        self._loud = [0, 0]
        """Recently accepted completions of loud accounts, and where they begin in ``_total``."""
        self._sent = 0
        """Recently sent completions of all clients."""
        self._halvings = 0
        """Number of times that recently sent completions were halved."""
        self._refused = 0
        """Completions refused since one was accepted."""

    def clear(self) -> None:
        """Forget all accounts, so that the next completions are accepted."""
        self.restore(FairShares().state())

    def is_established(self, client: int) -> bool:
        """Return True if a client has its own account."""
        return client != SHARED and client in self._accounts

    def sends_more(self, client: int, even_shares: float) -> bool:
        """Return True if the account of a client sends more than ``even_shares`` even shares."""
        account = self._accounts.get(client, self._accounts[SHARED])
        sent = account[3] >> self._halvings - account[4]
        return sent > even_shares / len(self._accounts) * self._sent + _SLACK

    @property
    def has_one_client(self) -> bool:
        """Return True if no client has an account, or one has and the shared one holds no other."""
        accounts = self._accounts
        # The first completions of a client are on the shared account.
        return len(accounts) == 1 or (len(accounts) == 2 and accounts[SHARED][0] <= _ESTABLISHED)

    def count(self, client: int) -> bool:
        """Count one completion of a client (its key, 0 for none).

        Returns:
            True if the completion is accepted for the common state.
        """
        accounts = self._accounts
        account = accounts.get(client)
        if account is None:
            account = self._count_new(client)
        else:
            accounts.move_to_end(client)
        account[0] += 1
        if self._sent >= _OFFERED:
            self._sent >>= 1
            self._halvings += 1
        self._sent += 1
        if account[4] != self._halvings:
            account[3] >>= self._halvings - account[4]
            account[4] = self._halvings
        account[3] += 1
        total, loud = self._total, self._loud
        since = total - account[2]
        memory = _MEMORY_OF_NEW if account is accounts[SHARED] else _MEMORY
        while since > memory:
            since >>= 1
            account[1] >>= 1
            account[2] = total - since
        since_loud = total - loud[1]
        if since_loud > _MEMORY:
            since_loud >>= 1
            loud[0] >>= 1
            loud[1] = total - since_loud
        # For an established client every new name counts as a client. For the shared account all
        # new names are one client, so that more names never make a larger share; and whether an
        # account is loud depends only on the accounts, so that new names make no account loud.
        others = len(accounts) - 1
        is_shared = account is accounts[SHARED]
        clients = 1 + others if is_shared else others + len(self._new)
        least = min(self._least_share, SHARE_OF_NEW) if is_shared else self._least_share
        is_loud = account[3] > _LOUD_SHARES / len(accounts) * self._sent + _SLACK
        if (
            account[1] > max(self._even_shares / clients, least) * since + _SLACK
            or (is_loud and loud[0] > LOUD_SHARE * since_loud + _SLACK)
        ) and self._refused < _MOST_REFUSED:
            self._refused += 1
            return False
        self._refused = 0
        account[1] += 1
        loud[0] += is_loud
        self._total = total + 1
        return True

    def _count_new(self, client: int) -> list[int]:
        """Count a client without an account; return the account to charge."""
        seen = self._new.pop(client, 0) + 1
        if seen < _ESTABLISHED:
            if len(self._new) >= MOST_NEW:
                self._new.popitem(last=False)
            self._new[client] = seen
            return self._accounts[SHARED]
        if len(self._accounts) > MOST_CLIENTS and not self._make_room(seen):
            self._new[client] = seen - 1
            return self._accounts[SHARED]
        account = self._accounts[client] = [seen - 1, 0, self._total, 0, self._halvings]
        return account

    def _make_room(self, seen: int) -> bool:
        """Evict the lightest of the least recently used accounts; return True if that was done.

        An account with more than ``seen`` completions is halved instead, so that it is evicted
        later.
        """
        accounts = self._accounts
        accounts.move_to_end(SHARED)
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
            (key, min(seen, MOST), part, self._total - since, sent >> self._halvings - halvings)
            for key, (seen, part, since, sent, halvings) in self._accounts.items()
        ]
        loud, since = self._loud
        return {
            "accounts": np.array(accounts, dtype=np.int64),
            "new": np.array(list(self._new.items()), dtype=np.int64).reshape(len(self._new), 2),
            "refused": count_array(self._refused),
            "loud": np.array([loud, self._total - since, self._sent], dtype=np.int64),
        }

    def restore(self, state: Arrays) -> None:
        """Replace the accounts with a :meth:`state`.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible counts.
        """
        accounts = checked(state, "accounts", np.int64, (None, 5), 0, LARGEST_KEY)
        new = checked(state, "new", np.int64, (None, 2), 0, LARGEST_KEY)
        refused = checked_count(state, "refused")
        loud, since_loud, sent = checked(state, "loud", np.int64, (3,), 0, MOST).tolist()
        # The totals start again at 0, since only differences to them are used.
        restored = OrderedDict(
            (key, [seen, part, -since, own, 0]) for key, seen, part, since, own in accounts.tolist()
        )
        fresh: OrderedDict[int, int] = OrderedDict(new.tolist())
        if not len(restored) == len(accounts) <= MOST_CLIENTS + 1 or SHARED not in restored:
            raise ValueError("'accounts' names a client twice, too many, or not the shared one")
        if (accounts[:, 1:] > MOST).any():
            raise ValueError("'accounts' holds impossible counts")
        if (accounts[:, 2] > np.minimum(accounts[:, 1], accounts[:, 3])).any():
            raise ValueError("'accounts' accepted more completions than there were")
        if loud > since_loud or sent > _OFFERED or (accounts[:, 4] > sent).any():
            raise ValueError("'loud' holds impossible counts")
        if not len(fresh) == len(new) <= MOST_NEW or fresh.keys() & restored.keys():
            raise ValueError("'new' names a client twice, or too many")
        if len(new) and not (new[:, 1].min() >= 1 and new[:, 1].max() < _ESTABLISHED):
            raise ValueError("'new' holds a client that is not new, or none")
        if refused > _MOST_REFUSED:
            raise ValueError("'refused' counts more in a row than are ever refused")
        self._accounts, self._new, self._refused = restored, fresh, refused
        self._loud, self._sent = [loud, -since_loud], sent
        self._total = self._halvings = 0
