"""What a forked child may go on with: whole objects, and none of its parent's claims.

``os.fork`` copies memory and open files, and of all threads only the one that forks. A lock that
another thread held stays locked in the child for ever, and what it guards may be half changed
there. So before a fork the locks of all living objects are taken, and let go of on both sides. A
lock that is not to be had in time (somebody fits a predictor for minutes) does not hold up the
fork; in the child its object is told that it is not whole.

``subprocess`` runs nothing of this: it starts another program.
"""

from __future__ import annotations

import os
import time
from threading import Lock, local
from typing import IO, Any, Final, Protocol
from weakref import WeakSet

from sagellm_lifetime.core.errors import LifetimeError

PATIENCE_S: Final = 0.5
"""How long a fork waits for all locks together."""


class ForkAware(Protocol):
    """An object that a forked child may meet."""

    def _fork_lock(self) -> Any:
        """Return the lock that guards it (``acquire(timeout=…)``, ``release()``), or ``None``."""

    def _after_fork(self, *, whole: bool) -> None:
        """Become what the object is to be in a forked child; called there, once, by one thread.

        Args:
            whole: its lock was held by the thread that forked, so nothing is half changed.
        """


class _Forks:
    """The objects to be told of a fork, and what is held during one."""

    def __init__(self) -> None:
        self._objects: WeakSet[ForkAware] = WeakSet()
        self._lock = Lock()
        self._held = local()
        """Of the thread that forks: objects, their locks, and whether they were to be had."""
        os.register_at_fork(
            before=self._before,
            after_in_parent=self._after_in_parent,
            after_in_child=self._after_in_child,
        )

    def add(self, each: ForkAware) -> None:
        with self._lock:
            self._objects.add(each)

    def _before(self) -> None:
        ends = time.monotonic() + PATIENCE_S

        def take(lock: Any) -> bool:
            return bool(lock.acquire(timeout=max(ends - time.monotonic(), 0.0)))

        taken: list[tuple[ForkAware, Any, bool]] = []
        self._held.taken = taken
        self._held.alone = take(self._lock)
        for each in list(self._objects):
            lock = each._fork_lock()
            taken.append((each, lock, lock is None or take(lock)))

    def _release(self) -> list[tuple[ForkAware, Any, bool]]:
        taken: list[tuple[ForkAware, Any, bool]] = self._held.taken
        self._held.taken = []
        for _, lock, whole in reversed(taken):
            if lock is not None and whole:
                lock.release()
        return taken

    def _after_in_parent(self) -> None:
        self._release()
        if self._held.alone:
            self._lock.release()

    def _after_in_child(self) -> None:
        self._lock = Lock()
        for each, _, whole in self._release():
            each._after_fork(whole=whole)


_forks: Final = _Forks()


def register(each: ForkAware) -> None:
    """Tell an object of every fork of this process, as long as it lives."""
    _forks.add(each)


class Torn:
    """Stands for the lock of an object that was half changed at the fork: nobody gets it."""

    def __enter__(self) -> None:
        """Raise :class:`LifetimeError`."""
        raise LifetimeError(
            "this process was forked while another thread changed the predictor (fitted it, say): "
            "load or create one here"
        )

    def __exit__(self, *_: object) -> None:
        """Never reached."""

    def acquire(self, *, timeout: float = 0.0) -> bool:
        """Return False, to another fork."""
        return False


class ClosedInChild:
    """Closes a file in forked children, so that a lock on it (``flock``) is this process's alone.

    Args:
        file: an open file, unbuffered or flushed.
    """

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        register(self)

    def _fork_lock(self) -> None:
        """Return ``None``: there is nothing to wait for."""

    def _after_fork(self, *, whole: bool) -> None:
        self._file.close()
