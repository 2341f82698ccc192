"""What a plan's advisor keeps: of each sequence, and on average of those that come."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sagellm_lifetime.policies.sequence_view import SequenceView

_REMEMBERED: Final = 2.0
"""Typical answers for whose time a queue is remembered."""
_TYPICAL: Final = 0.02
"""Weight of the newest arrivals in the averages of what a sequence is expected to take."""
_NONE: Final = np.zeros(0)


class SequenceRecord:
    """One sequence: its view, its place in the queue, and its share of the memory ahead."""

    __slots__ = (
        "age",
        "allowed",
        "area",
        "cached",
        "confidence",
        "is_answer",
        "is_running",
        "joined",
        "looked",
        "place",
        "survival",
        "terms",
        "view",
        "waited",
    )

    def __init__(self, view: SequenceView, *, is_answer: bool = True) -> None:
        self.view = view
        self.is_answer = is_answer
        """Whether it is predicted and averages are learned from it: not a step of beam search."""
        self.place = np.inf
        self.joined = view.arrival
        self.waited = 0.0
        """Seconds, before it joined the queue last."""
        self.allowed = 0.0
        """Steps it may be overtaken for, by its own service."""
        self.area = 0.0
        self.cached = 0
        """Tokens that needed no computing at the last look."""
        self.is_running = False
        self.survival = self.terms = _NONE
        self.confidence = 1.0
        self.looked = 0
        """Step of the last look."""
        self.age = -1
        """Tokens generated at a look that was taken ahead of its first place; -1 without one."""


class TypicalSequence:
    """Moving averages over those that come: tokens to generate, memory-time, and service in the
    unit of the order. The ratio of the last two makes patience mean the same for every order."""

    def __init__(self) -> None:
        self.tokens = self.area = self.service = 0.0

    def learn(self, tokens: np.ndarray, areas: np.ndarray, services: np.ndarray) -> None:
        """Take in those that came together, one value each."""
        share = _TYPICAL if self.area else 1.0
        self.tokens += share * (float(tokens.mean()) - self.tokens)
        self.area += share * (float(areas.mean()) - self.area)
        self.service += share * (float(services.mean()) - self.service)


class QueueWait:
    """How long a newcomer would have waited in the order of arrival, on average of the last steps.

    In the time that a typical answer takes, which is about a step a token.
    """

    def __init__(self) -> None:
        # Until it is known somebody waits: at a load that is too high from the start the pool is
        # full before an average says so.
        self.mean = 1.0

    def learn(self, steps: int, wait: float, answer: float) -> None:
        """Take in the queue of now, so many steps after it was seen last.

        Args:
            steps: weigh ``1 - exp(-steps / (2 answer))``.
            wait: of a newcomer now, in steps.
            answer: typical one, tokens.
        """
        share = 1.0 - math.exp(-steps / (_REMEMBERED * answer))
        self.mean += share * (wait / answer - self.mean)


class MeanSizes:
    """Mean prompt and answer of those that come, tokens: of all at first, so that the very first
    does not set room aside for all, of the last ones later."""

    def __init__(self) -> None:
        self.prompt = self.answer = 0.0
        self._seen = 0

    def learn(self, prompts: np.ndarray, answers: np.ndarray) -> None:
        """Take in those that came together, tokens each."""
        if not len(prompts):
            return
        self._seen += len(prompts)
        share = max(_TYPICAL, len(prompts) / self._seen)
        self.prompt += share * (float(prompts.mean()) - self.prompt)
        self.answer += share * (float(answers.mean()) - self.answer)
