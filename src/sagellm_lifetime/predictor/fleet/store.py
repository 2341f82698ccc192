"""The store of a fleet: a map from replica to what this replica alone has learned.

Every replica writes its own entry, whole, and reads those of the others; what is known together is
the merge of all entries, computed where it is read (a state-based CRDT: Shapiro et al. 2011). So an
entry that is written twice, or read twice, counts once.

A lease says who writes an entry. An entry whose lease has run out belongs to a replica that ended,
and a new replica continues it; so a fleet that is restarted a hundred times has no hundred entries.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Final
from urllib.parse import urlsplit

from sagellm_lifetime.core.errors import LifetimeError, shown

MOST_BYTES: Final = 64 << 20
"""Maximum size of an entry; one of 20,000 groups has some megabytes."""
MOST_REPLICAS: Final = 64
"""Maximum number of entries that are read, the first by name."""
SECRET_BYTES: Final = 16
SCHEMES: Final = ("redis", "rediss", "unix")
WHERE: Final = "redis://HOST:PORT/DB, rediss://…, unix://PATH, or a folder"
_REPLICA: Final = re.compile(r"[0-9a-f]{16}")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class StoreError(LifetimeError):
    """A store that cannot be reached, or answers with what it should not.

    >>> issubclass(StoreError, LifetimeError)
    True
    """


class Store(ABC):
    """The entries of a fleet; every method raises :class:`StoreError` if the store is away."""

    @abstractmethod
    def secret(self, proposed: bytes) -> bytes:
        """Return the secret of the fleet's names: the first that was proposed, 16 bytes."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the version of each entry, which changes with its content."""

    @abstractmethod
    def read(self, replica: str) -> bytes | None:
        """Return an entry, or ``None`` if there is none."""

    @abstractmethod
    def claim(self, replica: str, token: str, lease_s: float) -> bool:
        """Take the lease of an entry if it is free or this token has it; return True if so."""

    @abstractmethod
    def write(self, replica: str, token: str, lease_s: float, data: bytes | None) -> bool:
        """Renew the lease, and replace the entry unless ``data`` is ``None``.

        Returns:
            False if another token has the lease; then nothing is written.
        """

    @abstractmethod
    def release(self, replica: str, token: str) -> None:
        """Give the lease back, so that another replica may continue the entry."""

    @abstractmethod
    def close(self) -> None:
        """Close connections."""


def is_replica(name: str) -> bool:
    """Return True for the name of a replica: 16 hexadecimal digits.

    >>> is_replica("0123456789abcdef"), is_replica("../../etc")
    (True, False)
    """
    return _REPLICA.fullmatch(name) is not None


def is_address(text: str) -> bool:
    """Return True if an address names a server and no folder.

    >>> is_address("redis://cache:6379/0"), is_address("/mnt/fleet")
    (True, False)
    """
    return _SCHEME.match(text) is not None


def check_place(place: str) -> None:
    """Raise :class:`StoreError` if a place is neither an address that is known, nor a folder.

    >>> check_place("http://cache")
    Traceback (most recent call last):
    sagellm_lifetime.predictor.fleet.store.StoreError: 'http' is no store of a fleet: give \
redis://HOST:PORT/DB, rediss://…, unix://PATH, or a folder
    """
    scheme = _SCHEME.match(place)
    if scheme is None:
        if not place or "\0" in place:
            raise StoreError(f"a fleet has a store: give {WHERE}")
        return
    if scheme[1] not in SCHEMES:
        raise StoreError(f"{shown(scheme[1])} is no store of a fleet: give {WHERE}")
    try:
        parts = urlsplit(place)
        is_whole = parts.port is None or parts.port > 0
    except ValueError:
        is_whole = False
    if not is_whole or not (parts.hostname or scheme[1] == "unix"):
        raise StoreError(f"{shown_place(place)} is no address of a store: give {WHERE}")
    from sagellm_lifetime.core.extras import require

    require("redis", "a fleet that shares through Redis", "fleet")


def shown_place(place: str) -> str:
    """Return a place as messages may show it, without user and password.

    >>> shown_place("redis://me:secret@cache:6379/0")
    'redis://cache:6379/0'
    """
    scheme = _SCHEME.match(place)
    if scheme is None:
        return place
    return f"{scheme[0]}{place[scheme.end() :].rpartition('@')[2]}"
