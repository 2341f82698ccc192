"""What a network learns from: what was known when it was asked, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sagellm_lifetime.features.evidence import Step


class Sample(NamedTuple):
    """One answer that was given (or could have been) and its outcome.

    Attributes:
        steps: the sequence of evidence.
        base: logits of the residual-life table then, shape ``(BINS,)``.
        age: when the evidence was read; the loss is conditioned on it.
        length: total length, or last length seen alive.
        censored: whether it is only a lower bound.
    """

    steps: list[Step]
    base: np.ndarray
    age: int
    length: int
    censored: bool


class ReplayStore:
    """The newest samples, and a uniform sample of all older ones (Vitter 1985, algorithm R)."""

    def __init__(self, capacity: int = 4096, seed: int = 0) -> None:
        self._recent: list[Sample] = []
        self._older: list[Sample] = []
        self._half = max(capacity // 2, 1)
        self._passed = 0
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def add(self, sample: Sample) -> None:
        """Keep a sample; an old one may make room."""
        self._recent.append(sample)
        if len(self._recent) <= self._half:
            return
        passed = self._recent.pop(0)
        self._passed += 1
        if len(self._older) < self._half:
            self._older.append(passed)
        elif (at := int(self._rng.integers(self._passed))) < self._half:
            self._older[at] = passed

    def newest(self, size: int) -> Sequence[Sample]:
        """Return the last ``size`` samples added."""
        return self._recent[-size:]

    def draw(self, size: int) -> Sequence[Sample]:
        """Return ``size`` samples, drawn with replacement."""
        index = self._rng.integers(len(self), size=size)
        n = len(self._recent)
        return [self._recent[i] if i < n else self._older[i - n] for i in index]
