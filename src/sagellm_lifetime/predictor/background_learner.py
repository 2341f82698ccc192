"""Online learning in a separate process, which does not block an engine.

    update ──► scores, seconds per token, recent completions, conversations: at once
       └─────► completion ──► supervisor thread ──► worker: tables, calibration, gradient steps
    predictor ◄── swapped in, one step ◄── supervisor thread ◄── checkpoint, every few seconds

The worker returns its state as a checkpoint. So the engine always uses the state from which a
restart would begin, and the state has one form only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import TIMEOUT_MAX, Condition
from typing import Any, Final, Self

from sagellm_lifetime.core import forking
from sagellm_lifetime.core.arrays import read_arrays
from sagellm_lifetime.core.errors import CheckpointError, RequestError, one_line, reason_of, shown
from sagellm_lifetime.core.values import as_option, as_seconds_option
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.checkpoint_file import MODEL, as_path, is_checkpoint
from sagellm_lifetime.predictor.checkpoint_lock import claim, release
from sagellm_lifetime.predictor.increment import BASE, OWN, beside, can_continue
from sagellm_lifetime.predictor.merging import mismatch
from sagellm_lifetime.predictor.records import Completion
from sagellm_lifetime.predictor.registry import is_registered
from sagellm_lifetime.predictor.supervisor import Supervisor, Waiting
from sagellm_lifetime.predictor.worker import FLEET_COUNTS, LEARNED, TROUBLE, Task

_MOST_WAITING: Final = 10**7
_FLEET_EVERY_S: Final = 30.0
_PATIENCE_S: Final = 10.0
"""Seconds to wait until the previous writer of the checkpoint has ended."""
_FORKED: Final = (
    "this process was forked from the one that learns: the predictor learns nothing from updates "
    "here; use a clone() of it"
)


@dataclass(frozen=True)
class Fleet:
    """The other replicas with which a learner shares what it learns.

    Attributes:
        place: their store: ``redis://HOST:PORT/DB``, or a folder that all of them see.
        every: least number of seconds between two rounds in which states are exchanged.

    Example:
        >>> Fleet("redis://cache:6379/0", every=10.0).every
        10.0
    """

    place: str = field(repr=False)
    every: float = _FLEET_EVERY_S


class BackgroundLearner:
    """Learner of a predictor in another process, from construction until :meth:`stop`.

    The predictor keeps all its methods; its :meth:`~Predictor.update` takes about ten microseconds
    whatever the model, and ``get_metrics`` counts the completions by their state (as
    ``lessons_…``).

    The learner belongs to the process that made it. In a forked child the predictor answers as
    before, but completions are dropped and counted, with one warning; a :meth:`Predictor.clone`
    learns there.

    Args:
        predictor: a predictor of the registry, fitted or not.
        path: checkpoint directory, used by this learner only. If it holds a checkpoint, the
            predictor continues from it. ``None`` keeps the state in a temporary folder, which is
            removed at the end.
        every: least number of seconds between two checkpoints; more where writing one takes long.
        most_waiting: maximum number of completions that wait to be sent; beyond it the oldest is
            dropped.
        fleet: share what is learned with other replicas; ``None`` to learn alone. It takes the
            fleet's secret if the predictor is unused. An unreachable store changes nothing.
        keeps_increment: True to learn what comes after the present state also apart from it, beside
            ``path``, so that the states of several learners that started from it can be merged.
            Ignored without a ``path`` and in a fleet, which does so anyway.

    Raises:
        CheckpointError: the directory cannot be written, another process learns into it, or it
            holds a checkpoint of another predictor.
        RequestError: the predictor learns in another process already, or is not in the registry;
            or an argument of another type, or out of its range.

    Example:
        >>> from sagellm_lifetime import BackgroundLearner, PredictionRequest, create_predictor
        >>> predictor = create_predictor("survival")
        >>> with BackgroundLearner(predictor) as learner:
        ...     result = predictor.predict(PredictionRequest(1, [], 0, 512))
        ...     predictor.update(1, 80, 1.6)
        ...     learner.drain(timeout=60.0)
        True
        >>> predictor.lessons
        1
    """

    def __init__(
        self,
        predictor: Predictor,
        path: str | Path | None = None,
        *,
        every: float = 5.0,
        most_waiting: int = 2048,
        fleet: Fleet | None = None,
        keeps_increment: bool = False,
    ) -> None:
        if not isinstance(predictor, Predictor):
            raise RequestError(f"only a predictor can learn in the background: {shown(predictor)}")
        every = as_seconds_option("every", every)
        most_waiting = as_option("most_waiting", most_waiting, 1, _MOST_WAITING)
        directory = None if path is None else as_path(path)
        if predictor.learns_elsewhere:
            raise RequestError("the predictor learns in another process already")
        if not is_registered(predictor):
            raise RequestError(
                f"{type(predictor).__name__} is not in the registry, and the learning process "
                "makes its predictor by name"
            )
        self.predictor = predictor
        self._folder = tempfile.mkdtemp(prefix="sagellm-lifetime-") if directory is None else None
        self.path = (directory or Path(str(self._folder), "state")).absolute()
        self._most_waiting = most_waiting
        self._waiting: Waiting = deque()
        self._taken = self._dropped = self._swaps = 0
        self._learned = -1
        self._trouble: str | None = None
        self._fleet: dict[str, Any] = {}
        self._swapped = Condition()
        self._is_forked = self._has_warned = False
        try:
            self._claim = claim(self.path, _PATIENCE_S)
        except BaseException:
            self._remove_folder()
            raise
        try:
            if fleet is not None:
                self._join(fleet)
            keeps_increment &= directory is not None and fleet is None
            if is_checkpoint(self.path):
                self._resume()
                keeps_increment = keeps_increment and can_continue(self.path, predictor)
            elif keeps_increment:
                self._save_base()
            elif predictor.is_unused and fleet is None:
                predictor.draw_secret()
            predictor.save(self.path)  # with the options of this run
            predictor.model.prepare()
        except BaseException:
            self._close()
            raise
        task = Task(
            str(self.path),
            every,
            os.getpid(),
            private=directory is None,
            fleet="" if fleet is None else fleet.place,
            fleet_every=_FLEET_EVERY_S if fleet is None else fleet.every,
            keeps_increment=keeps_increment,
        )
        self._supervisor = Supervisor(task, self._waiting, self._claim, self._on_message)
        forking.register(self)
        self._supervisor.start()
        predictor.hand_over_to(self)

    def _fork_lock(self) -> None:
        """Return ``None``: the predictor's lock guards the state that the engine's thread uses."""

    def _after_fork(self, *, whole: bool) -> None:
        self._is_forked = True
        self._swapped = Condition()
        self._dropped += self._supervisor.abandon()
        self._trouble = _FORKED

    def _join(self, fleet: Fleet) -> None:
        """Take the fleet's secret if the predictor is unused, and save what it starts from."""
        from sagellm_lifetime.predictor.fleet.replica import FLEET, fleet_keys
        from sagellm_lifetime.predictor.fleet.store import check_place

        check_place(fleet.place)
        if self.predictor.is_unused:
            # The secret of an earlier run, if the store is away now.
            earlier = [self.path, beside(self.path, BASE)]
            self.predictor.use_keys(fleet_keys(fleet.place, earlier))
        self.predictor.summary = {**self.predictor.summary, FLEET: True}
        self.predictor.save(beside(self.path, BASE))

    def _save_base(self) -> None:
        """Save what is started from, without the increment of any other start."""
        shutil.rmtree(beside(self.path, OWN), ignore_errors=True)
        self.predictor.save(beside(self.path, BASE))

    def _resume(self) -> None:
        """Restore the state that an earlier run has learned.

        Raises:
            CheckpointError: the checkpoint is of another predictor, or of other options.
        """
        learned, mine = load_predictor(self.path), self.predictor
        problem = mismatch(learned, mine)
        if problem:
            raise CheckpointError(
                f"{self.path}: {problem}; choose another directory, or remove it to start anew"
            )
        mine.restore(learned.state())
        mine.summary = dict(learned.summary)

    # -- on the engine's thread --------------------------------------------------------------

    def take(self, completion: Completion) -> None:
        """Queue a completion; the predictor's ``update`` calls this, under its lock."""
        self._taken += 1
        if self._supervisor.is_stopping:
            self._dropped += 1
            if self._is_forked and not self._has_warned:
                self._has_warned = True
                warnings.warn(_FORKED, RuntimeWarning, stacklevel=3)
            return
        self._queue(completion)

    def save_soon(self) -> None:
        """Ask for a checkpoint of what was taken so far, without waiting for the next one."""
        if self._supervisor.unsaved and not self._supervisor.is_stopping:
            self._queue(None)

    def _queue(self, completion: Completion | None) -> None:
        waiting = self._waiting
        if len(waiting) >= self._most_waiting:
            # The supervisor removes from the same end and may empty the queue in between.
            with suppress(IndexError):
                self._dropped += waiting.popleft()[1] is not None
        waiting.append((self._taken, completion))

    def counts(self) -> dict[str, Any]:
        """Return the numbers of completions by state, and the state of the worker.

        A completion is in the state in use, on the way, dropped (the queue was full, learning had
        been stopped, or its evidence cannot be pickled), or lost with a worker that died before it
        had saved.
        """
        supervisor = self._supervisor
        return {
            "lessons_taken": self._taken,
            "lessons_on_the_way": supervisor.unsaved,
            "lessons_dropped": self._dropped + supervisor.dropped,
            "lessons_lost": supervisor.lost,
            "learner_running": supervisor.is_working,
            "learner_restarts": supervisor.restarts,
            "learner_swaps": self._swaps,
            "learner_trouble": self._trouble,
            **self._fleet,
        }

    # -- on the supervisor's thread -------------------------------------------------------------

    def _on_message(self, message: dict[str, Any]) -> None:
        if FLEET_COUNTS in message:
            self._fleet = message[FLEET_COUNTS]
            return
        self._trouble = message.get(TROUBLE)
        if LEARNED not in message:
            return
        try:
            arrays = read_arrays(self.path / MODEL)
            yield_gil()
            # Slow work is done without the lock; the swap under it is one assignment.
            new = self.predictor.successor(arrays)
            yield_gil()
            replaced = self.predictor.swap(new, learner=self)
        except Exception as error:  # noqa: BLE001 - a model of another package may raise anything
            self._trouble = one_line(f"{self.path}: cannot be read ({reason_of(error)})")
            return
        with self._swapped:
            self._swaps += 1
            self._learned = message[LEARNED]
            self._swapped.notify_all()
        try:
            replaced.model.release()
        except Exception as error:  # noqa: BLE001 - as above
            self._trouble = one_line(
                f"model {replaced.model.name!r} cannot be released ({reason_of(error)})"
            )

    # -- from any other thread ---------------------------------------------------------------

    def drain(self, timeout: float) -> bool:
        """Wait until all queued completions are learned and swapped in.

        For tests, and for programs that read the state; an engine need not wait.

        Args:
            timeout: longest time to wait, seconds.

        Returns:
            True if all are swapped in, False after the timeout.

        Raises:
            RequestError: ``timeout`` is no number of seconds, 0 or more.
        """
        timeout = as_seconds_option("timeout", timeout)
        if self._is_forked:
            return False
        with self.predictor.lock:
            target = self._taken
            self._queue(None)
        with self._swapped:
            return self._swapped.wait_for(
                lambda: self._learned >= target, min(timeout, TIMEOUT_MAX)
            )

    def stop(self, timeout: float = 2.0) -> None:
        """End the worker process, after it has saved its state and that has been swapped in.

        Later completions are dropped and counted, since learning them inline would block the
        engine; a :meth:`Predictor.clone` learns by itself again.

        Args:
            timeout: seconds after which the process is killed. Then the state is that of the last
                checkpoint.

        Raises:
            RequestError: ``timeout`` is no number of seconds, 0 or more.
        """
        timeout = as_seconds_option("timeout", timeout)
        if not self._supervisor.is_stopping:
            self._supervisor.stop(timeout)
            with self.predictor.lock:
                self._dropped += sum(completion is not None for _, completion in self._waiting)
                self._waiting.clear()
            self._close()

    def _close(self) -> None:
        release(self._claim)
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def __getattr__(name: str) -> Any:
    if name == "LearningElsewhere":
        warnings.warn(
            "LearningElsewhere is now BackgroundLearner; the old name goes in the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return BackgroundLearner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
