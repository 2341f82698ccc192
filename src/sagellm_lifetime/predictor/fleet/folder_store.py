"""A store in a shared folder: NFS, a volume of several pods, or one machine.

FOLDER/secret           the secret of names
FOLDER/REPLICA.entry    the entry
FOLDER/REPLICA.lease    the token of the replica that writes it; touched to renew it

Times are those of the folder's own clock, which is asked by making a file, since the clocks of two
machines differ. All files are readable by their owner only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.errors import reason_of
from sagellm_lifetime.core.regular_files import open_regular, read_regular
from sagellm_lifetime.predictor.fleet.store import (
    MOST_BYTES,
    MOST_REPLICAS,
    SECRET_BYTES,
    Store,
    StoreError,
    is_replica,
)

_ENTRY: Final = ".entry"
_LEASE: Final = ".lease"
_MOST_TOKEN_BYTES: Final = 256


class FolderStore(Store):
    """Entries as files of a folder, which is made if it is missing.

    Args:
        folder: path of the folder.

    Example:
        >>> from tempfile import mkdtemp
        >>> store = FolderStore(mkdtemp())
        >>> store.write("0123456789abcdef", "me", 60.0, b"what I learned")
        True
        >>> store.read("0123456789abcdef")
        b'what I learned'
        >>> store.claim("0123456789abcdef", "another", 60.0)
        False
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Raise errors of files as a :class:`StoreError`."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or reason_of(error)
            raise StoreError(f"{self._folder}: {reason}") from error

    def secret(self, proposed: bytes) -> bytes:
        """Return the secret of the fleet's names."""
        path = self._folder / "secret"
        with self._reported():
            atomic.make_folder(self._folder, private=True)
            if not path.exists():
                # A link is made whole or not at all, and never replaces another.
                temporary = self._folder / f".secret.{secrets.token_hex(8)}"
                atomic.write_atomically(temporary, proposed, private=True, error=StoreError)
                try:
                    with suppress(FileExistsError):
                        os.link(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
            found = read_regular(path, SECRET_BYTES)
        if len(found) != SECRET_BYTES:
            raise StoreError(f"{path}: the secret of the fleet is not what it should be")
        return found

    def versions(self) -> dict[str, str]:
        """Return the version of each entry."""
        versions: dict[str, str] = {}
        with self._reported():
            for path in sorted(self._folder.glob(f"*{_ENTRY}")):
                if is_replica(path.stem) and len(versions) < MOST_REPLICAS:
                    with suppress(FileNotFoundError):  # replaced meanwhile
                        status = path.lstat()
                        version = f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"
                        versions[path.stem] = version
        return versions

    def read(self, replica: str) -> bytes | None:
        """Return an entry, or ``None`` if there is none."""
        with self._reported():
            try:
                return read_regular(self._folder / f"{replica}{_ENTRY}", MOST_BYTES)
            except FileNotFoundError:
                return None

    def claim(self, replica: str, token: str, lease_s: float) -> bool:
        """Take the lease of an entry if it is free or this token has it."""
        return self.write(replica, token, lease_s, None)

    def write(self, replica: str, token: str, lease_s: float, data: bytes | None) -> bool:
        """Renew the lease, and replace the entry unless ``data`` is ``None``."""
        with self._reported():
            atomic.make_folder(self._folder, private=True)
            if not self._hold(replica, token, lease_s):
                return False
            if data is not None:
                path = self._folder / f"{replica}{_ENTRY}"
                atomic.write_atomically(path, data, private=True, error=StoreError)
        return True

    def _hold(self, replica: str, token: str, lease_s: float) -> bool:
        """Return True if the token has the lease now: renewed, or taken over."""
        lease = self._folder / f"{replica}{_LEASE}"
        holder = _token(lease)
        if holder == token:
            until = self._now() + lease_s
            os.utime(lease, (until, until))
            return True
        if holder is not None:
            if lease.lstat().st_mtime > self._now():
                return False
            # Of several that saw the old lease only one can move it away.
            aside = self._folder / f".lease.{secrets.token_hex(8)}"
            try:
                os.rename(lease, aside)
            except FileNotFoundError:
                return False
            is_same = _token(aside) == holder
            if not is_same:  # another one had taken it over in between: put theirs back
                with suppress(FileExistsError):
                    os.link(aside, lease)
            aside.unlink(missing_ok=True)
            if not is_same:
                return False
        try:
            with open_regular(lease, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
                file.write(token.encode())
        except FileExistsError:
            return False
        until = self._now() + lease_s
        os.utime(lease, (until, until))
        return True

    def _now(self) -> float:
        """Return the time of the folder's clock, seconds."""
        path = self._folder / f".now.{secrets.token_hex(8)}"
        with open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            now = os.fstat(file.fileno()).st_mtime
        path.unlink(missing_ok=True)
        return now

    def release(self, replica: str, token: str) -> None:
        """Give the lease back."""
        lease = self._folder / f"{replica}{_LEASE}"
        with self._reported():
            if _token(lease) == token:
                lease.unlink(missing_ok=True)

    def close(self) -> None:
        """Do nothing: no file is kept open."""


def _token(lease: Path) -> str | None:
    """Return the token in a lease, ``None`` without one."""
    try:
        return read_regular(lease, _MOST_TOKEN_BYTES).decode("latin-1")
    except FileNotFoundError:
        return None
