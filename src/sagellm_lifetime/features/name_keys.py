"""Keys of names: keyed hashes, with a secret that belongs to the learned state.

A learned state holds keys of clients, sessions, models and prefixes instead of their names. With an
unkeyed hash, or a short one, a user could search for a name with the key of another client, and
would then count as that client. Without the secret it cannot be computed which names have equal
keys, and 63 bits are too many to try.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import checked

LARGEST_KEY: Final = 2**63 - 1
"""Largest key of a name: 63 bits of a 64-bit hash, as arrays of keys are int64."""
SECRET: Final = "secret"
"""Name of the array with the secret in a predictor's state."""
_BYTES: Final = 16
_RECENT: Final = 4096
"""Keys of names that are kept, since a hash costs a microsecond and names recur."""
_LONGEST: Final = 256
"""Characters of a kept name, so that kept names take a megabyte at most."""


class NameKeys:
    """Keys of names under one secret.

    Args:
        secret: 16 bytes.

    Example:
        >>> from sagellm_lifetime.features.name_keys import NameKeys
        >>> one, other = NameKeys.seeded(0), NameKeys.seeded(1)
        >>> one.key("client", "a") == NameKeys.seeded(0).key("client", "a")
        True
        >>> one.key("client", "a") == other.key("client", "a")
        False
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _BYTES:
            raise ValueError(f"a secret has {_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self._hash = blake2b(key=secret, digest_size=8)
        self._kept = lru_cache(maxsize=_RECENT)(self._computed)

    @classmethod
    def seeded(cls, seed: int) -> NameKeys:
        """Return the keys of a seed: the same in every process, and known to everybody."""
        return cls(blake2b(f"seed {seed}".encode(), digest_size=_BYTES).digest())

    @classmethod
    def random(cls) -> NameKeys:
        """Return keys under a new random secret."""
        return cls(secrets.token_bytes(_BYTES))

    @property
    def secret(self) -> bytes:
        """Return the secret, 16 bytes."""
        return self._secret

    def key(self, kind: str, value: Any, owner: int = 0) -> int:
        """Return the key of a name, from 1 to :data:`LARGEST_KEY`.

        Args:
            kind: what the name names, for instance ``"client"``; equal names of two kinds have
                different keys.
            value: the name, text or a number.
            owner: key of the client that the name belongs to, 0 for none; equal names of two
                clients have different keys.
        """
        if type(value) is str and len(value) > _LONGEST:
            return self._computed(kind, value, owner)
        return self._kept(kind, value, owner)

    def _computed(self, kind: str, value: Any, owner: int) -> int:
        hashed = self._hash.copy()
        hashed.update(f"{kind}={owner:x}={value}".encode("utf-8", "surrogatepass"))
        return int.from_bytes(hashed.digest(), "little") >> 1 or 1

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the secret as an array, int64 of shape ``(2,)``."""
        return {SECRET: np.frombuffer(self._secret, dtype="<i8").astype(np.int64)}

    @classmethod
    def of_state(cls, state: Arrays) -> NameKeys:
        """Return the keys under the secret of a :meth:`state`.

        Raises:
            ValueError: the array is missing, or of another type or shape.
        """
        words = checked(state, SECRET, np.int64, (2,), -(2**63), LARGEST_KEY)
        return cls(words.astype("<i8").tobytes())

    def __eq__(self, other: object) -> bool:
        """Return True for keys under the same secret."""
        if not isinstance(other, NameKeys):
            return NotImplemented
        return secrets.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._secret)

    def __repr__(self) -> str:
        return "<NameKeys>"

    def __reduce__(self) -> tuple[Any, ...]:
        return NameKeys, (self._secret,)
