"""What an advisor may see of a sequence."""

from __future__ import annotations

from typing import Protocol

from sagellm_lifetime.core.protocol import PredictionRequest


class SequenceView(Protocol):
    """One sequence as it is now: every attribute is read anew from the engine."""

    @property
    def id(self) -> str:
        """Return the name under which events speak of it."""

    @property
    def tokens(self) -> int:
        """Return the tokens of prompt and answer so far."""

    @property
    def generated(self) -> int:
        """Return the tokens of the answer so far."""

    @property
    def arrival(self) -> float:
        """Return when it came, in seconds on the engine's clock."""

    @property
    def priority(self) -> int:
        """Return its class; lower goes first."""

    @property
    def preemptions(self) -> int:
        """Return how often it was preempted."""

    @property
    def is_prefilling(self) -> bool:
        """Return True while a part of its prompt is still to be computed."""

    def cached_tokens(self) -> int:
        """Return the tokens that need no computing (again).

        Of a waiting sequence those that the prefix cache has, of a running one those whose memory
        others hold, too, so that it stays when the sequence is preempted.
        """

    def question(self) -> PredictionRequest:
        """Return it as a question to a predictor, as it was when it arrived."""

    def progress(self) -> PredictionRequest:
        """Return what it has generated since as a question to a predictor."""
