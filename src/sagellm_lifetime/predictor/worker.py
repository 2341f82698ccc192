"""Worker process that learns: a replica of a predictor, completions in, checkpoints out.

Started by :mod:`~sagellm_lifetime.predictor.supervisor`. Orders arrive on one pipe, and the
messages :data:`LEARNED`, :data:`ALIVE` and :data:`TROUBLE` are sent on another. The process ends
when the pipe of orders is closed: by its parent, or because the parent was killed.
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
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.core.errors import CheckpointError, LifetimeError
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.records import Completion

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.fleet.replica import Replica as FleetReplica

COMPLETION: Final = "completion"
"""Order to learn a completion. It is pickled, on a private pipe between two processes of one
program; files never hold a pickle."""
SAVE: Final = "save"
"""Order to write the checkpoint now."""
END: Final = "end"
"""Last order. If the pipe ends without it, the parent was killed."""
Order = tuple[str, int, Completion | None]
"""Name of the order, number of its completion (or of the last one before it), and completion."""
LEARNED: Final = "learned"
"""Message with the number of the last completion that is in the checkpoint."""
ALIVE: Final = "alive"
"""Message with the number of the last completion learned, every few seconds while it works."""
TROUBLE: Final = "trouble"
"""Message with the reason why the checkpoint could not be written."""
FLEET_COUNTS: Final = "fleet"
"""Message with the counts of the fleet, by name."""
FLEET_VARIABLE: Final = "SAGELLM_LIFETIME_FLEET"
"""Environment variable with the place of the store, for the process alone."""
BASE, OWN = ".base", ".own"
"""Suffixes of the directories beside the checkpoint that a replica of a fleet has: what it started
from, and what it learned by itself."""
_WAKE_S: Final = 0.5
"""Seconds between two checks of the parent: a fork of the parent may keep the pipe open."""
_BEAT_S: Final = 5.0
"""Least number of seconds between two messages that it is alive."""
_SHARE: Final = 0.05
"""Maximum share of the time that is spent on checkpoints."""
_NICENESS: Final = 10


@dataclass(frozen=True)
class Task:
    """Settings of a worker.

    Attributes:
        path: checkpoint directory that is loaded at the start and written later.
        every: least number of seconds between two checkpoints.
        parent: id of the parent process.
        private: True if the folder around ``path`` is temporary, and removed after the parent.
        fleet: place of the store of a fleet; empty for none. It may hold a password, so it is no
            part of the command line.
        fleet_every: least number of seconds between two rounds of the fleet.
        inbox: file descriptor of the pipe for orders.
        outbox: file descriptor of the pipe for messages.
    """

    path: str
    every: float
    parent: int
    private: bool
    fleet: str = field(default="", repr=False)
    fleet_every: float = 30.0
    inbox: int = -1
    outbox: int = -1

    def text(self) -> str:
        """Return the task as an argument of a command line, without the place of the store."""
        return json.dumps({**asdict(self), "fleet": ""})

    def environment(self) -> dict[str, str]:
        """Return the environment variables for the process."""
        return {FLEET_VARIABLE: self.fleet}

    @classmethod
    def received(cls, text: str) -> Task:
        """Return the task of :meth:`text` and :meth:`environment`, in the process."""
        return cls(**{**json.loads(text), "fleet": os.environ.get(FLEET_VARIABLE, "")})


def beside(path: Path, suffix: str) -> Path:
    """Return the directory beside a checkpoint with a suffix to its name."""
    return path.with_name(path.name + suffix)


class Worker:
    """Learner of completions, in the order of their arrival.

    Args:
        task: settings.

    Raises:
        LifetimeError: the checkpoint cannot be loaded, or the fleet's store not be used; the parent
            gets a message.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._path = Path(task.path)
        self._orders = Connection(task.inbox, writable=False)
        self._messages = Connection(task.outbox, readable=False)
        try:
            self._replica = load_predictor(self._path)
            self._fleet = self._joined()
        except LifetimeError as error:
            self._report(TROUBLE, str(error))
            raise
        self._number = self._saved = 0
        self._next_save = time.monotonic() + task.every
        self._next_beat = 0.0
        self._is_ending = self._is_done = False
        self._has_news = False
        """True if the fleet has changed the replica since it was saved."""

    def _joined(self) -> FleetReplica | None:
        """Return the replica of the fleet, ``None`` without a fleet."""
        if not self._task.fleet:
            return None
        from sagellm_lifetime.predictor.fleet.replica import Replica

        base = load_predictor(beside(self._path, BASE))
        own = beside(self._path, OWN)
        return Replica(self._task.fleet, base, own, self._task.fleet_every)

    def end(self, *_: Any) -> None:
        """Make :meth:`run` learn the orders already sent, save, and end; a signal handler."""
        self._is_ending = True

    def run(self) -> None:
        """Handle orders until the pipe ends or :meth:`end` was called."""
        self._meet_fleet()
        for order in self._received():
            self._beat()
            if order is not None:
                self._handle(*order)
            elif self._is_ending or self._is_orphan():
                break  # no order is waiting any more
            self._meet_fleet()
            is_new = self._has_news or self._number > self._saved
            if is_new and time.monotonic() >= self._next_save:
                self._save()
        is_gone = self._task.private and not (self._is_done or self._is_ending)
        if not is_gone and (self._has_news or self._number > self._saved):
            self._save()
        if self._fleet is not None:
            self._fleet.leave()
        if is_gone:
            shutil.rmtree(self._path.parent, ignore_errors=True)

    def _beat(self) -> None:
        """Tell the parent now and then that this process neither hangs nor is stopped."""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + _BEAT_S
            self._report(ALIVE, self._number)

    def _meet_fleet(self) -> None:
        """Exchange with the fleet if it is time, and report its counts."""
        fleet = self._fleet
        if fleet is None or not fleet.is_due:
            return
        if fleet.exchange(self._replica):
            self._has_news = True
        self._report(FLEET_COUNTS, fleet.counts.values())

    def _wait_s(self) -> float:
        if self._is_ending:
            return 0.0
        if self._number == self._saved:
            return _WAKE_S
        return min(max(self._next_save - time.monotonic(), 0.0), _WAKE_S)

    def _received(self) -> Iterator[Order | None]:
        """Yield orders as they arrive, and None when none arrived for :data:`_WAKE_S` or less."""
        while True:
            if not self._orders.poll(self._wait_s()):
                yield None
                continue
            try:
                order: Order = self._orders.recv()
            except (EOFError, OSError):  # at the end, or in the middle of an order
                return
            yield order

    def _handle(self, name: str, number: int, completion: Completion | None) -> None:
        self._number = number
        if completion is not None:
            # An error ends the process, which is then restarted from the last checkpoint, since
            # a completion may be half learned.
            self._replica.learn(completion)
            if self._fleet is not None:
                self._fleet.learn(completion)
        elif name == SAVE:
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
            self._saved, self._has_news = self._number, False
            self._report(LEARNED, self._number)
        duration_s = time.monotonic() - start
        self._next_save = time.monotonic() + max(self._task.every, duration_s / _SHARE)

    def _report(self, name: str, value: Any) -> None:
        # If the parent was killed, the worker still saves.
        with suppress(BrokenPipeError):
            self._messages.send({name: value})

    def _is_orphan(self) -> bool:
        return os.getppid() != self._task.parent


def main() -> None:
    """Run a worker in a process of its own; the task is its last argument."""
    # Ctrl-C at an engine reaches the whole group, but the worker ends with its pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    worker = Worker(Task.received(sys.argv[-1]))
    signal.signal(signal.SIGTERM, worker.end)
    worker.run()
    # Everything is saved, and an orderly exit of PyTorch takes more than a second.
    os._exit(0)
