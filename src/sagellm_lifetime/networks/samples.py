"""Samples that a network learns from: the evidence of an answer, and its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sagellm_lifetime.features.evidence import Step


class Sample(NamedTuple):
    """Evidence of one answer, given or possible, and the outcome of its sequence.

    Attributes:
        steps: the sequence of evidence.
        base: logits of the residual-life table at that time, shape ``(BINS,)``.
        age: age at which the evidence was read, tokens; the loss is conditioned on it.
        length: total length, or last length seen alive, tokens.
        censored: True if the length is only a lower bound.
    """

    steps: list[Step]
    base: np.ndarray
    age: int
    length: int
    censored: bool


class ReplayStore:
    """Store of the newest samples, and of a uniform sample of older ones.

    The older ones are drawn with algorithm R (Vitter 1985).

    Args:
        capacity: maximum number of samples; half of them are the newest.
        seed: seed of the draws.
    """

    def __init__(self, capacity: int = 4096, seed: int = 0) -> None:
        self._recent: list[Sample] = []
        self._older: list[Sample] = []
        self._half = max(capacity // 2, 1)
        self._passed = 0
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def add(self, sample: Sample) -> None:
        """Add a sample; an older one may be dropped."""
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
