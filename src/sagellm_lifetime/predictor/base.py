"""What every predictor shares: the way of a lesson, and what is known of it all.

    completion → predictor → tracking joins it to what was known at predict time → learning

Beside what it says when it is asked (:class:`Predicting`) a predictor says what a completion
teaches (:meth:`Predictor._learn`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import SequenceId
from sagellm_lifetime.core.scores import Scores
from sagellm_lifetime.core.values import as_option, as_sequence_id
from sagellm_lifetime.predictor.checks import check_completion
from sagellm_lifetime.predictor.knowledge import knowledge, set_knowledge
from sagellm_lifetime.predictor.predicting import Predicting
from sagellm_lifetime.predictor.records import Completion, Elsewhere, Lesson

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.history.endings import CapReached
    from sagellm_lifetime.history.prequential import Clock

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""

_LARGEST_SEED = 2**63 - 1


class Predictor(Predicting):
    """Base of the predictors of this package; safe to call from several threads.

    Args:
        seed: seeds everything random; equal seeds and calls give equal answers.
        capacity: how many running sequences are tracked at most.
        expire_after: seconds after which a sequence that is never asked about is forgotten.

    Raises:
        RequestError: an option of another type, or out of its range.
    """

    name: ClassVar[str]
    # fmt: off
    _STAYS: ClassVar[frozenset[str]] = frozenset([
        "_options", "_lock", "_tracker", "_timing", "_scores", "_predict_calls", "_fitting",
        "_elsewhere", "summary",
    ])
    # fmt: on
    """Attributes that stay when what was learned in another process takes the place of the rest:
    who asks and what moves at once (:meth:`_note`)."""

    def __init__(
        self, *, seed: int = 0, capacity: int = 65_536, expire_after: float = 3600.0
    ) -> None:
        super().__init__(capacity, expire_after)
        self._options: dict[str, Any] = {
            "seed": as_option("seed", seed, 0, _LARGEST_SEED),
            "capacity": self._tracker.capacity,
            "expire_after": self._tracker.expire_after,
        }
        self._scores = Scores()
        self._fitting = False
        self._elsewhere: Elsewhere | None = None
        self.summary: dict[str, Any] = {}
        """What it was fitted on: rows, time span, columns; no content."""

    # -- what a predictor says ---------------------------------------------------------------

    @abstractmethod
    def _learn(self, completion: Completion) -> None:
        """Learn from one completion."""

    @abstractmethod
    def _fit(self, older: pl.DataFrame, newest: pl.DataFrame, progress: Progress | None) -> None:
        """Learn from the older part of a checked history, in time order, from scratch.

        ``newest`` will be replayed through ``predict`` and ``update`` afterwards; a network may
        use it to decide when to stop training.
        """

    @abstractmethod
    def _state(self) -> dict[str, np.ndarray]:
        """What the predictor itself learned, as arrays."""

    @abstractmethod
    def _restore(self, state: dict[str, np.ndarray]) -> None:
        """Replace what was learned with a :meth:`_state`, but for the instant parts."""

    def _restore_instant(self, state: dict[str, np.ndarray]) -> None:
        """Replace the parts that :meth:`_note` moves with those of a :meth:`_state`."""

    def _expect_swaps(self) -> None:
        """Make beforehand what takes time, for soon :func:`take_over` will be called often."""

    def _twin(self) -> Self:
        """One that knows nothing, to be restored and to take the place of this one."""
        return type(self)(**self._options)

    # -- learning ----------------------------------------------------------------------------

    def update(
        self,
        sequence_id: SequenceId,
        actual_length: int,
        actual_time: float,
        *,
        finish_reason: str = "stop",
    ) -> None:
        """Learn from a finished sequence.

        An id that was never predicted, was discarded, or was updated already is counted as
        ``unknown_updates`` and teaches nothing, for nothing is known about its request.

        Raises:
            RequestError: an id that is none, a negative, non-finite or absurd number, or an unknown
                finish reason. Then nothing has changed, and the sequence runs on.
        """
        sequence_id, length, seconds, finish_reason = check_completion(
            sequence_id, actual_length, actual_time, finish_reason
        )
        with self._lock:
            item = self._tracker.take(sequence_id)
            if item is None:
                self._scores.unknown_updates += 1
                return
            lesson = Lesson(
                item.evidence,
                item.asked,
                item.answers,
                self._tracker.caps.item(item.slot),
                item.estimate,
                item.confidence,
                length,
                seconds,
                finish_reason,
            )
            self._note(lesson)
            if self._elsewhere is None:
                self._take_in(lesson)
            else:
                self._elsewhere.take(lesson)

    def learn(self, lesson: Lesson) -> None:
        """Learn what another predictor with the same options was told by an ``update``.

        Raises:
            RequestError: something that is no lesson. Then nothing has changed.
        """
        if not isinstance(lesson, Lesson):
            raise RequestError(f"a lesson must be a Lesson: {shown(lesson)}")
        with self._lock:
            self._tracker.admitted += 1
            self._note(lesson)
            self._take_in(lesson)

    def _note(self, lesson: Lesson) -> None:
        """Move what moves at once, in a few microseconds: the scores, the seconds per token."""
        said = (lesson.estimate, lesson.confidence) if lesson.estimate >= 0 else None
        self._scores.ended(lesson.finish_reason, lesson.length, said)
        if lesson.finish_reason in ("stop", "length"):
            self._timing.update(lesson.evidence.features.model, lesson.length, lesson.seconds)

    def _take_in(self, lesson: Lesson) -> None:
        """Learn the rest, which may take long."""
        self._calibration.learn(lesson)
        self._learn(Completion(lesson.evidence, lesson.length, lesson.censored))
        self._lessons += 1
        # Rows of running sequences are computed anew at every doubling of what is known: soon
        # after the start, and hardly ever later, when one more completion changes nothing.
        if self._lessons & (self._lessons - 1) == 0:
            self._version += 1

    def track_all(self) -> None:
        """Forget no sequence, however many there are and however long they run: for a caller that
        tells of every end, by :meth:`update` or :meth:`discard`."""
        with self._lock:
            self._tracker.bounded = False

    def discard(self, sequence_id: SequenceId) -> None:
        """Forget a running sequence without learning from it; an unknown id is fine.

        Raises:
            RequestError: something that is no id.
        """
        if type(sequence_id) is not str:
            sequence_id = as_sequence_id(sequence_id)
        with self._lock:
            if self._tracker.take(sequence_id) is not None:
                self._tracker.discarded += 1

    def _calibrate_pending(self) -> None:
        self._calibration.learn_all()

    # -- what is known -----------------------------------------------------------------------

    def get_metrics(self) -> dict[str, Any]:
        """Fields of :class:`PredictionMetrics` on own completions, and the counts behind them.

        ``total_predictions = completions + censored + running + expired + replaced + discarded``.
        ``mae``, ``mse``, ``accuracy_within_10_percent`` and ``avg_confidence`` are over ``scored``
        sequences, which ended by themselves. The ``censored`` are left out of them; ``capped`` are
        those of the censored that reached a cap (``finish_reason="length"``).
        """
        with self._lock:
            tracker, scores = self._tracker, self._scores
            return {
                **scores.metrics(tracker.admitted),
                "predictor": self.name,
                "predict_calls": self._predict_calls,
                "completions": scores.completions,
                "censored": scores.censored,
                "scored": scores.scored,
                "capped": scores.capped,
                "running": len(tracker),
                "expired": tracker.expired,
                "replaced": tracker.replaced,
                "discarded": tracker.discarded,
                "unknown_updates": scores.unknown_updates,
                "lessons": self._lessons,
                "seconds_per_token": self._timing.seconds_per_token(),
                **(self._elsewhere.counts() if self._elsewhere else {}),
            }

    def fit(
        self,
        history: Any,
        *,
        progress: Progress | None = None,
        cap_reached: CapReached = "length",
        clock: Clock = "auto",
    ) -> Self:
        """Learn from a history, from scratch.

        Args:
            history: a polars DataFrame or LazyFrame in the history format, a table of another
                library that speaks Arrow (pandas, pyarrow), or a path, a glob or a folder of
                history files.
            progress: called with what is being done and the share done.
            cap_reached: finish reason of a row that gives none and ends exactly at its own
                ``max_length``: ``"length"`` (cut there) or ``"stop"`` (ended by itself). How many
                there are is logged in one line, and stands in ``summary["cap_reached"]``.
            clock: what arrival times count from: ``"wall"`` (one origin), ``"session"`` (they
                restart with every session) or ``"auto"`` (told from the sessions' starts).

        Raises:
            HistoryError: the history cannot be used; the message is one line.
            RequestError: it learns in a process of its own, or ``progress`` cannot be called.
        """
        if progress is not None and not callable(progress):
            raise RequestError(f"progress must be a function: {shown(progress)}")
        from sagellm_lifetime.predictor.fitting import fit_predictor

        with self._lock:
            if self._elsewhere is not None:
                raise RequestError("it learns in another process: fit it before that, or a clone()")
            before = dict(vars(self))
            try:
                fit_predictor(self, history, progress, cap_reached, clock)
            except BaseException:
                # Fitting puts new objects in the place of the old ones, which are as they were.
                vars(self).clear()
                vars(self).update(before)
                raise
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Write a checkpoint directory, atomically. Raises :class:`CheckpointError`."""
        from sagellm_lifetime.predictor.checkpoint import as_path, save_predictor

        place = as_path(path)
        with self._lock:
            save_predictor(self, place)

    def clone(self) -> Self:
        """A predictor with equal options and equal knowledge, sharing nothing, tracking nothing."""
        with self._lock:
            twin = type(self)(**self._options)
            set_knowledge(twin, knowledge(self))
            twin.summary = dict(self.summary)
            return twin
