"""Online learning that never holds up an engine: it happens in a process of its own.

    update ──► scores, seconds per token, recent completions, conversations: at once
       └─────► completion ──► supervisor thread ──► worker: tables, calibration, gradient steps
    predictor ◄── swapped in, one step ◄── supervisor thread ◄── checkpoint, every few seconds

What comes back is the checkpoint itself. So what the engine uses is at any moment what a restart
would start from, and there is one form of the state, not two.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import deque
from contextlib import suppress
from pathlib import Path
from threading import TIMEOUT_MAX, Condition
from typing import Any, Final, Self

from sagellm_lifetime.core import forking
from sagellm_lifetime.core.arrays import read_arrays
from sagellm_lifetime.core.errors import CheckpointError, RequestError, shown
from sagellm_lifetime.core.values import as_option, as_seconds_option
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.checkpoint_file import MODEL, as_path, is_checkpoint
from sagellm_lifetime.predictor.checkpoint_lock import claim, release
from sagellm_lifetime.predictor.records import Completion
from sagellm_lifetime.predictor.registry import is_registered
from sagellm_lifetime.predictor.supervisor import Supervisor, Waiting
from sagellm_lifetime.predictor.worker import LEARNED, TROUBLE, Task

_MOST_WAITING: Final = 10**7
_PATIENCE_S: Final = 10.0
"""How long to wait for the last process that wrote the checkpoint to end."""
_FORKED: Final = (
    "this process was forked from the one that learns: what the predictor is told here teaches it "
    "nothing; use a clone() of it"
)
_RUN_OPTIONS: Final = ("seed", "capacity", "expire_after", "online", "epochs")
"""Options that may differ from those of the checkpoint: they do not shape what was learned."""


def mismatch(learned: Predictor, mine: Predictor) -> str:
    """Return why one cannot go on with what the other has learned; empty where it can."""
    if learned.name != mine.name:
        return f"holds a {learned.name!r} predictor, not {mine.name!r}"
    options = learned.options
    for option, value in mine.options.items():
        found = options.get(option)
        if option not in _RUN_OPTIONS and found != value:
            return f"learned with {option}={found!r}, not {value!r}"
    return ""


class BackgroundLearner:
    """Makes a predictor learn in another process, from now until :meth:`stop`.

    The predictor stays the object it is, with all its methods; its :meth:`~Predictor.update` takes
    some ten microseconds whatever there is to learn, and ``get_metrics`` counts what became of the
    completions (as ``lessons_…``).

    It belongs to the process that made it. In a forked child the predictor answers as before, but
    completions are dropped and counted, with one warning; a :meth:`Predictor.clone` learns there.

    Args:
        predictor: one of the registry, fitted or not.
        path: checkpoint directory, for this learner alone. Where it is one already, the predictor
            goes on from it. ``None`` keeps the state in a temporary place, gone at the end.
        every: seconds between two checkpoints, at least; more where writing one takes long.
        most_waiting: completions that wait to be sent, at most; then the oldest is dropped.

    Raises:
        CheckpointError: the place cannot be written, another process learns into it, or it holds
            a checkpoint of another predictor.
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
    ) -> None:
        if not isinstance(predictor, Predictor):
            raise RequestError(f"only a predictor can learn in the background: {shown(predictor)}")
        every = as_seconds_option("every", every)
        most_waiting = as_option("most_waiting", most_waiting, 1, _MOST_WAITING)
        given = None if path is None else as_path(path)
        if predictor.learns_elsewhere:
            raise RequestError("the predictor learns in another process already")
        if not is_registered(predictor):
            raise RequestError(
                f"{type(predictor).__name__} is not in the registry, and the learning process "
                "makes its predictor by name"
            )
        self.predictor = predictor
        self._folder = tempfile.mkdtemp(prefix="sagellm-lifetime-") if given is None else None
        self.path = (given or Path(str(self._folder), "state")).absolute()
        self._most_waiting = most_waiting
        self._waiting: Waiting = deque()
        self._taken = self._dropped = self._swaps = 0
        self._learned = -1
        self._trouble: str | None = None
        self._swapped = Condition()
        self._is_forked = self._has_warned = False
        try:
            self._claim = claim(self.path, _PATIENCE_S)
        except BaseException:
            self._remove_folder()
            raise
        try:
            if is_checkpoint(self.path):
                self._resume()
            predictor.save(self.path)  # with the options of this run
            predictor.model.prepare()
        except BaseException:
            self._close()
            raise
        task = Task(str(self.path), every, os.getpid(), private=given is None)
        self._supervisor = Supervisor(task, self._waiting, self._claim, self._on_message)
        forking.register(self)
        self._supervisor.start()
        predictor.hand_over_to(self)

    def _fork_lock(self) -> None:
        """Return ``None``: what the engine's thread changes is under the predictor's lock."""

    def _after_fork(self, *, whole: bool) -> None:
        self._is_forked = True
        self._swapped = Condition()
        self._dropped += self._supervisor.abandon()
        self._trouble = _FORKED

    def _resume(self) -> None:
        """Take over what the last run had learned."""
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

    def _queue(self, completion: Completion | None) -> None:
        waiting = self._waiting
        if len(waiting) >= self._most_waiting:
            # The supervisor takes from the same end: what it took is not dropped.
            with suppress(IndexError):
                self._dropped += waiting.popleft()[1] is not None
        waiting.append((self._taken, completion))

    def counts(self) -> dict[str, Any]:
        """Return what became of the completions.

        Each that was taken is in the state in use, on the way, dropped (for too many waited, or it
        came after the end), or lost with a process that died before it had saved.
        """
        supervisor = self._supervisor
        return {
            "lessons_taken": self._taken,
            "lessons_on_the_way": supervisor.unsaved,
            "lessons_dropped": self._dropped,
            "lessons_lost": supervisor.lost,
            "learner_running": supervisor.is_working,
            "learner_restarts": supervisor.restarts,
            "learner_swaps": self._swaps,
            "learner_trouble": self._trouble,
        }

    # -- on the supervisor's thread -------------------------------------------------------------

    def _on_message(self, message: dict[str, Any]) -> None:
        self._trouble = message.get(TROUBLE)
        if LEARNED not in message:
            return
        try:
            arrays = read_arrays(self.path / MODEL)
            yield_gil()
            # All that takes time is done off the lock; then the predictor has it in one step.
            new = self.predictor.successor(arrays)
            yield_gil()
            replaced = self.predictor.swap(new)
        except (OSError, ValueError) as error:
            self._trouble = f"{self.path}: cannot be read ({error})"
            return
        with self._swapped:
            self._swaps += 1
            self._learned = message[LEARNED]
            self._swapped.notify_all()
        replaced.model.release()

    # -- from any other thread ---------------------------------------------------------------

    def drain(self, timeout: float) -> bool:
        """Wait until the process runs, and all that was taken has been learned and swapped in.

        For tests, and for reading out; an engine has no reason to wait.

        Args:
            timeout: seconds to wait at most.

        Returns:
            True if that was achieved, False if the time is over.
        """
        timeout = as_seconds_option("timeout", timeout)
        if self._is_forked:
            return False
        with self.predictor.lock:
            wanted = self._taken
            self._queue(None)
        with self._swapped:
            return self._swapped.wait_for(
                lambda: self._learned >= wanted, min(timeout, TIMEOUT_MAX)
            )

    def stop(self, timeout: float = 2.0) -> None:
        """End the process; what it has learned by then is saved and swapped in.

        Completions that come later are dropped and counted, for an engine must not find itself
        taking gradient steps; a :meth:`Predictor.clone` learns by itself again.

        Args:
            timeout: seconds after which it is killed. Then the state is that of the last
                checkpoint.
        """
        timeout = as_seconds_option("timeout", timeout)
        if not self._supervisor.is_stopping:
            self._supervisor.stop(timeout)
            with self.predictor.lock:
                self._dropped += sum(each is not None for _, each in self._waiting)
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
