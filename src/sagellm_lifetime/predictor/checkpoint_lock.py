"""One writer for a checkpoint: a lock that ends with the last process that holds it."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

from sagellm_lifetime.core import forking
from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.predictor.checkpoint_file import remove_leftovers


class _Claims:
    """The lock files this process has open.

    A lock belongs to the open file, not to the process: a forked child would keep it for as long
    as it lives, though it never wrote a checkpoint.
    """

    def __init__(self) -> None:
        self._lock: Any = Lock()
        self._files: dict[int, tuple[int, int]] = {}
        """Device and inode by descriptor, to tell when the descriptor has become another file's."""
        forking.register(self)

    def open(self, path: Path) -> int:
        """Open a lock file; return its descriptor."""
        with self._lock:
            held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._files[held] = _identity(held)
        return held

    def close(self, held: int) -> None:
        """Close a lock file."""
        with self._lock:
            self._files.pop(held, None)
            os.close(held)

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self, *, whole: bool) -> None:
        self._lock = Lock()
        for held, identity in self._files.items():
            with suppress(OSError):
                if _identity(held) == identity:
                    os.close(held)
        self._files = {}


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


_claims: Final = _Claims()


def release(held: int) -> None:
    """Give a claim back."""
    _claims.close(held)


def claim(path: Path, patience: float) -> int:
    """Claim the right to write the checkpoint ``path``, as an open file descriptor.

    A child that was given the descriptor shares the claim. So after a kill -9 of its parent the
    next claim is given when the child has written what it knew, and not before. What killed writers
    left beside the checkpoint is removed.

    A forked child does not share it: the descriptor is closed there.

    Args:
        path: the checkpoint directory. The lock is a file beside it, for the directory itself is
            replaced whenever it is written.
        patience: seconds to wait for another holder.

    Raises:
        CheckpointError: another process has it, or the place cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _claims.open(lock)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                release(held)
                raise CheckpointError(
                    f"{path}: another process learns into it; choose another directory"
                ) from error
            time.sleep(0.05)
        else:
            remove_leftovers(path)
            return held
