"""Residual life by hierarchical Kaplan–Meier, the default without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.features.hidden_state import read_hidden
from sagellm_lifetime.models.base import Feedback, LengthModel, Progress
from sagellm_lifetime.models.context import CONVERSATIONS, Context, ObservedRequest
from sagellm_lifetime.models.hidden_score import HiddenScore
from sagellm_lifetime.models.merging.prompts import merge_prompts
from sagellm_lifetime.models.merging.tables import merge_tables, without_hazards
from sagellm_lifetime.models.prompt_score import PromptScore, scored_completions
from sagellm_lifetime.models.residual_life import LEAST_NODES, ResidualLife

if TYPE_CHECKING:
    import polars as pl

_MOST_NODES: Final = 10**8


class SurvivalModel(LengthModel):
    """Residual life: session → prompt score → prompt length → cap → client → model → all requests.

    Each level is shrunk towards the coarser one, by weights that are chosen by their past
    likelihood. The served model's hidden state, where there is one, is laid over them
    (``models.hidden_score``). It learns from every completion at once and needs no training; see
    ``models.residual_life``.

    Args:
        max_nodes: maximum number of nodes (3.4 kB each), at least 64; nodes with one completion are
            evicted first, then those with few.
        options: options of :class:`~sagellm_lifetime.models.base.LengthModel`.

    Raises:
        RequestError: an option of another type, or out of its range.
    """

    name = "survival"
    context = (CONVERSATIONS,)

    def __init__(self, *, max_nodes: int = 20_000, **options: Any) -> None:
        super().__init__(**options)
        self.options["max_nodes"] = as_option("max_nodes", max_nodes, 1, _MOST_NODES)
        self.tables = ResidualLife(self.options["max_nodes"])
        self._most_nodes = max(self.options["max_nodes"], LEAST_NODES)
        self.prompts = PromptScore()
        self.hidden = HiddenScore()

    def observe(self, request: ObservedRequest) -> Evidence:
        """Return the features of a request with its prompt score, and its hashed terms.

        Raises:
            RequestError: the token ids cannot be read.
        """
        features, terms = self.prompts.scored(request)
        hidden = read_hidden(request.request)
        return Evidence(features, request.session, terms=terms, hidden=hidden)

    def absorb(self, evidence: Evidence, request: PredictionRequest) -> Evidence | None:
        """Return evidence with a new reading of the hidden state, or ``None`` without one.

        Raises:
            RequestError: the hidden state cannot be read.
        """
        hidden = read_hidden(request, evidence.hidden)
        return None if hidden is None else replace(evidence, hidden=hidden)

    def hazards(self, evidence: Sequence[Evidence]) -> list[np.ndarray]:
        """Return rows of cumulative hazards; those with exact lengths are wide."""
        known, applied = self.tables.known, self.hidden.applied
        return [applied(known(one.features, one.session), one.hidden).row for one in evidence]

    def learn(self, feedback: Feedback) -> None:
        """Learn from one finished sequence."""
        evidence = feedback.evidence
        completed = evidence.features, evidence.session, feedback.length
        hidden, above = evidence.hidden, None
        if hidden is not None:
            above = self.tables.known(evidence.features, evidence.session)
        is_fair = self.tables.learn(*completed, censored=feedback.censored)
        if is_fair:
            self.prompts.learn_served(feedback)
            self.hidden.learn_served(feedback, above)

    def fit(
        self,
        older: pl.DataFrame,
        newest: pl.DataFrame,
        context: Context,
        progress: Progress | None,
    ) -> None:
        """Count all rows of ``older`` at once; the newest of them choose the weights."""
        rows = scored_completions(self.prompts, older, context, None)
        self.hidden.fit_history(older, rows.lengths, rows.censored, learns_shape=True)
        self.tables.learn_many(*rows)

    def finish_fit(self) -> None:
        """Fit both scores on the replayed rows, too."""
        self.prompts.finish()
        self.hidden.finish()

    def merge(self, *others: Self) -> None:
        """Add the counts of equal nodes, and what the prompt scores have learned."""
        merge_tables(self.tables, [model.tables for model in others], self._most_nodes)
        merge_prompts(self.prompts, [model.prompts for model in others])
        self.hidden.merge([model.hidden for model in others])

    def sums(self) -> Arrays:
        """Return the state without the hazards of the tree."""
        tables = without_hazards(self.tables.state())
        return {**self.state(), **{f"tables.{name}": array for name, array in tables.items()}}

    @property
    def changes(self) -> int:
        """Return how many changes of the workload the table has noticed."""
        return self.tables.regimes.changes

    def drift(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the generations of the table (:mod:`~sagellm_lifetime.models.regimes`)."""
        return self.tables.regimes.summary(names)

    def state(self) -> Arrays:
        """Return the arrays of the tree and of both scores."""
        parts = {
            "tables": self.tables.state(),
            "prompts": self.prompts.state(),
            "hidden": self.hidden.state(),
        }
        return {f"{name}.{key}": value for name, one in parts.items() for key, value in one.items()}

    def restore(self, state: Arrays) -> None:
        """Replace the tree. Raises :class:`ValueError` for arrays that do not fit."""
        self.tables.restore(part(state, "tables."))
        self.prompts.restore(part(state, "prompts."))
        self.hidden.restore(part(state, "hidden."))

    def release(self) -> None:
        """Free the nodes in pieces, since freeing all at once takes milliseconds."""
        self.tables.dissolve()
