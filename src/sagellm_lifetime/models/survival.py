"""Residual life by hierarchical Kaplan–Meier: the dependable default when nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays, part
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.evidence import Evidence
from sagellm_lifetime.models.base import Feedback, LengthModel, Progress
from sagellm_lifetime.models.context import CONVERSATIONS, Context
from sagellm_lifetime.models.residual_life import ResidualLife

if TYPE_CHECKING:
    import polars as pl

_MOST_NODES: Final = 10**8


class SurvivalModel(LengthModel):
    """Session → prompt length → max_length → client → model → all requests.

    Each level is shrunk towards the coarser one, by as much as has been right so far. It learns
    from every completion at once and needs no training; see ``models.residual_life``.

    Args:
        max_nodes: nodes kept at most, but never fewer than 64 (3.4 kB each); those that came once
            go first, then those with little history.
        options: of :class:`~sagellm_lifetime.models.base.LengthModel`.
    """

    name = "survival"
    context = (CONVERSATIONS,)

    def __init__(self, *, max_nodes: int = 20_000, **options: Any) -> None:
        super().__init__(**options)
        self.options["max_nodes"] = as_option("max_nodes", max_nodes, 1, _MOST_NODES)
        self.tables = ResidualLife(self.options["max_nodes"])

    def hazards(self, evidence: Sequence[Evidence]) -> list[np.ndarray]:
        """Return rows of cumulative hazards; those with exact lengths are wide."""
        row = self.tables.row
        return [row(each.features, each.session) for each in evidence]

    def learn(self, feedback: Feedback) -> None:
        """Learn from one ended sequence."""
        evidence = feedback.evidence
        self.tables.learn(
            evidence.features, evidence.session, feedback.length, censored=feedback.censored
        )

    def fit(
        self,
        older: pl.DataFrame,
        newest: pl.DataFrame,
        context: Context,
        progress: Progress | None,
    ) -> None:
        """Count all rows at once; the newest of them choose the weights."""
        from sagellm_lifetime.models.history_rows import completions

        rows = list(completions(older, context, None))
        self.tables.learn_many(
            [observed.features for observed, _, _ in rows],
            [observed.session for observed, _, _ in rows],
            np.array([length for _, length, _ in rows], dtype=np.int64),
            np.array([censored for _, _, censored in rows], dtype=bool),
        )

    def state(self) -> Arrays:
        """Return what was learned."""
        return {f"tables.{key}": value for key, value in self.tables.state().items()}

    def restore(self, state: Arrays) -> None:
        """Replace what was learned. Raises :class:`ValueError` for arrays that do not fit."""
        self.tables.restore(part(state, "tables."))

    def release(self) -> None:
        """Free the nodes in pieces, for all at once take milliseconds."""
        self.tables.dissolve()
