"""The default: a residual-life table with its prompt score, and a network, pooled.

The members share one table and one prompt score:

* the network: an LSTM's corrections of the table, whole and by half;
* the table alone, which is ``survival``.

:mod:`~sagellm_lifetime.networks.pool` weighs them by what predicted better. A network is trained
in :meth:`AutoModel.fit` where PyTorch is installed and the history is long enough, and used if it
predicts better on rows that were held out. Without it the model is ``survival``, and costs as much.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.extras import is_installed
from sagellm_lifetime.core.grid import BINS, EDGES
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.evidence import Evidence, SequenceEvidence
from sagellm_lifetime.features.hidden_state import read_hidden
from sagellm_lifetime.models.base import Feedback, Progress
from sagellm_lifetime.models.context import Context, ObservedRequest
from sagellm_lifetime.models.hidden_score import HiddenScore
from sagellm_lifetime.models.prompt_score import PromptScore
from sagellm_lifetime.models.residual_life import ResidualLife
from sagellm_lifetime.models.shrinkage import INSIDE, Hazards
from sagellm_lifetime.networks.head import base_logits, corrections_by_bin, hazard_steps
from sagellm_lifetime.networks.lstm import LSTMModel
from sagellm_lifetime.networks.pool import Pool
from sagellm_lifetime.networks.serving import Runner

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.features.name_keys import NameKeys

LEAST_ROWS: Final = 2000
"""Rows from which on a network is trained; a shorter history has too few held-out rows to tell."""
LEAST_GAIN: Final = 0.005
"""Nats per sequence by which a network must predict held-out rows better to be used."""
_SHARES: Final[np.ndarray] = np.array([[1.0], [0.5]])
"""Shares of the network's corrections, a member each."""
_TABLE: Final = 2
_START: Final = (0.5, 0.25, 0.25)
"""Weights of the members before anything was learned."""
_KINDS: Final = 4
_SCORED_EVERY: Final = 8
"""Completions of which one moves the weights in service, since this runs all members."""
_MOST_SCORED: Final = 4
"""Maximum number of answers of one completion that do."""
_LOG: Final = logging.getLogger(__name__)


