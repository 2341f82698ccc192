"""Base of the length models: evidence in, cumulative hazards out.

    request → observe → evidence → hazards → rows
                  absorb ↺ (new tokens)        completion → learn

A model has no sequence ids, lock, metrics, calibration, files or tracking of running sequences: the
:class:`~sagellm_lifetime.predictor.base.Predictor` around it has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.errors import MergeError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.models.context import Context, ObservedRequest

if TYPE_CHECKING:
    import polars as pl

Progress = Callable[[str, float], None]
"""Function of the name of the current step and the share done, 0 to 1."""
_LARGEST_SEED = 2**63 - 1


class Feedback(NamedTuple):
    """Feedback from a finished sequence, with its evidence.

    Attributes:
        evidence: the newest evidence that :meth:`LengthModel.observe` or :meth:`LengthModel.absorb`
            returned for it.
        length: generated tokens; a lower bound of the length if censored.
        censored: True if the length is only a lower bound (a cap, an abort, an error).
        replayed: True if it comes from a history or a trial and not from service; a network takes
            no gradient steps for it.
    """

    evidence: Any
    length: int
    censored: bool
    replayed: bool = False


class LengthModel(ABC):
    """Model of the lengths of answers, without the bookkeeping of sequences.

    A subclass needs a ``name`` and four methods: :meth:`hazards`, :meth:`learn`, :meth:`state` and
    :meth:`restore`. A :class:`~sagellm_lifetime.Predictor` around it does the rest.

    Args:
        seed: seeds everything random; equal seeds and calls give equal hazards.

    Raises:
        RequestError: an option of another type, or out of its range.

    Example:
        >>> import numpy as np
        >>> from sagellm_lifetime import LengthModel, PredictionRequest, Predictor
        >>> from sagellm_lifetime.core import hazard
        >>> class Newest(LengthModel):
        ...     name = "newest"
        ...     length = np.array([200.0])
        ...     def hazards(self, evidence):
        ...         return [hazard.log_logistic(self.length[0], 0.5) for _ in evidence]
        ...     def learn(self, feedback):
        ...         if not feedback.censored:
        ...             self.length = np.array([max(feedback.length, 1.0)])
        ...     def state(self):
        ...         return {"length": self.length}
        ...     def restore(self, state):
        ...         self.length = state["length"]
        >>> predictor = Predictor(Newest())
        >>> predictor.predict(PredictionRequest(1, [], 0, None)).estimated_remaining_tokens
        200
        >>> predictor.update(1, 30, 0.6)
        >>> predictor.predict(PredictionRequest(2, [], 0, None)).estimated_remaining_tokens
        30
    """

    name: ClassVar[str]
    """Name under which it is registered, and which its checkpoints hold."""
    context: ClassVar[tuple[str, ...]] = ()
    """Parts of the recent traffic that it needs: ``"conversations"``, ``"recent"`` or both, see
    :class:`~sagellm_lifetime.models.context.Context`."""

    @property
    def reads_content(self) -> bool:
        """Return True if generated tokens, text or signals change its hazards."""
        return False

    def __init__(self, *, seed: int = 0) -> None:
        self.options: dict[str, Any] = {"seed": as_option("seed", seed, 0, _LARGEST_SEED)}
        """Arguments of the constructor as JSON values, for checkpoints; a subclass adds its own.
        No content and no ids."""
        self.lessons = 0
        """Number of completions learned, those of a fit included; its predictor counts them."""

    # -- predicting --------------------------------------------------------------------------

    def observe(self, request: ObservedRequest) -> Evidence:
        """Return the evidence to keep of a request at its first prediction.

        Changes nothing, since the request may still be refused.

        Raises:
            RequestError: the request cannot be used.
        """
        return Evidence(request.features, request.session)

    def absorb(self, evidence: Any, request: PredictionRequest) -> Evidence | None:
        """Return new evidence if a later request of a sequence changes its hazards, else ``None``.

        Changes neither the model nor ``evidence``, since the request, or another of its batch, may
        still be refused.

        Args:
            evidence: evidence so far.
            request: the later request of the same sequence.

        Raises:
            RequestError: the request cannot be used.
        """
        return None

    def check(self, request: ObservedRequest) -> None:
        """Raise any error that :meth:`observe` or :meth:`absorb` could raise; change nothing."""
        self.observe(request)

    @abstractmethod
    def hazards(self, evidence: Sequence[Any]) -> Sequence[np.ndarray] | np.ndarray:
        """Return the cumulative hazards of the total length, one row per piece of evidence.

        Each row is float32 of shape ``(BINS + 1,)`` over the grid of ``core.grid``, is finite,
        starts at 0 and never decreases; ``core.hazard`` makes rows (``log_logistic``,
        ``from_steps``). A row with exact lengths is longer (``hazard.WIDE``). Rows are stored by
        the caller, so they must not be written to afterwards. Other rows are refused with a
        :class:`LifetimeError`.

        Nothing is learned here. A model may note values for :meth:`learn` in the evidence, but
        they must not change the hazards.
        """

    # -- learning ----------------------------------------------------------------------------

    @abstractmethod
    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence."""

    def fit(
        self,
        older: pl.DataFrame,
        newest: pl.DataFrame,
        context: Context,
        progress: Progress | None,
    ) -> None:
        """Learn from a checked history, in time order; called once, on a new model.

        By default each row of ``older`` is learned by :meth:`learn`.

        Args:
            older: rows to learn from.
            newest: rows that the caller will replay through ``predict`` and ``update``, so they
                must not be learned; a network may use them to decide when to stop training.
            context: an empty context; on return it must have learned all of ``older`` (see
                ``models.history_rows.completions``) and nothing of ``newest``.
            progress: called with the name of the current step and the share done, or ``None``.
        """
        from sagellm_lifetime.models.history_rows import completions

        for observed, length, censored in completions(older, context, progress):
            self.learn(Feedback(self.observe(observed), length, censored, replayed=True))

    def finish_fit(self) -> None:  # noqa: B027 - most have nothing to do
        """Learn what the replay of the newest rows had to leave out; called once, after it.

        During the replay nothing may be learned from a row that makes the predictions of its
        neighbours better than those in service will be: a second sample of a prompt, for example.
        """

    # -- state -------------------------------------------------------------------------------

    @abstractmethod
    def state(self) -> Arrays:
        """Return the learned state: float64, float32, int64, int32 or bool arrays by name.

        The arrays hold no content, no ids of sequences, sessions or clients, and no token ids.
        """

    @abstractmethod
    def restore(self, state: Arrays) -> None:
        """Replace the learned state with a :meth:`state`; called on a new model.

        The arrays may come from an untrusted file: check names, types, shapes and ranges
        (``core.checked``). They may be kept, but not written to.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """

    def counts(self) -> dict[str, Any]:
        """Return further numbers by name for ``get_metrics``."""
        return {}

    @property
    def changes(self) -> int:
        """Return how many changes of the workload it has noticed.

        When the number grows, the calibration forgets most of what it has learned before.
        """
        return 0

    def drift(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the state of its watch for changes of the workload; empty if it does not watch.

        Args:
            names: names of the models to list, by key.
        """
        return {}

    def fit_part(self, rows: pl.DataFrame, context: Context) -> None:
        """Learn one part of a history that :meth:`merge` joins with others; called on a new model.

        By default :meth:`fit` with all rows; a model with a network trains it later.

        Args:
            rows: checked rows in time order.
            context: an empty context.
        """
        self.fit(rows, rows.clear(), context, None)

    # -- merging -----------------------------------------------------------------------------

    def merge(self, *others: Self) -> None:
        """Add what other models of the same options have learned; they stay as they are.

        A merge is associative and commutative, but for rounding, and not idempotent: what is merged
        twice counts twice. Names must be hashed with one secret. Optional; the default refuses.

        Args:
            others: models of this class with the same options.

        Raises:
            MergeError: this model cannot be merged.
        """
        raise MergeError(
            f"what the model {self.name!r} has learned cannot be merged: its class has no merge()"
        )

    def sums(self) -> Arrays:
        """Return :meth:`state` without what :meth:`merge` computes anew; by default all of it.

        It is what a replica sends to others, and :meth:`restore` reads it.
        """
        return self.state()

    def take_training(self, other: Self) -> None:  # noqa: B027 - most have nothing to do
        """Take over what gradient steps have learned in another model; by default nothing."""

    def continue_from(self, replaced: Self) -> None:  # noqa: B027 - most have nothing to do
        """Go on with the training of a model that this merged one replaces; by default nothing."""

    # -- replacement -------------------------------------------------------------------------

    def new(self) -> Self:
        """Return an unfitted model with the same options, which shares nothing with this one."""
        return type(self)(**self.options)

    def successor(self) -> Self:
        """Return an unfitted model to replace this one; it may share costly objects with it."""
        return self.new()

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Build costly objects in advance, before successors are made every few seconds."""

    def release(self) -> None:  # noqa: B027 - most have nothing to do
        """Free large objects in pieces; called when the model is no longer used."""

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"<{type(self).__name__}({options}), {self.lessons} lessons>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy a model by its options and its state."""
        return _rebuilt, (type(self), dict(self.options), self.state(), self.lessons)


def _rebuilt(
    model_class: type[LengthModel], options: dict[str, Any], state: Arrays, lessons: int
) -> LengthModel:
    model = model_class(**options)
    model.restore({key: np.array(value) for key, value in state.items()})
    model.lessons = lessons
    return model
