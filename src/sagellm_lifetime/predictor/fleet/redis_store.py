"""A store that speaks the protocol of Redis: Redis, Valkey, KeyDB, Dragonfly.

lifetime:{FLEET}:secret           the secret of names
lifetime:{FLEET}:versions         a hash: replica → version of its entry
lifetime:{FLEET}:entry:REPLICA    the entry
lifetime:{FLEET}:lease:REPLICA    the token of the replica that writes it, with an expiry
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import unquote, urldefrag

from sagellm_lifetime.core.errors import reason_of
from sagellm_lifetime.predictor.fleet.store import (
    MOST_BYTES,
    MOST_REPLICAS,
    SECRET_BYTES,
    Store,
    StoreError,
    is_replica,
    shown_place,
)

_TIMEOUT_S: Final = 2.0
"""Seconds to connect, and for each answer: the learning process waits for no store for long."""
_FLEET: Final = "fleet"
"""Name of a fleet whose address has none."""
_TRIES: Final = 3
_LONGEST_NAME: Final = 100


class RedisStore(Store):
    """Entries in a Redis database.

    Args:
        address: ``redis://…``, ``rediss://…`` or ``unix://…``; after ``#`` the name of the fleet.
        password: replaces that of the address; ``None`` for none.

    Raises:
        StoreError: the address cannot be read.
    """

    def __init__(self, address: str, password: str | None = None) -> None:
        import redis

        url, name = urldefrag(address)
        self._shown = shown_place(url)
        name = unquote(name)[:_LONGEST_NAME] or _FLEET
        self._prefix = f"lifetime:{{{name}}}:"
        options: dict[str, Any] = {
            "socket_timeout": _TIMEOUT_S,
            "socket_connect_timeout": _TIMEOUT_S,
            "decode_responses": False,
        }
        if password:
            options["password"] = password
        self._errors = (redis.RedisError, OSError, ValueError)
        self._changed = redis.WatchError
        with self._reported():
            self._client: Any = redis.Redis.from_url(url, **options)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raise the errors of the client as a :class:`StoreError`."""
        try:
            yield
        except self._errors as error:
            raise StoreError(f"{self._shown}: {reason_of(error)}") from error

    def secret(self, proposed: bytes) -> bytes:
        """Return the secret of the fleet's names."""
        with self._reported():
            self._client.set(f"{self._prefix}secret", proposed, nx=True)
            found = self._client.get(f"{self._prefix}secret")
        if not isinstance(found, bytes) or len(found) != SECRET_BYTES:
            raise StoreError(f"{self._shown}: the secret of the fleet is not what it should be")
        return found

    def versions(self) -> dict[str, str]:
        """Return the version of each entry."""
        with self._reported():
            if self._client.hlen(f"{self._prefix}versions") > 16 * MOST_REPLICAS:
                raise StoreError(f"{self._shown}: has more replicas than any fleet")
            found = self._client.hgetall(f"{self._prefix}versions")
        names = {key.decode("latin-1"): version.decode("latin-1") for key, version in found.items()}
        return {name: names[name] for name in sorted(filter(is_replica, names))[:MOST_REPLICAS]}

    def read(self, replica: str) -> bytes | None:
        """Return an entry, or ``None`` if there is none."""
        with self._reported():
            if self._client.strlen(self._entry(replica)) > MOST_BYTES:
                raise StoreError(f"{self._shown}: entry {replica} is larger than any")
            found: bytes | None = self._client.get(self._entry(replica))
        return found

    def claim(self, replica: str, token: str, lease_s: float) -> bool:
        """Take the lease of an entry if it is free or this token has it."""
        return self.write(replica, token, lease_s, None)

    def write(self, replica: str, token: str, lease_s: float, data: bytes | None) -> bool:
        """Renew the lease, and replace the entry unless ``data`` is ``None``."""
        lease = self._lease(replica)
        with self._reported():
            for _ in range(_TRIES):
                with self._client.pipeline() as pipe:
                    try:
                        pipe.watch(lease)
                        if pipe.get(lease) not in (None, token.encode()):
                            return False
                        pipe.multi()
                        pipe.set(lease, token, px=max(int(lease_s * 1000), 1))
                        if data is not None:
                            pipe.set(self._entry(replica), data)
                            version = secrets.token_hex(8)
                            pipe.hset(f"{self._prefix}versions", replica, version)
                        pipe.execute()
                    except self._changed:  # another one wrote the lease in between
                        continue
                    return True
        return False

    def release(self, replica: str, token: str) -> None:
        """Give the lease back."""
        lease = self._lease(replica)
        with self._reported(), self._client.pipeline() as pipe:
            try:
                pipe.watch(lease)
                if pipe.get(lease) != token.encode():
                    return
                pipe.multi()
                pipe.delete(lease)
                pipe.execute()
            except self._changed:
                return

    def close(self) -> None:
        """Close connections."""
        with self._reported():
            self._client.close()

    def _entry(self, replica: str) -> str:
        return f"{self._prefix}entry:{replica}"

    def _lease(self, replica: str) -> str:
        return f"{self._prefix}lease:{replica}"
