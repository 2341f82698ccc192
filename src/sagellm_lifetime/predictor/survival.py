"""Residual life by hierarchical Kaplan–Meier: the dependable default when nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import part
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.features.conversations import Conversations
from sagellm_lifetime.features.request import read_request
from sagellm_lifetime.features.rows import HistoryRequests
from sagellm_lifetime.history.prequential import censored
from sagellm_lifetime.models.residual_life import ResidualLife
from sagellm_lifetime.predictor.base import Predictor, Progress
from sagellm_lifetime.predictor.records import Completion, Evidence, Lesson

if TYPE_CHECKING:
    import polars as pl


_MOST_NODES: Final = 10**8


class SurvivalLifetimePredictor(Predictor):
    """Session → prompt length → max_length → client → model → all requests.

    Each level is shrunk towards the coarser one, by as much as has been right so far. It learns
    from every completion at once and needs no training; see ``models.residual_life``.

    Args:
        max_nodes: nodes kept at most, but never fewer than 64 (3.4 kB each); those that
            came once go first, then those with little history.
    """

    name = "survival"
    _STAYS = Predictor._STAYS | {"_conversations"}

    def __init__(self, *, max_nodes: int = 20_000, **options: Any) -> None:
        super().__init__(**options)
        self._options["max_nodes"] = as_option("max_nodes", max_nodes, 1, _MOST_NODES)
        self._tables = ResidualLife(self._options["max_nodes"])
        self._conversations = Conversations()

    def _read(self, request: PredictionRequest) -> Evidence:
        features = read_request(request)
        return Evidence(features, self._conversations.key(features))

    def _rows(self, evidence: Sequence[Evidence]) -> list[np.ndarray]:
        return [self._tables.row(each.features, each.session) for each in evidence]

    def _note(self, lesson: Lesson) -> None:
        super()._note(lesson)
        self._conversations.learn(lesson.evidence.features)

    def _learn(self, completion: Completion) -> None:
        evidence = completion.evidence
        self._tables.learn(
            evidence.features, evidence.session, completion.length, censored=completion.censored
        )

    def _fit(self, older: pl.DataFrame, newest: pl.DataFrame, progress: Progress | None) -> None:
        self._tables = ResidualLife(self._options["max_nodes"])
        self._conversations = Conversations()
        features, sessions = [], []
        requests = HistoryRequests(older)
        for row in range(len(older)):
            each = read_request(requests.request(row))
            features.append(each)
            sessions.append(self._conversations.key(each))
            self._conversations.learn(each)
        self._tables.learn_many(
            features, sessions, older["actual_length"].to_numpy(), censored(older)
        )

    def _state(self) -> dict[str, np.ndarray]:
        return {
            **{f"tables.{k}": v for k, v in self._tables.state().items()},
            **{f"conversations.{k}": v for k, v in self._conversations.state().items()},
        }

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self._tables.restore(part(state, "tables."))

    def _restore_instant(self, state: dict[str, np.ndarray]) -> None:
        self._conversations.restore(part(state, "conversations."))
