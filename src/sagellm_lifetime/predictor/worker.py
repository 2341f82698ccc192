"""The process that learns: a replica of a predictor, completions in, checkpoints out.

Started by :mod:`~sagellm_lifetime.predictor.supervisor`. Orders come on a pipe, and
:data:`LEARNED` and :data:`TROUBLE` go back on another. It ends when the first does: when its parent
closes the pipe, or is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.records import Completion

COMPLETION: Final = "completion"
"""Learn a completion. It is pickled on the way, over a pipe that only two processes of one program
have; files never hold a pickle."""
SAVE: Final = "save"
"""Write the checkpoint now."""
END: Final = "end"
"""Nothing more will come. A pipe that ends without it says that the parent was killed."""
Order = tuple[str, int, Completion | None]
"""What to do, and the number of the completion, or of the last one before it."""
LEARNED: Final = "learned"
"""Number of the last completion that is in the checkpoint."""
TROUBLE: Final = "trouble"
"""Why the checkpoint could not be written."""
_WAKE_S: Final = 0.5
"""How often it looks whether its parent is there: a fork of the parent may keep the pipe open."""
_SHARE: Final = 0.05
"""Share of its time that it spends on checkpoints, at most."""
_NICENESS: Final = 10


@dataclass(frozen=True)
class Task:
    """What a worker is started with.

    Attributes:
        path: the checkpoint it starts from and writes.
        every: seconds between two checkpoints, at least.
        parent: process id of who started it.
        private: whether nobody needs the folder around ``path`` once the parent is gone.
        inbox, outbox: file descriptors of the pipes for orders and for messages.
    """

    path: str
    every: float
    parent: int
    private: bool
    inbox: int = -1
    outbox: int = -1

    def text(self) -> str:
        """Return the task as an argument of a command line."""
        return json.dumps(asdict(self))


class Worker:
    """Learn completions in the order in which they come.

    Args:
        task: what it was started with.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._path = Path(task.path)
        self._orders = Connection(task.inbox, writable=False)
        self._messages = Connection(task.outbox, readable=False)
        try:
            self._replica = load_predictor(self._path)
        except CheckpointError as error:
            self._report(TROUBLE, str(error))
            raise
        self._number = self._saved = 0
        self._next_save = time.monotonic() + task.every
        self._told_to_end = self._is_done = False

    def end(self, *_: Any) -> None:
        """Learn what was sent, save, and end; for use as a signal handler."""
        self._told_to_end = True

    def run(self) -> None:
        """Learn until nothing more comes."""
        for order in self._received():
            if order is not None:
                self._handle(*order)
            elif self._told_to_end or self._is_orphan():
                break  # and not before all that was sent is learned
            if self._number > self._saved and time.monotonic() >= self._next_save:
                self._save()
        if self._task.private and not (self._is_done or self._told_to_end):
            shutil.rmtree(self._path.parent, ignore_errors=True)
        elif self._number > self._saved:
            self._save()

    def _wait_s(self) -> float:
        if self._told_to_end:
            return 0.0
        if self._number == self._saved:
            return _WAKE_S
        return min(max(self._next_save - time.monotonic(), 0.0), _WAKE_S)

    def _received(self) -> Iterator[Order | None]:
        """Yield orders as they come, and None where none comes for a while."""
        while True:
            if not self._orders.poll(self._wait_s()):
                yield None
                continue
            try:
                order: Order = self._orders.recv()
            except (EOFError, OSError):  # at the end, or in the middle of an order
                return
            yield order

    def _handle(self, what: str, number: int, completion: Completion | None) -> None:
        self._number = number
        if completion is not None:
            # One that cannot be learned ends the process, which is then restarted from the last
            # checkpoint: what is half learned is no state to go on from.
            self._replica.learn(completion)
        elif what == SAVE:
            self._save()
        else:
            self._is_done = True

    def _save(self) -> None:
        start = time.monotonic()
        try:
            self._replica.save(self._path)
        except CheckpointError as error:
            self._report(TROUBLE, str(error))
        else:
            self._saved = self._number
            self._report(LEARNED, self._number)
        took = time.monotonic() - start
        self._next_save = time.monotonic() + max(self._task.every, took / _SHARE)

    def _report(self, what: str, value: Any) -> None:
        # A parent that was killed reads nothing; the worker saves all the same.
        with suppress(BrokenPipeError):
            self._messages.send({what: value})

    def _is_orphan(self) -> bool:
        return os.getppid() != self._task.parent


def main() -> None:
    """Run a worker in a process of its own; the task is its last argument."""
    # Engines stop with Ctrl-C, which reaches the whole group: the worker ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    worker = Worker(Task(**json.loads(sys.argv[-1])))
    signal.signal(signal.SIGTERM, worker.end)
    worker.run()
    # All is written. Taking PyTorch down in good order takes more than a second.
    os._exit(0)
