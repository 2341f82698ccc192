"""What a predictor keeps of a running sequence's answers, and what it is told when it ends."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np


class Completion(NamedTuple):
    """All that one ended sequence can teach; it may be learned in another process.

    Attributes:
        evidence: what the model had kept of the request.
        asked: ages at which new evidence came, ascending.
        answers: the row that followed from each.
        cap: ``max_length`` as it was said last.
        estimate, confidence: the first prediction of the total; -1 where none was given.
        length: tokens generated, at least so many where it was cut off.
        seconds: from arrival to finish.
    """

    evidence: Any
    asked: list[int]
    answers: list[np.ndarray]
    cap: int
    estimate: int
    confidence: float
    length: int
    seconds: float
    finish_reason: str

    @property
    def censored(self) -> bool:
        """Return whether the length is only a lower bound."""
        return self.finish_reason != "stop"


class Answered(NamedTuple):
    """A row, the ages from which and up to which it was the answer, and what came of it."""

    row: np.ndarray
    start: int
    end: int
    cap: int
    length: int
    censored: bool


class FeedbackQueue(Protocol):
    """Takes completions to be learned elsewhere."""

    def take(self, completion: Completion) -> None:
        """Queue a completion; called under the predictor's lock, so in a microsecond."""

    def counts(self) -> dict[str, Any]:
        """Return what became of the completions, for the metrics."""
