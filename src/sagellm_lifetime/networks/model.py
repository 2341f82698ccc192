"""Base of the LSTM and the Transformer: a residual-life table, corrected by a network.

The table learns from every completion at once; the network reads the sequence of evidence and
corrects the hazards of the table (see ``networks.head``). An untrained network changes nothing. The
network runs when there is new evidence; otherwise a prediction reads the stored row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.checked import checked, checked_count, count_array
from sagellm_lifetime.core.errors import MissingExtraError, RequestError, shown
from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.evidence import (
    Evidence,
    SequenceEvidence,
    check_content,
    new_chunks,
    read_evidence,
    with_chunks,
)
from sagellm_lifetime.features.hidden_state import read_hidden
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.models.base import Feedback, LengthModel, Progress
from sagellm_lifetime.models.context import CONVERSATIONS, RECENT, Context, ObservedRequest
from sagellm_lifetime.models.hidden_score import HiddenScore
from sagellm_lifetime.models.merging.prompts import merge_prompts
from sagellm_lifetime.models.merging.tables import merge_tables, without_hazards
from sagellm_lifetime.models.prompt_score import PromptScore, scored_completions
from sagellm_lifetime.models.residual_life import ResidualLife
from sagellm_lifetime.models.shrinkage import INSIDE, Hazards
from sagellm_lifetime.networks.champion import SHARES, Share, Trial
from sagellm_lifetime.networks.graphs import Weights
from sagellm_lifetime.networks.head import (
    base_logits,
    corrected_row,
    corrections_by_bin,
    log_losses,
)
from sagellm_lifetime.networks.samples import ReplayStore, Sample
from sagellm_lifetime.networks.serving import Runner, Runners
from sagellm_lifetime.networks.trainer import Log, Trainer
from sagellm_lifetime.networks.training_samples import History, Tables

if TYPE_CHECKING:
    import polars as pl

MAX_TRAINED: Final = 40_000
"""Maximum number of rows that a network is trained on, the newest; the table learns all."""
_BURN_IN: Final = 0.05
"""First share of the history that only the table learns, since its first answers are poor."""
_ONLINE_BATCH: Final = 64
_ONLINE_EVERY: Final = 8
"""Completions between two rounds of gradient steps."""
_ONLINE_START: Final = 16
_SCORED_EVERY: Final = 8
"""Completions of which one is scored where nothing is trained: a score runs the network, which
takes as long as a first prediction."""
_MOST_SCORED: Final = 4
"""Maximum number of answers of one completion that are scored."""
_MOST_REFUSED: Final = 3
"""Challengers refused in a row after which training starts again from the champion."""
_LARGEST_LOSS: Final = 1e9
_MOST_EPOCHS: Final = 10_000
WIDEST: Final = 4096
"""Maximum width of a layer: a wider network does not fit into a checkpoint (1 GiB)."""
DEEPEST: Final = 64
"""Maximum number of layers of a network."""
_MOST_NODES: Final = 20_000
"""Nodes of a merged table, as many as one has by itself."""
_NO_CORRECTION: Final = np.zeros(BINS)


class NetworkModel(LengthModel):
    """Base of the models with a network.

    Args:
        online: ``"inline"`` takes gradient steps inside :meth:`learn`, a few every 8 completions
            (10–40 ms per round; needs PyTorch, without it only the table learns); ``"off"``
            leaves the weights as fitted. The table always learns.
        epochs: maximum number of passes over the history in :meth:`fit`.
        options: options of :class:`~sagellm_lifetime.models.base.LengthModel`.

    Raises:
        RequestError: an option of another type, or out of its range.
    """

    context = (CONVERSATIONS, RECENT)
    runners: Runners
    """Factory of runners of the network; a subclass sets it."""

    def __init__(self, *, online: str = "inline", epochs: int = 12, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(online, str) or online not in ("inline", "off"):
            raise RequestError(f"online must be 'inline' or 'off', got {shown(online)}")
        self.options.update(online=online, epochs=as_option("epochs", epochs, 1, _MOST_EPOCHS))
        self.tables = ResidualLife()
        self.prompts = PromptScore()
        self.hidden = HiddenScore()
        self.weights: Weights | None = None
        """Weights of the network in use, the champion's; ``None`` before it was trained. Changed by
        :meth:`use`."""
        self.runner: Runner | None = None
        """Runner of the network; ``None`` before it was trained."""
        self.share = Share()
        """Share of the corrections that is applied, 0 if the table predicts better without them."""
        self.training: dict[str, float] = {}
        """Held-out losses before and after the fit, nats per sequence."""
        self.log: Log | None = None
        """Function that is called with the losses of a fit, as TensorBoard's ``add_scalar``."""
        self._trainer: Trainer | None = None
        self._store = ReplayStore(seed=self.options["seed"])
        self._training_steps = 0
        self._trial: Trial | None = None
        """Scores of the challenger; ``None`` without one."""
        self._accepted = self._refused = self._refused_in_row = 0

    @property
    def reads_content(self) -> bool:
        """Return True: generated tokens are read in chunks."""
        return True

    @abstractmethod
    def build(self) -> Callable[[], Any]:
        """Return a function that makes the PyTorch network."""

    # -- predicting --------------------------------------------------------------------------

    def observe(self, request: ObservedRequest) -> SequenceEvidence:
        """Return evidence of recent completions, the request, and the tokens generated so far.

        Raises:
            RequestError: the request cannot be used.
        """
        evidence = self.read(request)
        return self.absorb(evidence, request.request) or evidence

    def read(self, request: ObservedRequest) -> SequenceEvidence:
        """Return evidence of recent completions and the request, without generated tokens."""
        features, terms = self.prompts.scored(request)
        hidden = read_hidden(request.request)
        return read_evidence(
            request.request, request.session, features, request.recent, terms, hidden
        )

    def absorb(
        self, evidence: SequenceEvidence, request: PredictionRequest
    ) -> SequenceEvidence | None:
        """Return evidence with chunks and readings that came since, or ``None`` without any."""
        hidden, new = read_hidden(request, evidence.hidden), new_chunks(evidence, request)
        if hidden is not None:
            evidence = replace(evidence, hidden=hidden)
        elif new is None:
            return None
        return evidence if new is None else with_chunks(evidence, new)

    def check(self, request: ObservedRequest) -> None:
        """Raise :class:`RequestError` for tokens or text that could not be read at any age."""
        self.read(request)
        check_content(request.request)

    def hazards(self, evidence: Sequence[SequenceEvidence]) -> list[np.ndarray]:
        """Return rows of cumulative hazards; those with exact lengths are wide.

        The table's logits and the age are noted in the evidence, for :meth:`learn`.
        """
        return [self._row(one) for one in evidence]

    def _row(self, evidence: SequenceEvidence) -> np.ndarray:
        table = self.table(evidence)
        base = self.note(evidence, table)
        share = self.share.value
        if self.runner is None or not share:
            return table.row
        by_bin = corrections_by_bin(self.runner(evidence.steps()), evidence.age)
        return table.exact(corrected_row(share * by_bin, base))

    def table(self, evidence: Evidence, readings: int | None = None) -> Hazards:
        """Return the hazards of the table, with the first readings of the hidden state (or all)."""
        known = self.tables.known(evidence.features, evidence.session)
        hidden = evidence.hidden
        return self.hidden.applied(known, hidden and hidden.first(readings))

    @staticmethod
    def note(evidence: SequenceEvidence, table: Hazards) -> np.ndarray:
        """Note an answer in the evidence for :meth:`learn`; return the table's logits."""
        base = base_logits(table.padded[INSIDE])
        readings = len(evidence.hidden.readings) if evidence.hidden is not None else 0
        evidence.bases[readings] = base
        mark = (evidence.age, len(evidence.chunks), readings)
        if not evidence.marks or evidence.marks[-1] != mark:
            evidence.marks.append(mark)
        return base

    # -- learning ----------------------------------------------------------------------------

    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence: the table at once, the network every few of them."""
        evidence: SequenceEvidence = feedback.evidence
        is_fair = self.count(feedback)
        is_serving_only = self.options["online"] == "off" and not feedback.replayed
        if is_fair and not (is_serving_only and self.lessons % _SCORED_EVERY):
            samples = _samples(feedback)
            self._score(samples)
            if self.options["online"] != "off":
                client = evidence.features.client_key
                account = client if self.tables.shares.is_established(client) else 0
                for sample in samples:
                    self._store.add(sample, account)
        if self.options["online"] == "inline" and not feedback.replayed:
            self._train_inline()

    def count(self, feedback: Feedback) -> bool:
        """Count a completion in the table; return True if common knowledge has learned it, too."""
        evidence, above = feedback.evidence, None
        if evidence.hidden is not None:
            above = self.tables.known(evidence.features, evidence.session)
        is_fair = self.tables.learn(
            evidence.features, evidence.session, feedback.length, censored=feedback.censored
        )
        if is_fair:
            self.prompts.learn_served(feedback)
            self.hidden.learn_served(feedback, above)
        return is_fair

    def _score(self, samples: Sequence[Sample]) -> None:
        """Score the network in use, and its challenger, on a completion not trained on yet."""
        if not samples or (self.runner is None and self._trial is None):
            return
        scored = samples[:: -(-len(samples) // _MOST_SCORED)]
        losses = _losses(self.runner, scored)
        if self.runner is not None:
            self.share.add(losses)
        trial = self._trial
        if trial is None:
            return
        trial.add(losses.item(0), _losses(trial.runner, scored))
        is_accepted = trial.verdict()
        if is_accepted is None:
            return
        self._trial = None
        if is_accepted:
            self.weights, self.runner, self.share = trial.weights, trial.runner, trial.share
            self._accepted += 1
            self._refused_in_row = 0
        else:
            self._refuse()

    def _refuse(self) -> None:
        """Count a challenger that is not used; after a few, train from the champion again."""
        self._refused += 1
        self._refused_in_row += 1
        if self._refused_in_row >= _MOST_REFUSED:
            self._trainer, self._refused_in_row = None, 0

    def _train_inline(self) -> None:
        completions = self.lessons + 1
        if completions % _ONLINE_EVERY or len(self._store) < _ONLINE_START:
            return
        if self._trainer is None:
            rate = 3e-3 if self.weights is None else 3e-4
            try:
                self._trainer = self._make_trainer(self.weights, learning_rate=rate)
            except MissingExtraError:
                self.options["online"] = "off"
                return
        rounds = 8 if completions < 256 and not self.training else 2
        for _ in range(rounds):
            self._trainer.step(self._store.draw(_ONLINE_BATCH))
        self._training_steps += rounds
        if self._trial is None:
            self._challenge(self._trainer.weights())

    def _challenge(self, weights: Weights) -> None:
        """Begin a trial of new weights. Weights that cannot be served are refused at once."""
        try:
            self.runners.check(weights)
        except ValueError:
            self._refuse()
        else:
            self._trial = Trial(weights, self.runners(weights))

    def _make_trainer(self, weights: Weights | None, **options: Any) -> Trainer:
        try:
            build = self.build()
        except ImportError as error:
            raise MissingExtraError("training a network", "train") from error
        return Trainer(build, weights, seed=self.options["seed"], **options)

    def use(self, weights: Weights | None) -> None:
        """Use these weights from now on, or the table without corrections for ``None``.

        Raises:
            ValueError: the weights are of another network.
        """
        self.weights = weights
        self.runner = None if weights is None else self.runners(weights)

    def fit(
        self,
        older: pl.DataFrame,
        newest: pl.DataFrame,
        context: Context,
        progress: Progress | None,
    ) -> None:
        """Fill the table in time order, and train the network to correct its earlier answers.

        Raises:
            MissingExtraError: PyTorch is not installed.
        """
        trainer = self._make_trainer(None)
        rng = np.random.default_rng(self.options["seed"])
        rows = scored_completions(self.prompts, older, Context(), None)
        scores = [one.prompt_score for one in rows.features]
        hidden = self.hidden.fit_history(older, rows.lengths, rows.censored)
        history = History(self.read, Tables(self.tables, self.hidden), context, rng)
        skipped = older.head(max(len(older) - MAX_TRAINED, round(len(older) * _BURN_IN)))
        for _ in history.samples(skipped, None, scores, hidden):
            pass
        trained, rest = older.slice(len(skipped)), slice(len(skipped), None)
        samples = list(history.samples(trained, progress, scores[rest], hidden[rest]))
        copies = Tables(deepcopy(self.tables), deepcopy(self.hidden))
        trial = History(self.read, copies, deepcopy(context), rng)
        held_out = list(trial.samples(newest, progress))
        if not samples:
            # Every sequence ended at once, so there is nothing to correct.
            return
        self.training = trainer.fit(
            samples, held_out, epochs=self.options["epochs"], progress=progress, log=self.log
        )
        self.use(trainer.weights())

    def finish_fit(self) -> None:
        """Fit both scores on the replayed rows, too."""
        self.prompts.finish()
        self.hidden.finish()

    def fit_part(self, rows: pl.DataFrame, context: Context) -> None:
        """Count all rows in the table and fit the prompt score, without a network."""
        scored = scored_completions(self.prompts, rows, context, None)
        self.hidden.fit_history(rows, scored.lengths, scored.censored, learns_shape=True)
        self.tables.learn_many(*scored)

    def train_on(
        self,
        sample: pl.DataFrame,
        newest: pl.DataFrame,
        keys: NameKeys,
        progress: Progress | None,
    ) -> None:
        """Train the network on a sample of rows that the table has learned.

        Args:
            sample: rows in time order.
            newest: later rows, which decide when to stop.
            keys: keys of names of the table.
            progress: called with the name of the step and the share done, or ``None``.

        Raises:
            MissingExtraError: PyTorch is not installed.
        """
        trainer = self._make_trainer(None)
        rng = np.random.default_rng(self.options["seed"])
        copies = Tables(deepcopy(self.tables), deepcopy(self.hidden))
        history = History(self.read, copies, Context(self.context, keys), rng)
        samples = list(history.samples(sample, progress))
        held_out = list(history.samples(newest, progress))
        if samples:
            self.training = trainer.fit(
                samples, held_out, epochs=self.options["epochs"], progress=progress, log=self.log
            )
            self.use(trainer.weights())

    # -- merging -----------------------------------------------------------------------------

    def merge(self, *others: Self) -> None:
        """Add what the tables and prompt scores have learned; choose one network.

        Weights cannot be added. The network in use afterwards is the one whose corrections have
        lowered the recent losses the most, relative to those of its own table alone, each on the
        completions of its own server; of equally good ones that with the most steps of training.
        """
        models = (self, *others)
        best = max(models, key=_network_rank)
        merge_tables(self.tables, [model.tables for model in others], _MOST_NODES)
        merge_prompts(self.prompts, [model.prompts for model in others])
        self.hidden.merge([model.hidden for model in others])
        weights, losses = best.weights, best.share.losses.copy()
        if weights is not self.weights:
            self.use(weights)
        self.share.losses = losses
        self._training_steps = max(model._training_steps for model in models)
        self._accepted = sum(model._accepted for model in models)
        self._refused = sum(model._refused for model in models)
        self._trainer = self._trial = None

    def sums(self) -> Arrays:
        """Return the state without the hazards of the tree."""
        tables = without_hazards(self.tables.state())
        return {**self.state(), **{f"tables.{name}": array for name, array in tables.items()}}

    def take_training(self, other: Self) -> None:
        """Take over the network of another model, with its losses and counts."""
        if other.weights is not self.weights:
            self.use(other.weights)
        self.share.losses = other.share.losses.copy()
        self._training_steps = other._training_steps
        self._accepted, self._refused = other._accepted, other._refused

    def continue_from(self, replaced: Self) -> None:
        """Keep the samples of a replaced model, and its training if its network is still used."""
        self._store = replaced._store
        self._accepted, self._refused = replaced._accepted, replaced._refused
        self._training_steps = replaced._training_steps
        if _digest(self.weights) == _digest(replaced.weights):
            self.share = replaced.share
            self._trainer, self._trial = replaced._trainer, replaced._trial
            self._refused_in_row = replaced._refused_in_row

    # -- replacement -------------------------------------------------------------------------

    def successor(self) -> Self:
        """Return an unfitted model that shares the sessions built for this one."""
        model = self.new()
        model.runners = self.runners
        model.training, model.log = self.training, self.log
        return model

    def prepare(self) -> None:
        """Build two sessions: for the network in use, and for its successor."""
        self.runners.prepare(2 if self.runner is None else 1)

    def release(self) -> None:
        """Free the table in pieces."""
        self.tables.dissolve()

    # -- state -------------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """Return counts of online learning by name.

        They are the gradient steps, the challengers accepted and refused, and the share of the
        network's corrections that is applied.
        """
        return {
            "training_steps": self._training_steps,
            "weights_accepted": self._accepted,
            "weights_refused": self._refused,
            "network_share": self.share.value if self.runner is not None else 0.0,
        }

    @property
    def changes(self) -> int:
        """Return how many changes of the workload the table has noticed."""
        return self.tables.regimes.changes

    def drift(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the generations of the table (:mod:`~sagellm_lifetime.models.regimes`)."""
        return self.tables.regimes.summary(names)

    def state(self) -> Arrays:
        """Return the table, the weights, and the scores of online learning."""
        parts: dict[str, Arrays] = {
            "tables": self.tables.state(),
            "prompts": self.prompts.state(),
            "hidden": self.hidden.state(),
            "weights": self.weights or {},
            "online": {
                "losses": self.share.losses,
                "steps": count_array(self._training_steps),
                "accepted": count_array(self._accepted),
                "refused": count_array(self._refused),
            },
        }
        return {f"{part}.{k}": v for part, state in parts.items() for k, v in state.items()}

    def restore(self, state: Arrays) -> None:
        """Replace the learned state. Raises :class:`ValueError` for arrays that do not fit."""
        self.tables.restore(part(state, "tables."))
        self.prompts.restore(part(state, "prompts."))
        self.hidden.restore(part(state, "hidden."))
        self._trainer = self._trial = None
        online = part(state, "online.")
        limits = -1.0, _LARGEST_LOSS
        self.share.losses = checked(online, "losses", np.float64, (len(SHARES),), *limits).copy()
        self._training_steps = checked_count(online, "steps")
        self._accepted = checked_count(online, "accepted")
        self._refused = checked_count(online, "refused")
        weights = part(state, "weights.") or None
        if weights is not None:
            self.runners.check(weights)
        self.use(weights)


