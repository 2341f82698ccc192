"""The thread between a predictor and the worker process that learns for it.

It sends completions, receives what was learned, and restarts the worker when it dies. It shares the
GIL with an engine, so it never keeps it for long: one completion is a tenth of a millisecond, and
after each it lets the other threads run.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Final

from sagellm_lifetime.core.child_process import command
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.predictor import worker
from sagellm_lifetime.predictor.frames import Frame, packed, ready
from sagellm_lifetime.predictor.records import Completion
from sagellm_lifetime.predictor.worker import COMPLETION, END, LEARNED, SAVE, TROUBLE, Task

_TICK_S: Final = 0.05
"""How often an idle supervisor looks for completions: to wake it would cost the engine more."""
_PIECE: Final = 1 << 16
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_STEADY_S: Final = 60.0
"""A worker that lived so long died of something new: the pauses start from the shortest again."""

Waiting = deque[tuple[int, Completion | None]]
"""Numbered completions; a number without one asks for a checkpoint."""


class Supervisor(Thread):
    """Keep a worker running and fed until :meth:`stop`.

    Args:
        task: what the worker is started with.
        waiting: completions to be sent, oldest first; another thread appends to it.
        claim: file descriptor that the worker inherits.
        on_message: called with each message of the worker.
    """

    def __init__(
        self, task: Task, waiting: Waiting, claim: int, on_message: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(name="lifetime-supervisor", daemon=True)
        self._task, self._waiting, self._claim, self._on_message = (
            task,
            waiting,
            claim,
            on_message,
        )
        self._stopping = Event()
        self._close_at = self._kill_at = float("inf")
        self._sent = 0
        self._sent_unsaved: deque[int] = deque()
        self._unread = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = self.lost = 0

    @property
    def is_stopping(self) -> bool:
        """Return True once it was told to stop."""
        return self._stopping.is_set()

    @property
    def is_working(self) -> bool:
        """Return True while a worker runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def unsaved(self) -> int:
        """Return how many completions wait, or were sent and are not saved."""
        return len(self._waiting) + len(self._sent_unsaved)

    def stop(self, timeout: float) -> None:
        """End the worker: by request in the first half of ``timeout`` seconds, then by force."""
        self._close_at = time.monotonic() + timeout / 2
        self._kill_at = time.monotonic() + timeout
        self._stopping.set()
        self.join()

    def abandon(self) -> int:
        """Close the worker's pipes in a forked child, where this thread does not run.

        Returns:
            How many completions were on the way; the worker learns them for the parent alone.
        """
        # The lock of the old one may have been held by the thread.
        self._stopping = Event()
        self._stopping.set()
        count = sum(each is not None for _, each in self._waiting) + len(self._sent_unsaved)
        self._waiting.clear()
        self._sent_unsaved.clear()
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process.poll()  # nobody here waits for it
        return count

    def run(self) -> None:
        """Keep a worker running, with growing pauses where it dies at once."""
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self.process = self._start()
            except OSError as error:
                self._on_message({TROUBLE: f"the learning process cannot be started ({error})"})
            else:
                try:
                    self._serve(self.process)
                finally:
                    self._end(self.process)
            if self._stopping.is_set():
                return
            self.restarts += 1
            # Its state is unknown until its first message, for which a checkpoint is asked.
            self._waiting.appendleft((self._sent, None))
            if time.monotonic() - started > _STEADY_S:
                pause = _FIRST_PAUSE_S
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command(worker.__name__, self._task.text()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._claim],
            # Signals to the engine's group must not cut it short: it ends when the pipe does.
            start_new_session=True,
            # It learns on one core and never on the engine's GPU.
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        """Send and receive until the worker ends."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._unread, unsent = b"", memoryview(b"")
        while True:
            open_ended = not process.stdin.closed
            busy = open_ended and bool(unsent or self._waiting)
            inbox, outbox = process.stdout.fileno(), process.stdin.fileno() if busy else None
            can_read, can_write = ready(inbox, outbox, _TICK_S)
            if can_read and not self._receive(inbox):
                return
            if can_write and outbox is not None:
                unsent = self._send(outbox, unsent or self._next())
            now = time.monotonic()
            done = self._stopping.is_set() and not unsent and not self._waiting
            if open_ended and ((done and self._send_end(process)) or now > self._close_at):
                process.stdin.close()
            if now > self._kill_at:
                process.kill()

    def _next(self) -> memoryview:
        try:
            number, completion = self._waiting.popleft()
        except IndexError:  # dropped a moment ago, to make room
            return memoryview(b"")
        self._sent = number
        if completion is None:
            return memoryview(packed(Frame(SAVE, number, b"")))
        self._sent_unsaved.append(number)
        body = pickle.dumps(completion, pickle.HIGHEST_PROTOCOL)
        return memoryview(packed(Frame(COMPLETION, number, body)))

    def _send(self, pipe: int, data: memoryview) -> memoryview:
        """Write what the pipe takes; return the rest."""
        # A worker that has died takes nothing; its other pipe ends.
        with suppress(BrokenPipeError, BlockingIOError):
            data = data[os.write(pipe, data) :]
        yield_gil()
        return data

    def _send_end(self, process: subprocess.Popen[bytes]) -> bool:
        """Tell the worker that nothing more comes; return False where its pipe is full."""
        assert process.stdin is not None
        try:
            os.write(process.stdin.fileno(), packed(Frame(END, self._sent, b"")))
        except BlockingIOError:
            return False  # the pipe is full: again in a moment
        except BrokenPipeError:
            pass  # it has died, and its other pipe ends
        return True

    def _receive(self, pipe: int) -> bool:
        """Pass on what the worker says; return False at the end of its pipe."""
        data = os.read(pipe, _PIECE)
        *lines, self._unread = (self._unread + data).split(b"\n")
        message: dict[str, Any] = {}
        for line in lines:
            message |= json.loads(line)  # of several checkpoints only the newest is there
        while self._sent_unsaved and self._sent_unsaved[0] <= message.get(LEARNED, 0):
            self._sent_unsaved.popleft()
        if message:
            self._on_message(message)
        return bool(data)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.kill()
        process.wait()
        self.lost += len(self._sent_unsaved)
        self._sent_unsaved.clear()
