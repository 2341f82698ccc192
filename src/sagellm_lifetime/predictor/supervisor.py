"""Thread between a predictor and the worker process that learns for it.

It sends completions, receives messages, and restarts the worker when it dies. It shares the GIL
with an engine, so it holds it for a short time only: sending a completion takes a tenth of a
millisecond, and after each one other threads run.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from threading import Event, Thread
from typing import Any, Final

from sagellm_lifetime.core.child_process import command
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.predictor import worker
from sagellm_lifetime.predictor.records import Completion
from sagellm_lifetime.predictor.worker import (
    ALIVE,
    COMPLETION,
    END,
    LEARNED,
    SAVE,
    TROUBLE,
    Order,
    Task,
)

_TICK_S: Final = 0.05
"""Seconds between two polls for completions; waking the thread would cost the engine more."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_STEADY_S: Final = 60.0
"""Seconds of life after which the pause before a restart is the shortest again."""
_WATCH_S: Final = 1.0
_MOST_SILENT: Final = 300
"""Looks at a silent worker, ``_WATCH_S`` seconds apart, after which it hangs. Looks and not seconds
are counted, since a machine that was suspended is no worker that hangs."""

Waiting = deque[tuple[int, Completion | None]]
"""Numbered completions; a number without one is an order to save."""


