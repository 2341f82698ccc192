"""Stores of a fleet by their place."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import unquote, urlsplit

from sagellm_lifetime.predictor.fleet.store import Store, check_place, is_address

PASSWORD_VARIABLE: Final = "LIFETIME_FLEET_PASSWORD"
"""Environment variable with the password of the store, which a command line would show to all."""


def parted(place: str) -> tuple[str, str]:
    """Return a place without its password, and the password; empty for none.

    >>> parted("redis://me:p%40ss@cache:6379/0#blue")
    ('redis://me@cache:6379/0#blue', 'p@ss')
    >>> parted("/mnt/fleet")
    ('/mnt/fleet', '')
    """
    try:
        parts = urlsplit(place) if is_address(place) else None
    except ValueError:  # no address, which check_place tells
        return place, ""
    if parts is None or not parts.password:
        return place, ""
    server = parts.netloc.rpartition("@")[2]
    user = f"{parts.netloc.partition(':')[0]}@".removeprefix("@")
    return place.replace(parts.netloc, f"{user}{server}", 1), unquote(parts.password)


def open_store(place: str) -> Store:
    """Return the store at a place; nothing is connected yet.

    Args:
        place: ``redis://HOST:PORT/DB``, with ``#NAME`` for one of several fleets; or a folder. The
            password is taken from :data:`PASSWORD_VARIABLE` if it is set.

    Raises:
        StoreError: another scheme, or no address.
        MissingExtraError: the client of Redis is not installed.
    """
    check_place(place)
    if is_address(place):
        from sagellm_lifetime.predictor.fleet.redis_store import RedisStore

        return RedisStore(place, os.environ.get(PASSWORD_VARIABLE))
    from sagellm_lifetime.predictor.fleet.folder_store import FolderStore

    return FolderStore(place)