def _network_rank(model: NetworkModel) -> tuple[bool, float, int, str]:
    """Return a rank of a model's network: whether there is one, its gain, steps, digest."""
    alone = model.share.losses.item(-1)
    gain = 1.0 - model.share.losses.min().item() / alone if alone > 0.0 else 0.0
    return model.weights is not None, gain, model._training_steps, _digest(model.weights)


def _digest(weights: Weights | None) -> str:
    """Return a digest of weights; empty for none."""
    digest = sha256()
    for name, array in sorted((weights or {}).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest() if weights else ""


def _samples(feedback: Feedback) -> list[Sample]:
    """Return one sample per answer about a finished sequence, at the age of its prediction."""
    evidence: SequenceEvidence = feedback.evidence
    return [
        Sample(
            evidence.steps(chunks),
            evidence.bases[readings],
            age,
            feedback.length,
            feedback.censored,
        )
        for age, chunks, readings in evidence.marks
        if age < feedback.length
    ]


def _losses(runner: Runner | None, samples: Sequence[Sample]) -> np.ndarray:
    """Return the mean losses under each of ``SHARES``, those of the table without a runner."""
    total = np.zeros(len(SHARES))
    for steps, base, age, length, censored in samples:
        by_bin = _NO_CORRECTION if runner is None else corrections_by_bin(runner(steps), age)
        total += log_losses(by_bin, base, SHARES, (age, length, censored))
    return total / len(samples)
