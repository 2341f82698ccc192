"""The predictor around a model: tracking, calibration, seconds per token, lock and metrics.

completion → predictor → tracking joins it to the evidence of its prediction → model.learn
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from sagellm_lifetime.core import forking
from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import SequenceId
from sagellm_lifetime.core.scores import Scores
from sagellm_lifetime.core.values import as_sequence_id
from sagellm_lifetime.core.yield_gil import yield_gil
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import client_key
from sagellm_lifetime.models.base import Feedback, LengthModel, Progress
from sagellm_lifetime.models.context import Context
from sagellm_lifetime.predictor.calibration_by_client import CalibrationByClient
from sagellm_lifetime.predictor.checkpoint_file import Checkpoint, as_path, save_checkpoint
from sagellm_lifetime.predictor.checks import check_completion
from sagellm_lifetime.predictor.fair_timing import FairTiming
from sagellm_lifetime.predictor.learned import Learned, context_state, model_state, restored
from sagellm_lifetime.predictor.lineage import (
    LINEAGE,
    Lineage,
    bounded,
    joined,
    lineage_of,
    new_stretch,
    stretch_of,
)
from sagellm_lifetime.predictor.predicting import Predicting
from sagellm_lifetime.predictor.records import Completion, FeedbackQueue

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.history.prequential import Clock
    from sagellm_lifetime.history.reasons import CapReached


_LIMITS: Final = ("capacity", "expire_after")
"""Options of the predictor; all other options belong to the model."""
_MOST_NAMES: Final = 16
"""Maximum number of models whose drift is in the metrics."""


class Predictor(Predicting):
    """A length model in service; safe to call from several threads.

    Pickle and ``copy.deepcopy`` copy the options and the learned state. Tracked sequences, counts
    and scores are not copied, as with :meth:`clone`, and a background learner stays with the
    original: the copy learns by itself.

    Args:
        model: model that predicts and learns.
        capacity: maximum number of running sequences that are tracked.
        expire_after: seconds without a prediction after which a sequence may be dropped.

    Raises:
        RequestError: no model, a model with an option of that name, or an option of another type,
            or out of its range.

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
        taken = [option for option in _LIMITS if option in model.options]
        if taken:
            raise RequestError(
                f"model {model.name!r} has an option {taken[0]!r}, which is one of the predictor: "
                "give it another name"
            )
        super().__init__(model, capacity, expire_after)
        self.name = model.name
        self.summary: dict[str, Any] = {}
        """Description of the history it was fitted on: rows, columns, lengths; no content."""
        self._scores = Scores()
        self._is_replay = False
        self._models: dict[int, str] = {}
        """Names of the first models with a completion here, by key, for the metrics."""
        self._queue: FeedbackQueue | None = None
        self._stretch = new_stretch()
        """Name of the present stretch of learning, in :attr:`lineage`."""

    # -- the model ---------------------------------------------------------------------------

    @property
    def model(self) -> LengthModel:
        """Return the model; assign another of its class to replace it.

        Running sequences stay tracked and their rows are computed anew; the calibration is kept,
        and :attr:`summary` emptied. :meth:`swap` replaces a calibration, too.

        An assigned model belongs to this predictor from then on: only it may update the model. To
        use the model of another predictor, assign ``copy.deepcopy(other.model)``.

        Raises:
            RequestError: when assigned a model of another class, which could not read the evidence
                of the running sequences; a model that another predictor has; or any model while the
                predictor learns in another process.
        """
        return self._learned.model

    @model.setter
    def model(self, model: LengthModel) -> None:
        living = [owner for owner in forking.living() if isinstance(owner, Predictor)]
        if any(owner._learned.model is model for owner in living if owner is not self):
            raise RequestError(
                "another predictor has this model and updates it: assign a copy.deepcopy of it"
            )
        with self._lock:
            self.swap(Learned(model, self._learned.calibration))
            self._version += 1
            self.summary = {}

    def swap(self, learned: Learned, *, learner: FeedbackQueue | None = None) -> Learned:
        """Replace the model and its calibration; return the replaced ones.

        Running sequences and recent traffic stay. Rows of running sequences are kept until the
        number of learned completions has doubled.

        Args:
            learned: the new model and calibration.
            learner: the background learner if it calls.

        Raises:
            RequestError: the new model is of another class, or the predictor learns in another
                process, whose next state would replace this one.
        """
        with self._lock:
            if learner is not self._queue:
                self._check_learns_here()
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
        """Return the calibration of the model's answers; it is swapped together with the model."""
        return self._learned.calibration

    @property
    def lessons(self) -> int:
        """Return the number of completions that the model has learned from, without a lock."""
        return self._learned.model.lessons

    @property
    def lock(self) -> Any:
        """Return the re-entrant lock of the predictor; nothing changes while it is held."""
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

        An id that is not tracked (never predicted, discarded, or updated already) is counted as
        ``unknown_updates`` and not learned, since its request is not known.

        Args:
            sequence_id: id of the sequence.
            actual_length: generated tokens.
            actual_time: seconds from arrival to finish.
            finish_reason: ``"stop"``; or ``"length"``, ``"abort"`` or ``"error"``, with which the
                length is only a lower bound.

        Raises:
            RequestError: an invalid id, a negative, non-finite or too large number, or an unknown
                finish reason. Then nothing has changed, and the sequence stays tracked.
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
                item.evidence_ages,
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
        """Learn a completion that another predictor with the same options has queued.

        Raises:
            RequestError: ``completion`` is no :class:`Completion`. Then nothing has changed.
        """
        if not isinstance(completion, Completion):
            raise RequestError(f"a completion must be a Completion: {shown(completion)}")
        with self._lock:
            self._tracker.admitted += 1
            self._note(completion)
            self._learn(completion)

    def _note(self, completion: Completion) -> None:
        """Update scores, seconds per token and context, in a few microseconds."""
        first = (completion.estimate, completion.confidence) if completion.estimate >= 0 else None
        self._scores.ended(completion.finish_reason, completion.length, first)
        evidence, length = completion.evidence, completion.length
        features = evidence.features
        key = features.model_key
        if key not in self._models and len(self._models) < _MOST_NAMES:
            self._models[key] = features.model or ""
        if completion.finish_reason in ("stop", "length"):
            self._timing.learn(features.client_key, features.model, length, completion.seconds)
        self._context.learn(features, evidence.session, length, censored=completion.censored)

    def _learn(self, completion: Completion) -> None:
        """Update calibration and model, which may take milliseconds."""
        self._learned.calibration.learn(completion)
        model = self._learned.model
        changes = model.changes
        model.learn(
            Feedback(completion.evidence, completion.length, completion.censored, self._is_replay)
        )
        model.lessons += 1
        if model.changes != changes:
            self._learned.calibration.fade()
        # Rows of running sequences are computed anew whenever the number of completions has
        # doubled: often at the start, and rarely later, when one completion changes little.
        if model.lessons & (model.lessons - 1) == 0:
            self._version += 1

    def settle(self) -> None:
        """Learn the answers that the calibration has not learned yet, as before every save."""
        with self._lock:
            self._learned.calibration.learn_all()

    def track_all(self) -> None:
        """Keep all sequences until :meth:`update` or :meth:`discard`, without bound or expiry.

        For a caller that reports the end of every sequence.
        """
        with self._lock:
            self._tracker.bounded = False

    def discard(self, sequence_id: SequenceId) -> None:
        """Forget a running sequence without learning from it; an unknown id is ignored.

        Raises:
            RequestError: an id that is neither an int nor a str.
        """
        if type(sequence_id) is not str:
            sequence_id = as_sequence_id(sequence_id)
        with self._lock:
            if self._tracker.take(sequence_id) is not None:
                self._tracker.discarded += 1

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Mark updates in the block as replayed: a network takes no gradient steps for them."""
        self._is_replay = True
        try:
            yield
        finally:
            self._is_replay = False

    def hand_over_to(self, queue: FeedbackQueue) -> None:
        """Queue later completions instead of learning them; see ``BackgroundLearner``.

        Raises:
            RequestError: they are queued already.
        """
        with self._lock:
            if self._queue is not None:
                raise RequestError("the predictor learns in another process already")
            self._queue = queue

    def _check_learns_here(self) -> None:
        """Raise :class:`RequestError` if the state belongs to another process."""
        if self._queue is not None:
            raise RequestError(
                "it learns in another process, whose state would replace this one: change the "
                "predictor before that, or a clone()"
            )

    @property
    def learns_elsewhere(self) -> bool:
        """Return True if its completions are learned in another process."""
        return self._queue is not None

    # -- metrics and state -------------------------------------------------------------------

    def get_metrics(self) -> dict[str, Any]:
        """Return the fields of :class:`PredictionMetrics` on own completions, and further counts.

        ``total_predictions = completions + censored + running + expired + replaced + discarded``.
        ``mae``, ``mse``, ``accuracy_within_10_percent`` and ``avg_confidence`` are over the
        ``scored`` sequences, which ended by themselves, and not over the ``censored`` ones.
        ``capped`` counts the censored ones that reached a cap (``finish_reason="length"``).
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
                "drift": model.drift(self._models),
            }

    def drift(self) -> dict[str, Any]:
        """Return the changes of the workload that were noticed, as ``get_metrics()["drift"]``.

        Empty for a model that watches for none. Otherwise ``changes``, ``returns`` and ``trials``,
        and under ``models`` by name, for the first 16 models that ended sequences here: the number
        of the present ``generation``, the ``completions`` watched since it became the present one,
        the ``generations`` that are kept, and 1 for ``in_trial`` while there is a candidate. The
        name of requests that name no model is ``""``.
        """
        with self._lock:
            return self._learned.model.drift(self._models)

    def fit(
        self,
        history: Any,
        *,
        progress: Progress | None = None,
        cap_reached: CapReached = "length",
        clock: Clock = "auto",
    ) -> Self:
        """Learn from a history, from scratch.

        Other threads may predict meanwhile. The new state replaces the old one at the end, with the
        running sequences and whatever was learned meanwhile.

        Args:
            history: a polars DataFrame or LazyFrame in the history format, a table of another
                library with the Arrow interface (pandas, pyarrow), or a path, a glob or a folder of
                history files.
            progress: called with the name of the current step and the share done, 0 to 1.
            cap_reached: finish reason of a row that gives none and ends exactly at its own
                ``max_length``: ``"length"`` (cut there) or ``"stop"`` (ended by itself). The number
                of such rows is logged in one line, and stored in ``summary["cap_reached"]``.
            clock: origin of arrival times: ``"wall"`` (one for all), ``"session"`` (they restart
                with every session) or ``"auto"`` (inferred from the starts of the sessions).

        Raises:
            HistoryError: the history cannot be used; the message is one line.
            RequestError: the predictor learns in another process, or ``progress`` is not callable.
        """
        if progress is not None and not callable(progress):
            raise RequestError(f"progress must be a function: {shown(progress)}")
        from sagellm_lifetime.predictor.fitting import read, replay, seconds_per_token

        self._check_is_fittable()
        rows = read(history, cap_reached, clock)
        # A new predictor is fitted, and its state taken over at the end: predictions go on
        # meanwhile, and a failed fit changes nothing.
        with self._lock:
            self._check_is_fittable()
            fitted = self._around(self._learned.model.successor())
            if not self._tracker.bounded:
                fitted.track_all()
            keys = self._context.keys
            context = fitted._context = Context(self._context.parts, keys)
        fitted._timing = seconds_per_token(rows.older, keys)
        model = fitted._learned.model
        model.lessons = len(rows.older)
        with fitted.replaying():
            model.fit(rows.older, rows.newest, context, progress)
            fitted._learned.calibration.register(client_key(name, keys) for name in rows.clients())
            replay(fitted, rows.newest, progress, rows.clock)
            model.finish_fit()
        fitted.settle()
        stretch = stretch_of(self.name, fitted._learned.state())
        with self._lock:
            self._check_is_fittable()
            self._learned, self._context, self._timing = fitted._learned, context, fitted._timing
            self._version += 1
            # The scores of the fit are no scores of the service.
            self._scores, self._tracker = Scores(), self._tracker.emptied()
            self._predict_calls = 0
            self.summary = {**rows.summary, LINEAGE: {stretch: self.lessons}}
            self._stretch = new_stretch()
        return self

    def _check_is_fittable(self) -> None:
        """Raise :class:`RequestError` if the predictor learns in another process."""
        if self._queue is not None:
            raise RequestError("it learns in another process: fit it before that, or a clone()")

    def fit_part(self, rows: pl.DataFrame) -> None:
        """Learn one part of a history, whose other parts are merged with it; without calibration.

        Args:
            rows: checked rows in time order; a network is not trained.

        Raises:
            RequestError: the predictor is not new, or learns in another process.
        """
        from sagellm_lifetime.predictor.fitting import seconds_per_token

        with self._lock:
            self._check_learns_here()
            if not self.is_unused:
                raise RequestError("a part of a history is learned by a new predictor")
            keys, model = self._context.keys, self._learned.model
            with self.replaying():
                model.fit_part(rows, Context(self._context.parts, keys))
            model.lessons = len(rows)
            self._timing = seconds_per_token(rows, keys)

    def calibrate(
        self,
        rows: pl.DataFrame,
        clients: Sequence[str | None] = (),
        *,
        clock: Clock = "auto",
        progress: Progress | None = None,
    ) -> None:
        """Replay rows that were not learned, as at the end of :meth:`fit`.

        Args:
            rows: checked rows, in time order.
            clients: clients of the rows before them, in time order, for the fair shares.
            clock: origin of the arrival times.
            progress: called with the name of the step and the share done, or ``None``.

        Raises:
            RequestError: the predictor learns in another process.
        """
        from sagellm_lifetime.predictor.fitting import replay

        with self._lock:
            self._check_learns_here()
            keys = self._context.keys
            self._learned.calibration.register(client_key(name, keys) for name in clients)
            with self.replaying():
                replay(self, rows, progress, clock)
            self.settle()
            self._scores, self._tracker = Scores(), self._tracker.emptied()
            self._predict_calls = 0

    def state(self) -> Arrays:
        """Return the learned state as new arrays, those of a checkpoint."""
        with self._lock:
            self.settle()
            return {
                **{key: np.array(value) for key, value in self._learned.state().items()},
                **context_state(self._context.state()),
                **self._context.keys.state(),
                **self._timing.state(),
            }

    def restore(self, arrays: Arrays) -> None:
        """Replace the learned state with a :meth:`state`; running sequences stay tracked.

        Raises:
            ValueError: arrays that do not fit the predictor, or hold impossible values. Then
                nothing has changed.
            RequestError: the predictor learns in another process.
        """
        with self._lock:
            self._check_learns_here()
            context = Context(self._context.parts, NameKeys.of_state(arrays))
            timing = FairTiming()
            state = model_state(arrays)
            learned = restored(self._learned.model.successor(), arrays, context.without(state))
            context.restore(state)
            timing.restore(arrays)
            self._learned, self._context, self._timing = learned, context, timing
            self._version += 1

    def clear_shares(self) -> None:
        """Forget the accounts of clients, so that the next completions are accepted from anyone."""
        with self._lock:
            self._learned.calibration.shares.clear()
            self._timing.clear_shares()

    @property
    def is_unused(self) -> bool:
        """Return True if it has predicted nothing and learned nothing."""
        return not (self._learned.model.lessons or self._tracker.admitted)

    def draw_secret(self) -> None:
        """Draw a random secret for the keys of names; without one they depend only on the seed.

        Call it before the first request of a server with unknown users: no user can then find a
        name with the same key as another name. The secret belongs to the learned state, and is
        saved with it.

        Raises:
            RequestError: it has predicted or learned already, so keys of names are in its state.
        """
        self.use_keys(NameKeys.random())

    def use_keys(self, keys: NameKeys) -> None:
        """Take the keys of names that other replicas have; see :meth:`draw_secret`.

        Raises:
            RequestError: it has predicted or learned already, so keys of names are in its state.
        """
        with self._lock:
            self._check_learns_here()
            if not self.is_unused:
                raise RequestError("a secret is drawn before the first prediction and completion")
            self._context = Context(self._context.parts, keys)

    def successor(self, arrays: Arrays) -> Learned:
        """Return the learned state of an equal predictor for :meth:`swap`, without its context.

        No lock is held, and the GIL is released between pieces of work.

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
                summary=self._description(),
                metrics=self.get_metrics(),
            )
            save_checkpoint(checkpoint, place)

    # -- merging -----------------------------------------------------------------------------

    @property
    def keys(self) -> NameKeys:
        """Return the keys of names, under the secret of the learned state."""
        return self._context.keys

    @property
    def learned(self) -> Learned:
        """Return the model and its calibration, which :meth:`swap` takes."""
        return self._learned

    def sums(self) -> Arrays:
        """Return the arrays of :meth:`state` that other replicas merge, to :meth:`restore`.

        Without recent traffic, and without what a merge computes anew.
        """
        with self._lock:
            self.settle()
            learned = self._learned
            empty = Context(self._context.parts, self._context.keys)
            return {
                **learned.state(),
                **context_state(learned.model.sums()),
                **context_state(empty.state()),
                **self._context.keys.state(),
                **self._timing.state(),
            }

    def learned_state(self) -> Arrays:
        """Return the arrays of the model and its calibration, without recent traffic."""
        with self._lock:
            self.settle()
            return self._learned.state()

    def merge(self, *others: Self) -> None:
        """Add what others have learned; see ``merge_predictors``, which checks that they fit.

        Recent traffic is forgotten. The others stay as they are, but learn their pending answers.

        Raises:
            MergeError: its model cannot be merged.
            RequestError: the predictor learns in another process.
        """
        with self._lock:
            self._check_learns_here()
            self.settle()
            learned, timing = self._learned, self._timing
            lineage = joined([self.lineage, *(other.lineage for other in others)])
            for other in others:
                other.settle()
            learned.model.merge(*(other._learned.model for other in others))
            learned.calibration.merge(*(other._learned.calibration for other in others))
            learned.model.lessons += sum(other.lessons for other in others)
            timing.merge(*(other._timing for other in others))
            self._context = Context(self._context.parts, self._context.keys)
            self.summary = {**self.summary, LINEAGE: lineage}
            self._version += 1

    @property
    def lineage(self) -> Lineage:
        """Return the completions that it has learned, by the stretch of learning.

        What no lineage of a checkpoint tells is of the present stretch.
        """
        known = lineage_of(self.summary.get(LINEAGE))
        rest = self.lessons - sum(known.values())
        if rest < 0:  # a lineage of another state
            known, rest = {}, self.lessons
        if rest:
            known[self._stretch] = known.get(self._stretch, 0) + rest
        return bounded(known)

    def share_stretch(self, other: Predictor) -> None:
        """Count later completions as those of ``other``, which learns the same ones."""
        self.summary = self._description()
        self._stretch = other._stretch

    def _description(self) -> dict[str, Any]:
        """Return the summary with the lineage, if it has learned anything."""
        lineage = self.lineage
        summary = {key: value for key, value in self.summary.items() if key != LINEAGE}
        return {**summary, LINEAGE: lineage} if lineage else summary

    # -- copies ------------------------------------------------------------------------------

    def clone(self) -> Self:
        """Return a copy with equal options and learned state, which tracks no sequences."""
        with self._lock:
            twin = self.new()
            twin.restore(self.state())
            twin.summary = self._description()
            return twin

    def new(self, **changes: Any) -> Self:
        """Return an unfitted predictor with the same options.

        Args:
            changes: options with other values.

        Raises:
            RequestError: an unknown option, or an impossible value.
        """
        options = {**self.options, **changes}
        limits = {key: options.pop(key) for key in _LIMITS}
        model_class = type(self._learned.model)
        try:
            model = model_class(**options)
        except TypeError as error:
            raise RequestError(f"predictor {self.name!r}: {error}") from error
        return self._around(model, **limits)

    def _around(self, model: LengthModel, **limits: Any) -> Self:
        """Return a new predictor of this class around a model.

        Args:
            model: the model.
            limits: ``capacity`` and ``expire_after`` where they differ from those of this one.
        """
        tracker = self._tracker
        predictor = type(self).__new__(type(self))
        Predictor.__init__(
            predictor,
            model,
            **{"capacity": tracker.capacity, "expire_after": tracker.expire_after, **limits},
        )
        return predictor

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            model_class = type(self._learned.model)
            options, state = self.options, self.state()
            return _rebuilt, (type(self), model_class, options, state, self._description())

    def __repr__(self) -> str:
        # Without the lock, since a debugger may call this while another thread holds it.
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        running = len(self._tracker)
        return f"<{type(self).__name__}({options}), {self.lessons} lessons, {running} running>"


def _rebuilt(
    cls: type[Predictor],
    model_class: type[LengthModel],
    options: dict[str, Any],
    arrays: Arrays,
    summary: dict[str, Any],
) -> Predictor:
    limits = {key: options.pop(key) for key in _LIMITS}
    predictor = cls.__new__(cls)
    Predictor.__init__(predictor, model_class(**options), **limits)
    predictor.restore(arrays)
    predictor.summary = summary
    return predictor
