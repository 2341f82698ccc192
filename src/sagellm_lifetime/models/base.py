"""What is learned of lengths: evidence in, cumulative hazards out.

    request → observe → evidence → hazards → rows
                  absorb ↺ (new tokens)        completion → learn

A model knows no sequence ids, no lock, no metrics, no calibration, no files and no tracking of
running sequences: all that is the :class:`~sagellm_lifetime.predictor.base.Predictor` around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.models.context import Context, ObservedRequest

if TYPE_CHECKING:
    import polars as pl

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""
_LARGEST_SEED = 2**63 - 1


class Feedback(NamedTuple):
    """One ended sequence, joined to what was known about it.

    Attributes:
        evidence: what :meth:`LengthModel.observe` returned, and :meth:`LengthModel.absorb` since.
        length: tokens generated, at least so many if censored.
        censored: whether the length is only a lower bound (a cap, an abort, an error).
        replayed: whether it comes from a history or a trial and not from service; a network takes
            no gradient steps for it.
    """

    evidence: Any
    length: int
    censored: bool
    replayed: bool = False


class LengthModel(ABC):
    """What is learned of the lengths of answers, apart from who asks.

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
    """By which it is registered and its checkpoints are known."""
    context: ClassVar[tuple[str, ...]] = ()
    """What it wants to be shown of recent traffic: ``"conversations"`` and ``"recent"``, see
    :class:`~sagellm_lifetime.models.context.Context`."""

    def __init__(self, *, seed: int = 0) -> None:
        self.options: dict[str, Any] = {"seed": as_option("seed", seed, 0, _LARGEST_SEED)}
        """Arguments of the constructor, for checkpoints: a subclass adds its own, as JSON knows
        them. No content and no ids."""
        self.lessons = 0
        """Sequences it has learned from, those of a fit included; its predictor counts."""

    # -- predicting --------------------------------------------------------------------------

    def observe(self, request: ObservedRequest) -> Evidence:
        """Return what to keep of a request that is asked about for the first time.

        Changes nothing: the request may be refused yet.

        Raises:
            RequestError: it cannot be used.
        """
        return Evidence(request.features, request.session)

    def absorb(self, evidence: Any, request: PredictionRequest) -> Evidence | None:
        """Return new evidence where a later request brings some, and the hazards change with it.

        Returns ``None`` where the hazards stay as they are. Changes neither the model nor
        ``evidence``: the request, or another of its batch, may be refused yet.

        Raises:
            RequestError: it cannot be used.
        """
        return None

    def check(self, request: ObservedRequest) -> None:
        """Raise what :meth:`observe` or :meth:`absorb` could raise of a request; change nothing."""
        self.observe(request)

    @abstractmethod
    def hazards(self, evidence: Sequence[Any]) -> Sequence[np.ndarray] | np.ndarray:
        """Return the cumulative hazards of the total length, one row per piece of evidence.

        Each row is float32 of shape ``(BINS + 1,)`` over the grid of ``core.grid``, starts at 0 and
        never falls; ``core.hazard`` makes rows (``log_logistic``, ``from_steps``). A row with exact
        lengths is longer (``hazard.WIDE``). Rows are kept, so they must not change afterwards.

        Nothing is learned here; what is noted in the evidence must not change the hazards.
        """

    # -- learning ----------------------------------------------------------------------------

    @abstractmethod
    def learn(self, feedback: Feedback) -> None:
        """Learn from one ended sequence."""

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
            older: what to learn from.
            newest: will be replayed through ``predict`` and ``update`` afterwards, so it is not to
                be learned; a network may use it to decide when to stop training.
            context: empty; afterwards it must know all of ``older`` (see
                ``models.history_rows.completions``) and nothing of ``newest``.
            progress: to be called with what is being done and the share done, or ``None``.
        """
        from sagellm_lifetime.models.history_rows import completions

        for observed, length, censored in completions(older, context, progress):
            self.learn(Feedback(self.observe(observed), length, censored, replayed=True))

    # -- what is known -----------------------------------------------------------------------

    @abstractmethod
    def state(self) -> Arrays:
        """Return what was learned: float64, float32, int64, int32 or bool arrays by name.

        They hold no content, no ids of sequences, sessions or clients, and no token ids.
        """

    @abstractmethod
    def restore(self, state: Arrays) -> None:
        """Replace what was learned with a :meth:`state`; called on a new model.

        The arrays may come from a file that somebody wrote: check names, types, shapes and ranges
        (``core.checked``). They may be kept, but not written to.

        Raises:
            ValueError: arrays that do not fit, or hold what none can have learned.
        """

    def counts(self) -> dict[str, Any]:
        """Return what else ``get_metrics`` is to tell; numbers by name."""
        return {}

    # -- its place ---------------------------------------------------------------------------

    def new(self) -> Self:
        """Return an unfitted model with the same options, sharing nothing."""
        return type(self)(**self.options)

    def successor(self) -> Self:
        """Return an unfitted model that is to take the place of this one, which may share with it
        what is costly to build."""
        return self.new()

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Build beforehand what is costly, for successors will soon come often."""

    def release(self) -> None:  # noqa: B027 - most have nothing to do
        """Free what is large, in pieces: nobody uses the model any more."""

    def __repr__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"<{type(self).__name__}({options}), {self.lessons} lessons>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy a model by its options and its state."""
        return _rebuilt, (type(self), dict(self.options), self.state(), self.lessons)


def _rebuilt(
    kind: type[LengthModel], options: dict[str, Any], state: Arrays, lessons: int
) -> LengthModel:
    model = kind(**options)
    model.restore({key: np.array(value) for key, value in state.items()})
    model.lessons = lessons
    return model
