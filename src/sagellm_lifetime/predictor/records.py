"""Records of finished sequences, and the interface of a queue for them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Completion(NamedTuple):
    """One finished sequence with its evidence and answers; it may be learned in another process.

    Attributes:
        evidence: evidence that the model had kept of the request.
        evidence_ages: ages at which there was new evidence, ascending, tokens.
        answers: the row computed from the evidence at each of these ages.
        cap: the latest ``max_length``, tokens; ``UNCAPPED`` for none.
        estimate: first prediction of the total length, tokens; -1 for none.
        confidence: confidence of the first prediction.
        length: generated tokens; a lower bound of the length if the sequence was cut off.
        seconds: time from arrival to finish.
        finish_reason: ``"stop"``, ``"length"``, ``"abort"`` or ``"error"``.
    """

    evidence: Any
    evidence_ages: list[int]
    answers: list[np.ndarray]
    cap: int
    estimate: int
    confidence: float
    length: int
    seconds: float
    finish_reason: str

    @property
    def censored(self) -> bool:
        """Return True if the length is only a lower bound."""
        return self.finish_reason != "stop"


class Answered(NamedTuple):
    """One answer and the outcome of its sequence.

    Attributes:
        row: cumulative hazards.
        start: age from which it was the answer, tokens.
        end: age up to which it was the answer, tokens.
        cap: the latest ``max_length``, tokens; ``UNCAPPED`` for none.
        length: total length, tokens.
        censored: True if the length is only a lower bound.
    """

    row: np.ndarray
    start: int
    end: int
    cap: int
    length: int
    censored: bool


class FeedbackQueue(Protocol):
    """Queue of completions that are learned elsewhere."""

    def take(self, completion: Completion) -> None:
        """Queue a completion within a microsecond: the predictor's lock is held."""

    def counts(self) -> dict[str, Any]:
        """Return the numbers of completions by state, for the metrics."""
