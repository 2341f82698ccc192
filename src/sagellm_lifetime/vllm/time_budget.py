"""Calls with a time limit on the thread of an engine.

In an engine core's own process a timer interrupts the call (``SIGALRM``, about 2 µs a call). It
reaches Python code and waits (locks, sleeps, sockets), but not a loop inside a C function. The
signal, its handler and its timer belong to the process's main program. So in all other cases
(``LLM`` in a program's process, another thread, an engine core in which other code uses the signal)
a worker thread makes the call, about 20 µs, and is abandoned when it is late.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")
LimitMethod = Literal["alarm", "thread"]
ENGINE_CORE: Final = "EngineCore"
"""Prefix of the names of vLLM's engine core processes."""
_AGAIN_S: Final = 0.1
"""Seconds after which a call that has swallowed the interruption is interrupted again."""


class Hang(BaseException):
    """A call that took too long; a ``BaseException``, so that the call itself does not catch it."""


class TimeLimit:
    """A caller whose calls end, or raise :class:`Hang`, within a time limit.

    Args:
        seconds: time limit of a call.
        means: means to end a late call; ``None`` for the alarm in an engine core's process, and a
            thread elsewhere.

    Attributes:
        means: means to end a late call on this thread: ``alarm`` or ``thread``.
    """

    def __init__(self, seconds: float, method: LimitMethod | None = None) -> None:
        self.seconds = seconds
        self.method: LimitMethod = method or ("alarm" if runs_alone() else "thread")
        self._worker: _Worker | None = None
        self._cpu_s = 0.0
        """Processor seconds of abandoned workers."""

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``.

        Raises:
            Hang: if it takes longer than the limit.
        """
        if self.method == "alarm" and threading.current_thread() is threading.main_thread():
            if _has_alarm():
                return self._interrupted(function, *args)
            self.method = "thread"
        if self._worker is None or not self._worker.is_alive():  # a forked process has none
            self.close()
            self._worker = _Worker()
        future = self._worker.put(function, args)
        try:
            return future.result(self.seconds)
        except BaseException as error:
            is_late = not future.done()
            if is_late:  # whatever the error
                self.close()
                if isinstance(error, TimeoutError) and not from_signal_handler(error):
                    raise Hang from None
            raise

    def thread_time(self) -> float:
        """Return the processor seconds of this thread and of the calls made for it."""
        worker = self._worker
        return time.thread_time() + self._cpu_s + (worker.cpu_s if worker is not None else 0.0)

    def _interrupted(self, function: Callable[..., T], *args: Any) -> T:
        global _armed  # noqa: PLW0603  # there is one timer and one handler in a process
        try:
            try:
                _armed = True
                signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN_S)
                return function(*args)
            finally:
                # In this order, so that a signal in between interrupts nothing.
                _armed = False
                _stop_timer()
        except Hang:  # perhaps raised before the lines above had run
            _armed = False
            _stop_timer()
            raise

    def close(self) -> None:
        """Release the worker thread, if there is one."""
        if self._worker is not None:
            self._cpu_s += self._worker.cpu_s
            self._worker.jobs.put(None)
            self._worker = None


def runs_alone() -> bool:
    """Return True in an engine core's process, in which no caller uses signals."""
    name = multiprocessing.current_process().name
    return multiprocessing.parent_process() is not None and name.startswith(ENGINE_CORE)


def from_signal_handler(error: BaseException) -> bool:
    """Return True if a signal handler raised it, such as Ctrl-C or a caller's time-out.

    Such an error interrupts arbitrary code, and is not a fault of that code. A
    ``KeyboardInterrupt`` of code on the main thread counts as Ctrl-C while Python's own handler is
    installed, which leaves no trace of itself.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {
        getattr(getattr(part, "__func__", part), "__code__", None)
        for handler in handlers
        for part in (handler, getattr(handler, "func", None), getattr(handler, "__call__", None))  # noqa: B004
    }
    found = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    if not found.isdisjoint(codes):
        return True
    is_ctrl_c = isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers
    return is_ctrl_c and _Worker.run.__code__ not in found  # signals run on the main thread only


_armed = False
_handler_of: Final = getattr(signal, "_signal", signal).getsignal
"""The C function behind ``signal.getsignal``, which takes 3 µs for an enum."""


def _alarm(signum: int, frame: Any) -> None:
    if _armed:
        raise Hang


def _has_alarm() -> bool:
    """Return True if handler and timer are ours; take them if they are unused.

    A model, a logits processor or a plug-in in the same process may set its own at any time; then
    theirs stay in place, and ours are no longer used.
    """
    handler = _handler_of(signal.SIGALRM)
    if handler is not _alarm and handler != signal.SIG_DFL:
        return False
    if signal.getitimer(signal.ITIMER_REAL)[0] > 0.0:
        if handler is _alarm:  # the owner of the timer expects the default handler
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return False
    if handler is not _alarm:
        signal.signal(signal.SIGALRM, _alarm)
    return True


def _stop_timer() -> None:
    """Stop our timer, but not one that other code has set meanwhile."""
    left, again = signal.setitimer(signal.ITIMER_REAL, 0.0)
    if left > 0.0 and abs(again - _AGAIN_S) > 1e-3:
        signal.setitimer(signal.ITIMER_REAL, left, again)


class _Worker(threading.Thread):
    """A thread that makes calls, one at a time."""

    def __init__(self) -> None:
        super().__init__(name="lifetime-call", daemon=True)
        self.cpu_s = 0.0
        """Processor seconds of the calls so far."""
        self.jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], Any] | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        """Make calls until a None in the queue."""
        while (job := self.jobs.get()) is not None:
            future, function, args = job
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001  # raised again by the caller
                future.set_exception(error)
            self.cpu_s = time.thread_time()

    def put(self, function: Callable[..., T], args: Any) -> Future[T]:
        """Queue a call and return its future."""
        future: Future[T] = Future()
        self.jobs.put((future, function, args))
        return future
