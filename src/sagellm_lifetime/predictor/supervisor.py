"""The thread between a predictor and the process that learns for it.

It sends lessons, hears what was learned, and starts the process anew when it dies. It shares the
GIL with an engine, so it never keeps it for long: one lesson is a tenth of a millisecond, and after
each it takes a breath.
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
from sagellm_lifetime.predictor import worker as pupil
from sagellm_lifetime.predictor.frames import Frame, packed, ready
from sagellm_lifetime.predictor.records import Completion
from sagellm_lifetime.predictor.worker import END, LEARNED, LESSON, SAVE, TROUBLE, Task

_TICK_S: Final = 0.05
"""How often an idle courier looks for lessons: to wake it would cost the engine's thread more."""
_PIECE: Final = 1 << 16
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_STEADY_S: Final = 60.0
"""A process that lived so long died of something new: the pauses start from the shortest again."""

Waiting = deque[tuple[int, Completion | None]]
"""Numbered lessons; a number without one asks for a checkpoint."""


class Courier(Thread):
    """Runs until :meth:`stop`.

    Args:
        task: what the process is started with.
        waiting: lessons to be sent, oldest first; another thread appends to it.
        claim: file descriptor that the process inherits.
        heard: called with each thing the process says.
    """

    def __init__(
        self, task: Task, waiting: Waiting, claim: int, heard: Callable[[dict[str, Any]], None]
    ) -> None:
        super().__init__(name="lifetime-courier", daemon=True)
        self._task, self._waiting, self._claim, self._heard = task, waiting, claim, heard
        self._stopping = Event()
        self._hang_up_at = self._kill_at = float("inf")
        self._sent = 0
        self._unsaved: deque[int] = deque()
        self._unheard = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = self.lost = 0

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to."""
        return self._stopping.is_set()

    @property
    def is_teaching(self) -> bool:
        """Whether a process is there that learns."""
        return self.process is not None and self.process.poll() is None

    @property
    def on_the_way(self) -> int:
        """Lessons that wait, or were sent and are not saved."""
        return len(self._waiting) + len(self._unsaved)

    def stop(self, timeout: float) -> None:
        """End the process: gently in the first half of ``timeout`` seconds, surely after it."""
        self._hang_up_at = time.monotonic() + timeout / 2
        self._kill_at = time.monotonic() + timeout
        self._stopping.set()
        self.join()

    def abandon(self) -> int:
        """Let go of the process, in a forked child, where this thread does not run.

        Returns:
            How many lessons were on the way; the process learns them for the parent alone.
        """
        # The lock of the old one may have been held by the thread.
        self._stopping = Event()
        self._stopping.set()
        count = sum(lesson is not None for _, lesson in self._waiting) + len(self._unsaved)
        self._waiting.clear()
        self._unsaved.clear()
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process.poll()  # nobody here waits for it
        return count

    def run(self) -> None:
        """Keep a process running, with growing pauses where it dies at once."""
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self.process = self._start()
            except OSError as error:
                self._heard({TROUBLE: f"the learning process cannot be started ({error})"})
            else:
                try:
                    self._attend(self.process)
                finally:
                    self._bury(self.process)
            if self._stopping.is_set():
                return
            self.restarts += 1
            # The next one says when it is there; until then nobody knows what it knows.
            self._waiting.appendleft((self._sent, None))
            if time.monotonic() - started > _STEADY_S:
                pause = _FIRST_PAUSE_S
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command(pupil.__name__, self._task.text()),
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

    def _attend(self, process: subprocess.Popen[bytes]) -> None:
        """Send and listen until the process ends."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._unheard, unsent = b"", memoryview(b"")
        while True:
            open_ended = not process.stdin.closed
            busy = open_ended and bool(unsent or self._waiting)
            inbox, outbox = process.stdout.fileno(), process.stdin.fileno() if busy else None
            hears, takes = ready(inbox, outbox, _TICK_S)
            if hears and not self._listen(inbox):
                return
            if takes and outbox is not None:
                unsent = self._send(outbox, unsent or self._next())
            now = time.monotonic()
            done = self._stopping.is_set() and not unsent and not self._waiting
            if open_ended and ((done and self._dismiss(process)) or now > self._hang_up_at):
                process.stdin.close()
            if now > self._kill_at:
                process.kill()

    def _next(self) -> memoryview:
        try:
            number, lesson = self._waiting.popleft()
        except IndexError:  # dropped a moment ago, to make room
            return memoryview(b"")
        self._sent = number
        if lesson is None:
            return memoryview(packed(Frame(SAVE, number, b"")))
        self._unsaved.append(number)
        body = pickle.dumps(lesson, pickle.HIGHEST_PROTOCOL)
        return memoryview(packed(Frame(LESSON, number, body)))

    def _send(self, pipe: int, data: memoryview) -> memoryview:
        """What could not be written yet."""
        # One that has died takes nothing; that it has is heard on the other pipe.
        with suppress(BrokenPipeError, BlockingIOError):
            data = data[os.write(pipe, data) :]
        yield_gil()
        return data

    def _dismiss(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it could be told that this is all."""
        assert process.stdin is not None
        try:
            os.write(process.stdin.fileno(), packed(Frame(END, self._sent, b"")))
        except BlockingIOError:
            return False  # the pipe is full: again in a moment
        except BrokenPipeError:
            pass  # it has died, which is heard on the other pipe
        return True

    def _listen(self, pipe: int) -> bool:
        """Whether the process is still there."""
        said = os.read(pipe, _PIECE)
        *lines, self._unheard = (self._unheard + said).split(b"\n")
        found: dict[str, Any] = {}
        for line in lines:
            found |= json.loads(line)  # of several checkpoints only the newest is there
        while self._unsaved and self._unsaved[0] <= found.get(LEARNED, 0):
            self._unsaved.popleft()
        if found:
            self._heard(found)
        return bool(said)

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.kill()
        process.wait()
        self.lost += len(self._unsaved)
        self._unsaved.clear()
