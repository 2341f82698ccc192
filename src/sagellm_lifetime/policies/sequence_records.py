"""The state of a plan's advisor: one record per sequence, and averages over the arrivals."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sagellm_lifetime.policies.sequence_view import SequenceView

_REMEMBERED: Final = 2.0
"""Time constant of the average queue, in durations of a typical answer."""
_TYPICAL: Final = 0.02
"""Weight of the newest arrivals in the averages of a sequence's expected service."""
_NONE: Final = np.zeros(0)


class SequenceRecord:
    """One sequence: its view, its place in the queue, and its share of the predicted memory."""

    __slots__ = (
        "age",
        "allowed",
        "area",
        "cached",
        "confidence",
        "is_predicted",
        "is_running",
        "joined",
        "looked",
        "place",
        "survival",
        "terms",
        "view",
        "waited",
    )

    def __init__(self, view: SequenceView, *, is_predicted: bool = True) -> None:
        self.view = view
        self.is_predicted = is_predicted
        """False for a step of beam search, which is neither predicted nor averaged."""
        self.place = np.inf
        self.joined = view.arrival
        self.waited = 0.0
        """Seconds that it waited before it joined the queue last."""
        self.allowed = 0.0
        """Steps for which it may be overtaken, from its own expected service."""
        self.area = 0.0
        self.cached = 0
        """Tokens whose KV was cached at the last look."""
        self.is_running = False
        self.survival = self.terms = _NONE
        self.confidence = 1.0
        self.looked = 0
        """Step of the last look."""
        self.age = -1
        """Tokens generated at a look taken before its first place in the queue; -1 without one."""


class TypicalSequence:
    """Moving averages over the arrivals: tokens to generate, memory-time, and service in the unit
    of the order. The ratio of the last two gives patience the same meaning in every order."""

    def __init__(self) -> None:
        self.tokens = self.area = self.service = 0.0

    def learn(self, tokens: np.ndarray, areas: np.ndarray, services: np.ndarray) -> None:
        """Update the averages with simultaneous arrivals, one value each, shape ``(N,)``."""
        share = _TYPICAL if self.area else 1.0
        self.tokens += share * (float(tokens.mean()) - self.tokens)
        self.area += share * (float(areas.mean()) - self.area)
        self.service += share * (float(services.mean()) - self.service)


class QueueWait:
    """Mean wait of a newcomer in arrival order over the last steps.

    The unit is the duration of a typical answer, which is about a step a token.
    """

    def __init__(self) -> None:
        # Starts high: under an overload from the first step on, the pool is full before the average
        # has risen.
        self.mean = 1.0

    def learn(self, steps: int, wait: float, answer: float) -> None:
        """Update the mean with the present queue.

        Args:
            steps: since the last call; the weight is ``1 - exp(-steps / (2 answer))``.
            wait: of a newcomer now, in steps.
            answer: length of a typical answer, tokens.
        """
        share = 1.0 - math.exp(-steps / (_REMEMBERED * answer))
        self.mean += share * (wait / answer - self.mean)


class MeanSizes:
    """Mean prompt and answer of the arrivals, in tokens.

    Over all arrivals at first, so that the first one alone does not set the reserve; over the
    latest ones afterwards.
    """

    def __init__(self) -> None:
        self.prompt = self.answer = 0.0
        self._seen = 0

    def learn(self, prompts: np.ndarray, answers: np.ndarray) -> None:
        """Update the means with simultaneous arrivals, in tokens, shape ``(N,)`` each."""
        if not len(prompts):
            return
        self._seen += len(prompts)
        share = max(_TYPICAL, len(prompts) / self._seen)
        self.prompt += share * (float(prompts.mean()) - self.prompt)
        self.answer += share * (float(answers.mean()) - self.answer)
