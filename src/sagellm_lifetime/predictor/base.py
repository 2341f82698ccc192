"""The predictor around a model: tracking, calibration, seconds per token, lock and metrics.

completion → predictor → tracking joins it to what was known at predict time → model.learn
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, in_order, part, ranks
from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import SequenceId
from sagellm_lifetime.core.scores import Scores
from sagellm_lifetime.core.timing import TokenTiming
from sagellm_lifetime.core.values import as_sequence_id
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.models.base import Feedback, LengthModel, Progress
from sagellm_lifetime.models.context import Context
from sagellm_lifetime.predictor.calibration_by_client import CalibrationByClient
from sagellm_lifetime.predictor.checkpoint_file import Checkpoint, as_path, save_checkpoint
from sagellm_lifetime.predictor.checks import check_completion
from sagellm_lifetime.predictor.learned import Learned, context_state, model_state, restored
from sagellm_lifetime.predictor.predicting import Predicting
from sagellm_lifetime.predictor.records import Completion, FeedbackQueue

if TYPE_CHECKING:
    from sagellm_lifetime.history.prequential import Clock
    from sagellm_lifetime.history.reasons import CapReached


class Predictor(Predicting):
    """A length model in service; safe to call from several threads.

    Pickle and ``copy.deepcopy`` take options and what was learned. What is tracked, counted and
    scored is left behind, as with :meth:`clone`, and a background learner stays with the original:
    the copy learns by itself.

    Args:
        model: what is asked, and learns.
        capacity: how many running sequences are tracked at most.
        expire_after: seconds after which a sequence that is never asked about is forgotten.

    Raises:
        RequestError: no model, or an option of another type, or out of its range.

    Example:
        >>> from sagellm_lifetime import PredictionRequest, create_predictor
        >>> predictor = create_predictor("survival")
        >>> result = predictor.predict(PredictionRequest("a", [], 0, 512, {"client_id": "batch"}))
        >>> predictor.update("a", 80, 1.6)
        >>> predictor.lessons
        1
    """

    def __init__(
        self, model: LengthModel, *, capacity: int = 65_536, expire_after: float = 3600.0
    ) -> None:
        if not isinstance(model, LengthModel):
            raise RequestError(f"a predictor is made around a LengthModel: {shown(model)}")
        super().__init__(model, capacity, expire_after)
        self.name = model.name
        self.summary: dict[str, Any] = {}
        """What it was fitted on: rows, time span, columns; no content."""
        self._scores = Scores()
        self._is_replay = False
        self._queue: FeedbackQueue | None = None

    # -- the model ---------------------------------------------------------------------------

    @property
    def model(self) -> LengthModel:
        """Return what is asked and learns; assign another of its class to swap what was learned.

        Running sequences stay tracked and are answered anew; the calibration goes on from where it
        was. :meth:`swap` takes a calibration, too.

        Raises:
            RequestError: when assigned a model of another class, which could not read the evidence
                of the running sequences.
        """
        return self._learned.model

    @model.setter
    def model(self, model: LengthModel) -> None:
        with self._lock:
            self.swap(Learned(model, self._learned.calibration))
            self._version += 1

    def swap(self, learned: Learned) -> Learned:
        """Take what was learned elsewhere in the place of what is; return what was replaced.

        Running sequences and recent traffic stay. As everywhere, rows of running sequences stay
        until what is known has doubled.

        Raises:
            RequestError: its model is of another class.
        """
        with self._lock:
            replaced = self._learned
            if type(learned.model) is not type(replaced.model):
                raise RequestError(
                    f"a predictor around {type(replaced.model).__name__} cannot go on with "
                    f"{shown(learned.model)}"
                )
            if learned.model.lessons.bit_length() != replaced.model.lessons.bit_length():
                self._version += 1
            self._learned = learned
        return replaced

    @property
    def calibration(self) -> CalibrationByClient:
        """The calibration of the model's answers; swapped together with it."""
        return self._learned.calibration

    @property
    def lessons(self) -> int:
        """Return how many completions the model in use was learned from; waits for no lock."""
        return self._learned.model.lessons

    @property
    def lock(self) -> Any:
        """Return the lock that keeps everything as it is while it is held; re-entrant."""
        return self._lock

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments that make an equal predictor."""
        return {
            **self._learned.model.options,
            "capacity": self._tracker.capacity,
            "expire_after": self._tracker.expire_after,
        }

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
            completion = Completion(
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
            self._note(completion)
            if self._queue is None:
                self._learn(completion)
            else:
                self._queue.take(completion)

    def learn(self, completion: Completion) -> None:
        """Learn what another predictor with the same options was told by an ``update``.

        Raises:
            RequestError: something that is no completion. Then nothing has changed.
        """
        if not isinstance(completion, Completion):
            raise RequestError(f"a completion must be a Completion: {shown(completion)}")
        with self._lock:
            self._tracker.admitted += 1
            self._note(completion)
            self._learn(completion)

    def _note(self, completion: Completion) -> None:
        """Move what moves at once, in a few microseconds: scores, seconds per token, context."""
        said = (completion.estimate, completion.confidence) if completion.estimate >= 0 else None
        self._scores.ended(completion.finish_reason, completion.length, said)
        evidence, length = completion.evidence, completion.length
        if completion.finish_reason in ("stop", "length"):
            self._timing.update(evidence.features.model, length, completion.seconds)
        self._context.learn(
            evidence.features, evidence.session, length, censored=completion.censored
        )

    def _learn(self, completion: Completion) -> None:
        """Learn the rest, which may take long."""
        self._learned.calibration.learn(completion)
        model = self._learned.model
        model.learn(
            Feedback(completion.evidence, completion.length, completion.censored, self._is_replay)
        )
        model.lessons += 1
        # Rows of running sequences are computed anew at every doubling of what is known: soon
        # after the start, and hardly ever later, when one more completion changes nothing.
        if model.lessons & (model.lessons - 1) == 0:
            self._version += 1

    def settle(self) -> None:
        """Let the calibration learn what waits for it, as before every save."""
        with self._lock:
            self._learned.calibration.learn_all()

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

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Take what is told meanwhile for a replay: a network takes no gradient steps for it."""
        self._is_replay = True
        try:
            yield
        finally:
            self._is_replay = False

    def hand_over_to(self, queue: FeedbackQueue) -> None:
        """Let completions be learned elsewhere from now on; see ``BackgroundLearner``.

        Raises:
            RequestError: they are learned elsewhere already.
        """
        with self._lock:
            if self._queue is not None:
                raise RequestError("the predictor learns in another process already")
            self._queue = queue

    @property
    def learns_elsewhere(self) -> bool:
        """Return True if its completions are learned in another process."""
        return self._queue is not None

    # -- what is known -----------------------------------------------------------------------

    def get_metrics(self) -> dict[str, Any]:
        """Return the fields of :class:`PredictionMetrics` on own completions, and counts beside.

        ``total_predictions = completions + censored + running + expired + replaced + discarded``.
        ``mae``, ``mse``, ``accuracy_within_10_percent`` and ``avg_confidence`` are over ``scored``
        sequences, which ended by themselves. The ``censored`` are left out of them; ``capped`` are
        those of the censored that reached a cap (``finish_reason="length"``).
        """
        with self._lock:
            tracker, scores, model = self._tracker, self._scores, self._learned.model
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
                "lessons": model.lessons,
                "seconds_per_token": self._timing.seconds_per_token(),
                **(self._queue.counts() if self._queue else {}),
                **model.counts(),
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
        from sagellm_lifetime.predictor.fitting import read, replay, seconds_per_token

        with self._lock:
            if self._queue is not None:
                raise RequestError("it learns in another process: fit it before that, or a clone()")
            rows = read(history, cap_reached, clock)
            # Another one is fitted and put in the place of this one when all went well.
            fitted = self._around(self._learned.model.successor())
            if not self._tracker.bounded:
                fitted.track_all()
            fitted._timing = seconds_per_token(rows.older)
            model, context = fitted._learned.model, fitted._context
            model.lessons = len(rows.older)
            with fitted.replaying():
                model.fit(rows.older, rows.newest, context, progress)
                fitted._learned.calibration.meet(rows.clients())
                replay(fitted, rows.newest, progress, rows.clock)
            fitted.settle()
            self._learned, self._context, self._timing = fitted._learned, context, fitted._timing
            self._version += 1
            # What it scored while it was being fitted is not what it scores in service.
            self._scores, self._tracker = Scores(), self._tracker.emptied()
            self._predict_calls = 0
            self.summary = rows.summary
        return self

    def state(self) -> Arrays:
        """Return everything learned, as arrays of its own: what a checkpoint holds."""
        with self._lock:
            self.settle()
            # Names of arrays are UTF-8, names of models may be anything.
            timing = {
                model.encode("utf-8", "backslashreplace").decode(): np.array(values)
                for model, values in self._timing.state().items()
            }
            return {
                **{key: np.array(value) for key, value in self._learned.state().items()},
                **context_state(self._context.state()),
                **{f"timing.{name}": values for name, values in timing.items()},
                "timing_order": ranks(timing),
            }

    def restore(self, arrays: Arrays) -> None:
        """Replace everything learned with a :meth:`state`; running sequences stay tracked.

        Raises:
            ValueError: arrays that do not fit the predictor, or hold what none can have learned.
                Then nothing has changed.
        """
        with self._lock:
            context, timing = Context(self._context.parts), TokenTiming()
            state = model_state(arrays)
            learned = restored(self._learned.model.successor(), arrays, context.without(state))
            context.restore(state)
            for name in arrays:
                if name.startswith("timing.") and not len(
                    checked(arrays, name, np.float64, (None,), 0.0)
                ):
                    raise ValueError(f"{name!r} is empty")
            paces = in_order(part(arrays, "timing."), arrays.get("timing_order"))
            timing.restore({k: v.tolist() for k, v in paces.items()})
            self._learned, self._context, self._timing = learned, context, timing
            self._version += 1

    def successor(self, arrays: Arrays) -> Learned:
        """Return what an equal predictor learned, for :meth:`swap`; its recent traffic is left out.

        Takes no lock, and lets other threads run between pieces of work.

        Raises:
            ValueError: as of :meth:`restore`.
        """
        state = self._context.without(model_state(arrays))
        model = self._learned.model.successor()
        yield_gil()
        return restored(model, arrays, state)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a checkpoint directory, atomically. Raises :class:`CheckpointError`."""
        place = as_path(path)
        with self._lock:
            checkpoint = Checkpoint(
                predictor=self.name,
                options=self.options,
                arrays=self.state(),
                summary=dict(self.summary),
                metrics=self.get_metrics(),
            )
            save_checkpoint(checkpoint, place)

    # -- copies ------------------------------------------------------------------------------

    def clone(self) -> Self:
        """Return a predictor with equal options and knowledge, sharing and tracking nothing."""
        with self._lock:
            twin = self.new()
            twin.restore(self.state())
            twin.summary = dict(self.summary)
            return twin

    def new(self, **changes: Any) -> Self:
        """Return a predictor of the same kind that knows nothing.

        Args:
            changes: options that are to be others.

        Raises:
            RequestError: an option it does not take, or an impossible value.
        """
        options = {**self.options, **changes}
        own = {key: options.pop(key) for key in ("capacity", "expire_after")}
        kind = type(self._learned.model)
        try:
            model = kind(**options)
        except TypeError as error:
            raise RequestError(f"predictor {self.name!r}: {error}") from error
        return self._around(model, **own)

    def _around(self, model: LengthModel, **limits: Any) -> Self:
        """Return a new predictor of this class around a model, with this one's limits."""
        tracker = self._tracker
        made = type(self).__new__(type(self))
        Predictor.__init__(
            made,
            model,
            **{"capacity": tracker.capacity, "expire_after": tracker.expire_after, **limits},
        )
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            kind = type(self._learned.model)
            return _rebuilt, (type(self), kind, self.options, self.state(), dict(self.summary))

    def __repr__(self) -> str:
        # Without the lock: a debugger may ask while another thread holds it.
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        running = len(self._tracker)
        return f"<{type(self).__name__}({options}), {self.lessons} lessons, {running} running>"


def _rebuilt(
    cls: type[Predictor],
    kind: type[LengthModel],
    options: dict[str, Any],
    arrays: Arrays,
    summary: dict[str, Any],
) -> Predictor:
    own = {key: options.pop(key) for key in ("capacity", "expire_after")}
    predictor = cls.__new__(cls)
    Predictor.__init__(predictor, kind(**options), **own)
    predictor.restore(arrays)
    predictor.summary = summary
    return predictor
