"""Lock for the single writer of a checkpoint; it ends with the last process that holds it."""

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
    """Lock files that this process has open.

    A lock belongs to the open file, not to the process: a forked child would keep it for as long
    as it lives, though it writes no checkpoint.
    """

    def __init__(self) -> None:
        self._lock: Any = Lock()
        self._files: dict[int, tuple[int, int]] = {}
        """Device and inode by descriptor: a number may have been reused for another file."""
        forking.register(self)

    def open(self, path: Path) -> int:
        """Open a lock file; return its descriptor. Raises :class:`OSError` if that fails."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._lock:
            descriptor = os.open(path, flags, 0o600)
            self._files[descriptor] = _identity(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        """Close a lock file."""
        with self._lock:
            self._files.pop(descriptor, None)
            os.close(descriptor)

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self, *, whole: bool) -> None:
        self._lock = Lock()
        for descriptor, identity in self._files.items():
            with suppress(OSError):
                if _identity(descriptor) == identity:
                    os.close(descriptor)
        self._files = {}


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


_claims: Final = _Claims()


def release(descriptor: int) -> None:
    """Release a claim (the descriptor that :func:`claim` returned)."""
    _claims.close(descriptor)


def claim(path: Path, patience: float) -> int:
    """Claim the right to write the checkpoint ``path``, as an open file descriptor.

    A child process that inherits the descriptor shares the claim. So after a kill -9 of its parent
    the next claim succeeds only when the child has written its last state. Temporary files of
    killed writers beside the checkpoint are removed.

    A forked child does not share it: the descriptor is closed there.

    Args:
        path: the checkpoint directory. The lock is a file beside it, since the directory itself is
            replaced by every save.
        patience: seconds to wait for another holder.

    Raises:
        CheckpointError: another process holds the lock, or its file cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _claims.open(lock)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                release(descriptor)
                raise CheckpointError(
                    f"{path}: another process learns into it; choose another directory"
                ) from error
            time.sleep(0.05)
        else:
            remove_leftovers(path)
            return descriptor