class AutoModel(LSTMModel):
    """Pool of a residual-life table and a network that corrects it, by what predicts better.

    Args:
        hidden_size: width of each layer of the network.
        num_layers: stacked layers.
        online: ``"off"`` leaves the network as fitted; the table, the prompt score and the weights
            of the pool always learn. ``"inline"`` as in
            :class:`~sagellm_lifetime.networks.model.NetworkModel`.
        options: options of :class:`~sagellm_lifetime.networks.model.NetworkModel`.

    Attributes:
        decision: what :meth:`fit` decided about the network, and why; empty before.
    """

    name = "auto"

    def __init__(
        self, hidden_size: int = 128, num_layers: int = 2, *, online: str = "off", **options: Any
    ) -> None:
        super().__init__(hidden_size, num_layers, online=online, **options)
        self.pool = Pool(_START, _KINDS)
        self.decision = ""

    @property
    def reads_content(self) -> bool:
        """Return True if there is a network, or may be one; without it prompts alone are read."""
        return self.runner is not None or self.options["online"] != "off"

    # -- predicting --------------------------------------------------------------------------

    def observe(self, request: ObservedRequest) -> Evidence:  # type: ignore[override]
        """Return the evidence of a network, or that of ``survival`` without one.

        Raises:
            RequestError: the request cannot be used.
        """
        if self.reads_content:
            return super().observe(request)
        features, terms = self.prompts.scored(request)
        hidden = read_hidden(request.request)
        return Evidence(features, request.session, terms=terms, hidden=hidden)

    def absorb(self, evidence: Evidence, request: PredictionRequest) -> Evidence | None:  # type: ignore[override]
        """Return evidence with chunks and readings that came since, or ``None`` without any."""
        if isinstance(evidence, SequenceEvidence):
            return super().absorb(evidence, request)
        hidden = read_hidden(request, evidence.hidden)
        return None if hidden is None else replace(evidence, hidden=hidden)

    def check(self, request: ObservedRequest) -> None:
        """Raise :class:`RequestError` for tokens or text that could not be read at any age."""
        if self.reads_content:
            super().check(request)
        else:
            self.observe(request)

    def hazards(self, evidence: Sequence[Evidence]) -> list[np.ndarray]:
        """Return rows of cumulative hazards; those with exact lengths are wide."""
        return [self._pooled_row(one) for one in evidence]

    def _pooled_row(self, evidence: Evidence) -> np.ndarray:
        table = self.table(evidence)
        if not isinstance(evidence, SequenceEvidence):
            return table.row
        self.note(evidence, table)
        if self.runner is None:
            return table.row
        steps = self._members(self.runner, evidence, table, (evidence.age, len(evidence.chunks)))
        return table.exact(hazard.from_steps(self.pool.pooled(steps, _kind(evidence))))

    @staticmethod
    def _members(
        runner: Runner, evidence: SequenceEvidence, table: Hazards, mark: tuple[int, int]
    ) -> np.ndarray:
        """Return the increments of the members' cumulative hazards, shape ``(M, BINS)``.

        Args:
            runner: the network.
            evidence: evidence of the sequence.
            table: hazards of the table for it.
            mark: age of an answer, and the number of chunks that it read.
        """
        age, chunks = mark
        by_bin = corrections_by_bin(runner(evidence.steps(chunks)), age)
        steps = np.empty((len(_START), BINS))
        steps[:_TABLE] = hazard_steps(_SHARES * by_bin + base_logits(table.padded[INSIDE]))
        steps[_TABLE] = -table.steps
        if age:
            over = int(np.searchsorted(EDGES[1:], age))
            steps[:_TABLE, :over] = steps[_TABLE, :over]
        return steps

    # -- learning ----------------------------------------------------------------------------

    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence: table, prompt score and weights at once."""
        if self.options["online"] == "off" or not isinstance(feedback.evidence, SequenceEvidence):
            self.count(feedback)
        else:
            super().learn(feedback)

    def count(self, feedback: Feedback) -> bool:
        """Learn all but the network; return True if common knowledge has learned it, too."""
        answers = []
        if feedback.replayed or not self.lessons % _SCORED_EVERY:
            answers = self._answers(feedback.evidence, feedback.length)
        is_fair = super().count(feedback)
        if is_fair:
            kind = _kind(feedback.evidence)
            for steps, age in answers:
                self.pool.learn(steps, kind, (age, feedback.length, feedback.censored))
        return is_fair

    def _answers(self, evidence: Evidence, length: int) -> list[tuple[np.ndarray, int]]:
        """Return what the members would answer before the sequence is counted, and the ages."""
        if self.runner is None or not isinstance(evidence, SequenceEvidence):
            return []
        marks = [mark for mark in evidence.marks if mark[0] < length]
        marks = marks[:: max(-(-len(marks) // _MOST_SCORED), 1)]
        answers = []
        for age, chunks, readings in marks:
            table = self.table(evidence, readings)
            answers.append((self._members(self.runner, evidence, table, (age, chunks)), age))
        return answers

    def fit(
        self,
        older: pl.DataFrame,
        newest: pl.DataFrame,
        context: Context,
        progress: Progress | None,
    ) -> None:
        """Fill the table, and train the network where that is possible and pays.

        :attr:`decision` says what was decided; it is logged, too.
        """
        self.decision = _obstacle(len(older))
        if not self.decision:
            super().fit(older, newest, context, progress)
            self.decision = self._decide()
        if self.runner is None:
            # As survival does it, which chooses the weights of its levels on more rows.
            parts = Context(context.parts, context.keys) if self.training else context
            self.tables = ResidualLife()
            self.prompts = PromptScore()
            self.hidden = HiddenScore()
            self.fit_part(older, parts)
        _LOG.info("auto: %s", self.decision)

    def train_on(
        self,
        sample: pl.DataFrame,
        newest: pl.DataFrame,
        keys: NameKeys,
        progress: Progress | None,
    ) -> None:
        """Train the network on rows that the table has learned, where that is possible and pays.

        :attr:`decision` says what was decided.
        """
        self.decision = _obstacle(len(sample))
        if not self.decision:
            super().train_on(sample, newest, keys, progress)
            self.decision = self._decide()

    def _decide(self) -> str:
        if not self.training:
            return "no network: nothing to correct"
        before, after = self.training["loss_before"], self.training["loss"]
        figures = f"{before:.3f} nats per held-out sequence with the table, {after:.3f} with it"
        if before - after < LEAST_GAIN:
            self.use(None)
            return f"no network: {figures}"
        return f"a network: {figures}"

    def merge(self, *others: Self) -> None:
        """Add what tables and prompt scores have learned, choose a network, average the weights."""
        super().merge(*others)
        self.pool.merge([model.pool for model in others])

    # -- state -------------------------------------------------------------------------------

    def counts(self) -> dict[str, Any]:
        """Return counts of online learning, and the network's weight in the pool's first band."""
        share = float(self.pool.of(_KINDS)[0, :_TABLE].sum())
        return {**super().counts(), "network_share": share if self.runner is not None else 0.0}

    def state(self) -> Arrays:
        """Return the state of the network model, and the weights of the pool."""
        pool = {f"pool.{key}": value for key, value in self.pool.state().items()}
        return {**super().state(), **pool}

    def restore(self, state: Arrays) -> None:
        """Replace the learned state. Raises :class:`ValueError` for arrays that do not fit."""
        super().restore(state)
        self.pool.restore(part(state, "pool."))


def _obstacle(rows: int) -> str:
    """Return why no network can be trained on so many rows here, empty if one can."""
    if rows < LEAST_ROWS:
        return f"no network: {rows:,} rows to train on, {LEAST_ROWS:,} needed"
    if not is_installed("torch"):
        return "no network: training one needs pip install 'isagellm-lifetime[train]'"
    return ""


def _kind(evidence: Evidence) -> int:
    """Return the kind of a request: whether its prompt has a score, and whether it is named."""
    features = evidence.features
    is_named = bool(evidence.session or features.client_key)
    return 2 * (features.prompt_score is not None) + is_named
