"""What a controller keeps: of each sequence, and on average of those that come."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

_REMEMBERED: Final = 2.0
"""Typical answers for whose time a queue is remembered."""
_TYPICAL: Final = 0.02
"""Weight of the newest arrivals in the averages of what a sequence is expected to take."""
_NONE: Final = np.zeros(0)


class Known:
    """One sequence: its request, its place in the line, and its share of the memory ahead."""

    __slots__ = (
        "allowed",
        "area",
        "cached",
        "confidence",
        "is_sequence",
        "joined",
        "looked",
        "place",
        "request",
        "running",
        "survival",
        "terms",
        "waited",
    )

    def __init__(self, request: Any) -> None:
        self.request = request
        self.is_sequence = True
        """Whether what is typical is learned from it: not from a step of beam search."""
        self.place = np.inf
        self.joined = request.arrival_time
        self.waited = 0.0
        """Seconds, before it joined the queue last."""
        self.allowed = 0.0
        """Steps it may be overtaken for, by its own service."""
        self.area = 0.0
        self.cached = 0
        """Tokens that needed no computing at the last look."""
        self.running = False
        self.survival = self.terms = _NONE
        self.confidence = 1.0
        self.looked = 0
        """Step of the last look."""


class Typical:
    """Moving averages over those that come: tokens to generate, memory-time, and service in the
    unit of the order. The ratio of the last two makes patience mean the same for every order."""

    def __init__(self) -> None:
        self.tokens = self.area = self.service = 0.0

    def learn(self, tokens: np.ndarray, areas: np.ndarray, services: np.ndarray) -> None:
        share = _TYPICAL if self.area else 1.0
        self.tokens += share * (float(tokens.mean()) - self.tokens)
        self.area += share * (float(areas.mean()) - self.area)
        self.service += share * (float(services.mean()) - self.service)


class Queue:
    """How long a newcomer would have waited in the order of arrival, on average of the last steps.

    In the time that a typical answer takes, which is about a step a token.
    """

    def __init__(self) -> None:
        # Until it is known somebody waits: at a load that is too high from the start the pool is
        # full before an average says so.
        self.wait = 1.0

    def seen(self, steps: int, wait: float, answer: float) -> None:
        """So many steps have passed since it was seen last.

        Args:
            steps: weigh ``1 - exp(-steps / (2 answer))``.
            wait: of a newcomer now, in steps.
            answer: typical one, tokens.
        """
        share = 1.0 - math.exp(-steps / (_REMEMBERED * answer))
        self.wait += share * (wait / answer - self.wait)


class Sizes:
    """Mean prompt and answer of those that come, tokens: of all at first, so that the very first
    does not set room aside for all, of the last ones later."""

    def __init__(self) -> None:
        self.prompt = self.answer = 0.0
        self._seen = 0

    def learn(self, prompts: np.ndarray, answers: np.ndarray) -> None:
        if not len(prompts):
            return
        self._seen += len(prompts)
        share = max(_TYPICAL, len(prompts) / self._seen)
        self.prompt += share * (float(prompts.mean()) - self.prompt)
        self.answer += share * (float(answers.mean()) - self.answer)
