"""What the LSTM and the Transformer share: a residual-life table, corrected by a network.

The table learns from every completion at once; the network reads the sequence of evidence and
corrects the hazards of the table (see ``networks.head``). Untrained, it corrects nothing. The
network runs when there is new evidence; between two pieces a prediction is a look-up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from sagellm_lifetime.core.arrays import part
from sagellm_lifetime.core.checked import checked, checked_count, count_array
from sagellm_lifetime.core.errors import MissingExtraError, RequestError, shown
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.context import RecentCompletions
from sagellm_lifetime.features.conversations import Conversations
from sagellm_lifetime.features.evidence import (
    NewChunks,
    SequenceEvidence,
    check_content,
    new_chunks,
    read_evidence,
    take_chunks,
)
from sagellm_lifetime.features.request import read_request
from sagellm_lifetime.models.residual_life import ResidualLife
from sagellm_lifetime.models.shrinkage import INSIDE
from sagellm_lifetime.networks.graphs import Weights
from sagellm_lifetime.networks.head import base_logits, corrected_row
from sagellm_lifetime.networks.samples import ReplayStore, Sample
from sagellm_lifetime.networks.serving import Runner, Runners
from sagellm_lifetime.networks.trainer import Log, Trainer
from sagellm_lifetime.predictor.base import Predictor, Progress
from sagellm_lifetime.predictor.records import Completion, Lesson
from sagellm_lifetime.predictor.training_samples import history_samples

if TYPE_CHECKING:
    import polars as pl

MAX_TRAINED: Final = 40_000
"""The newest rows a network is trained on; the tables take all."""
_BURN_IN: Final = 0.05
"""Share of the history that only warms the tables up: their first answers are no base."""
_ONLINE_BATCH: Final = 64
_ONLINE_EVERY: Final = 8
"""Completions between two rounds of gradient steps."""
_ONLINE_START: Final = 16
_EDGE_MEMORY: Final = 0.95
_MOST_EPOCHS: Final = 10_000
WIDEST: Final = 4096
"""Width of a layer: a wider network has no room in a checkpoint (1 GiB)."""
DEEPEST: Final = 64
"""Layers of a network."""


class NeuralPredictor(Predictor):
    """Base of the predictors with a network.

    Args:
        online: ``"inline"`` takes gradient steps inside :meth:`update`, a few every 8
            completions (10–40 ms each round; needs PyTorch, without it only the tables learn);
            ``"off"`` leaves the weights as fitted. The tables and the calibration always learn.
        epochs: passes over the history in :meth:`fit`, at most.
    """

    def __init__(self, *, online: str = "inline", epochs: int = 12, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(online, str) or online not in ("inline", "off"):
            raise RequestError(f"online must be 'inline' or 'off', got {shown(online)}")
        self._options.update(online=online, epochs=as_option("epochs", epochs, 1, _MOST_EPOCHS))
        self._tables = ResidualLife()
        self._conversations = Conversations()
        self._recent = RecentCompletions()
        self._weights: Weights | None = None
        self._runner: Runner | None = None
        self._trainer: Trainer | None = None
        self._store = ReplayStore(seed=self._options["seed"])
        self._training_steps = 0
        self._edge = 0.0
        """Nats by which the network has lately beaten the table; below 0 the table answers."""
        self.training: dict[str, float] = {}
        self.log: Log | None = None

    _runners: Runners
    """Makes what serves the network; a subclass sets it."""

    _STAYS = Predictor._STAYS | {"_conversations", "_recent", "_runners", "training", "log"}

    @abstractmethod
    def _build(self) -> Callable[[], Any]:
        """A maker of the PyTorch network."""

    # -- predicting --------------------------------------------------------------------------

    def _read(self, request: PredictionRequest) -> SequenceEvidence:
        features = read_request(request)
        session = self._conversations.key(features)
        return read_evidence(request, session, features, self._recent)

    def _check(self, request: PredictionRequest) -> None:
        self._read(request)
        check_content(request)

    def _news(self, evidence: SequenceEvidence, request: PredictionRequest) -> NewChunks | None:
        return new_chunks(evidence, request)

    def _absorb(self, evidence: SequenceEvidence, news: NewChunks) -> None:
        take_chunks(evidence, news)

    def _rows(self, evidence: Sequence[SequenceEvidence]) -> list[np.ndarray]:
        return [self._row(each) for each in evidence]

    def _row(self, evidence: SequenceEvidence) -> np.ndarray:
        known = self._tables.known(evidence.features, evidence.session)
        evidence.base = base_logits(known.padded[INSIDE])
        mark = (evidence.age, len(evidence.chunks))
        if not evidence.marks or evidence.marks[-1] != mark:
            evidence.marks.append(mark)
        if self._runner is None or self._edge < 0.0:
            return known.row
        row = corrected_row(self._runner(evidence.steps()), evidence.base, evidence.age)
        return known.exact(row)

    # -- learning ----------------------------------------------------------------------------

    def _note(self, lesson: Lesson) -> None:
        super()._note(lesson)
        features, session = lesson.evidence.features, lesson.evidence.session
        self._conversations.learn(features)
        self._recent.learn(features, session, lesson.length, censored=lesson.censored)

    def _learn(self, completion: Completion) -> None:
        evidence: SequenceEvidence = completion.evidence
        fair = self._tables.learn(
            evidence.features, evidence.session, completion.length, censored=completion.censored
        )
        if fair and self._options["online"] != "off":
            self._remember(completion)
        if self._options["online"] == "inline" and not self._fitting:
            self._train_inline()

    def _remember(self, completion: Completion) -> None:
        """Keep one sample per answer that was given, at the age it was asked for."""
        evidence: SequenceEvidence = completion.evidence
        if evidence.base is None:
            return
        for age, chunks in evidence.marks:
            if age < completion.length:
                self._store.add(
                    Sample(
                        evidence.steps(chunks),
                        evidence.base,
                        age,
                        completion.length,
                        completion.censored,
                    )
                )

    def _train_inline(self) -> None:
        lessons = self._lessons + 1
        if lessons % _ONLINE_EVERY or len(self._store) < _ONLINE_START:
            return
        if self._trainer is None:
            rate = 3e-3 if self._weights is None else 3e-4
            try:
                self._trainer = self._make_trainer(self._weights, learning_rate=rate)
            except MissingExtraError:
                self._options["online"] = "off"
                return
        # Predict, then learn: what just came scores the network against the table alone.
        fresh = self._store.newest(_ONLINE_EVERY)
        self._edge = _EDGE_MEMORY * self._edge + self._trainer.edge(fresh)
        rounds = 8 if lessons < 256 and not self.training else 2
        for _ in range(rounds):
            self._trainer.step(self._store.draw(_ONLINE_BATCH))
        self._training_steps += rounds
        self._use(self._trainer.weights())

    def _make_trainer(self, weights: Weights | None, **options: Any) -> Trainer:
        try:
            build = self._build()
        except ImportError as error:
            raise MissingExtraError("training a network", "train") from error
        return Trainer(build, weights, seed=self._options["seed"], **options)

    def _use(self, weights: Weights | None) -> None:
        self._weights = weights
        self._runner = None if weights is None else self._runners(weights)

    def _fit(self, older: pl.DataFrame, newest: pl.DataFrame, progress: Progress | None) -> None:
        self._tables = ResidualLife()
        self._conversations = Conversations()
        self._recent = RecentCompletions()
        self._store = ReplayStore(seed=self._options["seed"])
        self._trainer = None
        trainer = self._make_trainer(None)
        rng = np.random.default_rng(self._options["seed"])
        skipped = older.head(max(len(older) - MAX_TRAINED, round(len(older) * _BURN_IN)))
        for _ in history_samples(self, skipped, rng, None):
            pass
        samples = list(history_samples(self, older.slice(len(skipped)), rng, progress))
        after_older = deepcopy((self._tables, self._conversations, self._recent))
        held_out = list(history_samples(self, newest, rng, progress))
        self._tables, self._conversations, self._recent = after_older
        if not samples:
            # Every sequence ended at once: the tables say all there is to say.
            self._use(None)
            return
        self.training = trainer.fit(
            samples, held_out, epochs=self._options["epochs"], progress=progress, log=self.log
        )
        self._edge, self._training_steps = 0.0, 0
        self._use(trainer.weights())

    # -- learning elsewhere ------------------------------------------------------------------

    def _expect_swaps(self) -> None:
        # The one in use, and the one that takes its place.
        self._runners.prepare(2 if self._runner is None else 1)

    def _twin(self) -> Self:
        twin = super()._twin()
        twin._runners = self._runners
        return twin

    # -- state -------------------------------------------------------------------------------

    def get_metrics(self) -> dict[str, Any]:
        """As of every predictor, with the gradient steps taken online."""
        return {**super().get_metrics(), "training_steps": self._training_steps}

    def _state(self) -> dict[str, np.ndarray]:
        parts: dict[str, dict[str, np.ndarray]] = {
            "tables": self._tables.state(),
            "conversations": self._conversations.state(),
            "recent": self._recent.state(),
            "weights": self._weights or {},
            "online": {"edge": np.array([self._edge]), "steps": count_array(self._training_steps)},
        }
        return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self._tables.restore(part(state, "tables."))
        self._trainer = None
        online = part(state, "online.")
        self._edge = float(checked(online, "edge", np.float64, (1,))[0])
        self._training_steps = checked_count(online, "steps")
        weights = part(state, "weights.") or None
        if weights is not None:
            self._runners.check(weights)
        self._use(weights)

    def _restore_instant(self, state: dict[str, np.ndarray]) -> None:
        self._conversations.restore(part(state, "conversations."))
        self._recent.restore(part(state, "recent."))