class Supervisor(Thread):
    """Thread that runs a worker and sends completions to it until :meth:`stop`.

    Args:
        task: task that the worker is started with.
        waiting: completions to be sent, oldest first; another thread appends to it.
        claim: file descriptor that the worker inherits.
        on_message: called with each message of the worker, on this thread.
    """

    def __init__(
        self, task: Task, waiting: Waiting, claim: int, on_message: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(name="lifetime-supervisor", daemon=True)
        self._task, self._waiting, self._claim = task, waiting, claim
        self._on_message = on_message
        self._stopping = Event()
        self._close_at = float("inf")
        self._sent = 0
        self._sent_unsaved: deque[int] = deque()
        self._silent = 0
        """Looks since the last message of the worker, or since its start."""
        self._pipes: tuple[Connection, Connection] | None = None
        """Pipes for messages from the worker, and for orders to it."""
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = self.lost = self.dropped = 0
        """Numbers of restarts, of completions lost with a worker, and of those not sendable."""

    @property
    def is_stopping(self) -> bool:
        """Return True after :meth:`stop` was called."""
        return self._stopping.is_set()

    @property
    def is_working(self) -> bool:
        """Return True while a worker runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def unsaved(self) -> int:
        """Return the number of completions that wait, or were sent and are not saved yet."""
        return len(self._waiting) + len(self._sent_unsaved)

    def stop(self, timeout: float) -> None:
        """End the worker: by request in the first half of ``timeout`` seconds, then by force."""
        self._close_at = time.monotonic() + timeout / 2
        self._stopping.set()
        self.join(timeout)
        # The thread may be blocked writing to a worker that hangs; killing that unblocks it.
        while self.is_alive():
            if self.process is not None:
                self.process.kill()
            self.join(_TICK_S)

    def abandon(self) -> int:
        """Close the worker's pipes in a forked child, where this thread does not run.

        Returns:
            Number of completions on the way; the worker learns them only for the parent.
        """
        # A new event, since the thread may have held the lock of the old one at the fork.
        self._stopping = Event()
        self._stopping.set()
        waiting = sum(completion is not None for _, completion in self._waiting)
        count = waiting + len(self._sent_unsaved)
        self._waiting.clear()
        self._sent_unsaved.clear()
        self._close_pipes()
        if self.process is not None:
            self.process.poll()  # so that Popen does not warn of a running process
        return count

    def run(self) -> None:
        """Run a worker, restarted with growing pauses when it dies."""
        # A thread of its own, since this one may be blocked writing to a worker that hangs.
        Thread(target=self._watch, name="lifetime-watch", daemon=True).start()
        pause = _FIRST_PAUSE_S
        while True:  # once even if it is stopped at once: completions may be waiting
            started = time.monotonic()
            try:
                self._start()
            except OSError as error:
                self._on_message({TROUBLE: f"the learning process cannot be started ({error})"})
            else:
                try:
                    self._serve()
                finally:
                    self._end()
            if self._stopping.is_set():
                return
            self.restarts += 1
            # The state of a new worker is unknown until its first message, so a save is ordered.
            self._waiting.appendleft((self._sent, None))
            if time.monotonic() - started > _STEADY_S:
                pause = _FIRST_PAUSE_S
            if self._stopping.wait(pause):
                return
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _watch(self) -> None:
        """Kill a worker that has been silent too long, so that :meth:`run` starts another."""
        while not self._stopping.wait(_WATCH_S):
            self._silent += 1
            if self._silent > _MOST_SILENT and self.process is not None:
                self._silent = 0
                seconds = round(_MOST_SILENT * _WATCH_S)
                self._on_message({TROUBLE: f"the learning process hung for {seconds} s, restarted"})
                self.process.kill()

    def _start(self) -> None:
        self._silent = 0
        orders_there, orders_here = Pipe(duplex=False)
        messages_here, messages_there = Pipe(duplex=False)
        fds = orders_there.fileno(), messages_there.fileno()
        self._pipes = messages_here, orders_here
        try:
            self.process = subprocess.Popen(
                command(worker.__name__, replace(self._task, inbox=fds[0], outbox=fds[1]).text()),
                stdin=subprocess.DEVNULL,
                stdout=2,  # output of libraries goes to stderr
                pass_fds=[self._claim, *fds],
                # In a new session it gets no signals of the engine's group: it ends with its pipe.
                start_new_session=True,
                # It learns on one core and never on the engine's GPU.
                env={
                    **os.environ,
                    **self._task.environment(),
                    "OMP_NUM_THREADS": "1",
                    "CUDA_VISIBLE_DEVICES": "",
                },
            )
        except OSError:
            self._close_pipes()
            raise
        finally:
            orders_there.close()
            messages_there.close()

    def _serve(self) -> None:
        """Send and receive until the worker ends."""
        assert self._pipes is not None
        messages, orders = self._pipes
        while True:
            has_more = bool(self._waiting) and not orders.closed
            if messages.poll(0.0 if has_more else _TICK_S):
                try:
                    self._receive(messages.recv())
                except (EOFError, OSError):
                    return
            if has_more:
                self._send_next(orders)
            is_done = self._stopping.is_set() and not self._waiting
            if not orders.closed and (is_done or time.monotonic() > self._close_at):
                if is_done:
                    self._send(orders, (END, self._sent, None))
                orders.close()

    def _send_next(self, orders: Connection) -> None:
        try:
            number, completion = self._waiting.popleft()
        except IndexError:  # dropped by the other thread in between
            return
        self._sent = number
        if completion is None:
            self._send(orders, (SAVE, number, None))
        else:
            self._sent_unsaved.append(number)
            self._send_completion(orders, number, completion)
        yield_gil()

    def _send_completion(self, orders: Connection, number: int, completion: Completion) -> None:
        """Send a completion; drop and report it if it cannot be pickled."""
        try:
            self._send(orders, (COMPLETION, number, completion))
        except PicklingError as error:
            self._sent_unsaved.pop()
            self.dropped += 1
            self._on_message({TROUBLE: str(error)})

    def _send(self, orders: Connection, order: Order) -> None:
        """Send an order. Raises :class:`PicklingError` if it cannot be pickled."""
        try:
            data = ForkingPickler.dumps(order)
        except Exception as error:  # evidence of another package's model may raise anything
            # The class only: a message may repeat the evidence.
            raise PicklingError(
                "a completion was dropped: the evidence of its model cannot be pickled "
                f"({type(error).__name__})"
            ) from error
        # The death of a worker is noticed at its other pipe.
        with suppress(BrokenPipeError):
            orders.send_bytes(data)

    def _receive(self, message: dict[str, Any]) -> None:
        self._silent = 0
        if ALIVE in message:
            return
        while self._sent_unsaved and self._sent_unsaved[0] <= message.get(LEARNED, 0):
            self._sent_unsaved.popleft()
        self._on_message(message)

    def _end(self) -> None:
        self._close_pipes()
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.lost += len(self._sent_unsaved)
        self._sent_unsaved.clear()

    def _close_pipes(self) -> None:
        for pipe in self._pipes or ():
            pipe.close()
        self._pipes = None
