"""Keep objects consistent across ``os.fork``.

``os.fork`` copies memory, open files and only the thread that forks. A lock that another thread
held stays locked in the child for ever, and the data that it guards may be half changed there. So
before a fork the locks of all registered objects are taken, and released in both processes. A lock
that is not free in time (a fit takes minutes) does not delay the fork; in the child the
``_after_fork`` of its object is called with ``whole=False``.

``subprocess`` is not affected: it starts another program.
"""

from __future__ import annotations

import os
import time
from threading import Lock, local
from typing import IO, Any, Final, Protocol
from weakref import WeakSet

from sagellm_lifetime.core.errors import LifetimeError

PATIENCE_S: Final = 0.5
"""Longest time that a fork waits for all locks together, seconds."""


class ForkAware(Protocol):
    """Interface of an object that a forked child may use."""

    def _fork_lock(self) -> Any:
        """Return the lock of the object (``acquire(timeout=…)``, ``release()``), or ``None``."""

    def _after_fork(self, *, whole: bool) -> None:
        """Prepare the object for use in a forked child; called there once, by one thread.

        Args:
            whole: True if the thread that forked held the lock, so that nothing is half changed.
        """


class _Forks:
    """Registered objects, and the locks that are held during a fork."""

    def __init__(self) -> None:
        self._objects: WeakSet[ForkAware] = WeakSet()
        self._lock = Lock()
        self._held = local()
        """Per thread that forks: the objects, their locks, and True for each lock that it holds."""
        os.register_at_fork(
            before=self._before,
            after_in_parent=self._after_in_parent,
            after_in_child=self._after_in_child,
        )

    def add(self, item: ForkAware) -> None:
        """Register an object, for as long as it lives."""
        with self._lock:
            self._objects.add(item)

    def living(self) -> list[ForkAware]:
        """Return the registered objects that still live."""
        with self._lock:
            return list(self._objects)

    def _before(self) -> None:
        deadline = time.monotonic() + PATIENCE_S

        def acquire(lock: Any) -> bool:
            return bool(lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)))

        taken: list[tuple[ForkAware, Any, bool]] = []
        self._held.taken = taken
        self._held.has_own_lock = acquire(self._lock)
        for item in list(self._objects):
            lock = item._fork_lock()
            taken.append((item, lock, lock is None or acquire(lock)))

    def _release(self) -> list[tuple[ForkAware, Any, bool]]:
        taken: list[tuple[ForkAware, Any, bool]] = self._held.taken
        self._held.taken = []
        for _, lock, whole in reversed(taken):
            if lock is not None and whole:
                lock.release()
        return taken

    def _after_in_parent(self) -> None:
        self._release()
        if self._held.has_own_lock:
            self._lock.release()

    def _after_in_child(self) -> None:
        self._lock = Lock()
        for item, _, whole in self._release():
            item._after_fork(whole=whole)


_forks: Final = _Forks()


def register(item: ForkAware) -> None:
    """Register an object for every later fork of this process; the reference is weak."""
    _forks.add(item)


def living() -> list[ForkAware]:
    """Return the registered objects that still live."""
    return _forks.living()


class Torn:
    """Lock of an object that was half changed at the fork; taking it raises an error."""

    def __enter__(self) -> None:
        """Raise :class:`LifetimeError`."""
        raise LifetimeError(
            "this process was forked while another thread changed the predictor (fitted it, say): "
            "load or create one here"
        )

    def __exit__(self, *_: object) -> None:
        """Do nothing: the block is never entered."""

    def acquire(self, *, timeout: float = 0.0) -> bool:
        """Return False: another fork cannot take it either."""
        return False


class ClosedInChild:
    """File that forked children close, so that its lock (``flock``) stays with this process.

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
