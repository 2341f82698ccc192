"""A call that may take so long and no longer, on the thread of an engine.

On the main thread of a process a timer interrupts the call (``SIGALRM``, about 2 µs a call); it
gets through to Python code and to waits (locks, sleeps, sockets), not to a loop inside a C
function. On any other thread, or where somebody else uses that signal, a worker thread makes the
call and is left behind when it is late.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")
_AGAIN_S: Final = 0.1
"""A call that swallows the interruption is interrupted again."""


class Hang(BaseException):
    """The call took too long. Not an ``Exception``: the call itself is not to catch it."""


class TimeLimit:
    """Makes calls that end, or raise :class:`Hang`, within ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker: _Worker | None = None
        self._timer: bool | None = None

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)``.

        Raises:
            Hang: it took longer than the limit.
        """
        if threading.current_thread() is threading.main_thread():
            if self._timer is None:
                self._timer = _take_timer()
            if self._timer:
                return self._interrupted(function, *args)
        if self._worker is None:
            self._worker = _Worker()
        return self._worker.call(function, args, self.seconds)

    def _interrupted(self, function: Callable[..., T], *args: Any) -> T:
        global _armed  # noqa: PLW0603  # there is one timer and one handler in a process
        try:
            try:
                _armed = True
                signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN_S)
                return function(*args)
            finally:
                # In this order: a signal that came in between finds nothing to interrupt.
                _armed = False
                signal.setitimer(signal.ITIMER_REAL, 0.0)
        except Hang:  # it may have come before the lines above had done their work
            _armed = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            raise

    def close(self) -> None:
        """Let the worker thread go, if there is one."""
        if self._worker is not None:
            self._worker.jobs.put(None)
            self._worker = None


_armed = False


def _alarm(signum: int, frame: Any) -> None:
    if _armed:
        raise Hang


def _take_timer() -> bool:
    """Whether the signal is ours; taken if nobody else has it."""
    handler = signal.getsignal(signal.SIGALRM)
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGALRM, _alarm)
    return handler in (signal.SIG_DFL, _alarm)


class _Worker(threading.Thread):
    """One thread that makes calls, one at a time."""

    def __init__(self) -> None:
        super().__init__(name="lifetime-call", daemon=True)
        self.jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], Any] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        """Until it is told to stop."""
        while (job := self.jobs.get()) is not None:
            future, function, args = job
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001  # raised again where it was called
                future.set_exception(error)

    def call(self, function: Callable[..., T], args: Any, seconds: float) -> T:
        """Wait so long and no longer."""
        future: Future[T] = Future()
        self.jobs.put((future, function, args))
        try:
            return future.result(seconds)
        except TimeoutError:
            if future.done():  # the call's own
                raise
            raise Hang from None
