"""The view of a sequence that an advisor gets."""

from __future__ import annotations

from typing import Protocol

from sagellm_lifetime.core.protocol import PredictionRequest


class SequenceView(Protocol):
    """One sequence in its present state; every attribute is read from the engine at each access."""

    @property
    def id(self) -> str:
        """Return the id that events use for it."""

    @property
    def tokens(self) -> int:
        """Return the tokens of prompt and answer so far."""

    @property
    def generated(self) -> int:
        """Return the tokens of the answer so far."""

    @property
    def arrival(self) -> float:
        """Return its arrival time, in seconds on the engine's clock."""

    @property
    def priority(self) -> int:
        """Return its priority class; lower goes first."""

    @property
    def preemptions(self) -> int:
        """Return the number of its preemptions."""

    @property
    def is_prefilling(self) -> bool:
        """Return True while part of its prompt is not computed yet."""

    def cached_tokens(self) -> int:
        """Return the number of tokens whose KV need not be computed (again).

        For a waiting sequence, the tokens in the prefix cache; for a running one, the tokens in
        blocks that other sequences share, which survive its preemption.
        """

    def arrival_request(self) -> PredictionRequest:
        """Return the prediction request of the sequence as it was when it arrived."""

    def updated_request(self) -> PredictionRequest:
        """Return the prediction request with the tokens generated since its arrival."""
