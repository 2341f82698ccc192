"""Samples that a network learns from: the evidence of an answer, and its outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from sagellm_lifetime.features.evidence import Step
from sagellm_lifetime.models.fair_share import LEAST_SHARE


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


_EVEN_SHARES: Final = 2.0
"""Fair share of a client, in even shares of all clients."""
_Owned = tuple[int, Sample]
"""Key of the account of a client, and a sample of it."""


class ReplayStore:
    """Store of the newest samples, and of a uniform sample of older ones, by fair shares.

    If there are several clients, one client holds at most the larger of twice an even share of the
    capacity and 25 %, as in :mod:`~sagellm_lifetime.models.fair_share`; its further samples replace
    its own. So a client with many requests, or many answers, does not dominate the training.
    The older ones are drawn with algorithm R (Vitter 1985).

    Args:
        capacity: maximum number of samples; half of them are the newest.
        seed: seed of the draws.
    """

    def __init__(self, capacity: int = 4096, seed: int = 0) -> None:
        self._recent: list[_Owned] = []
        self._older: list[_Owned] = []
        self._half = max(capacity // 2, 1)
        self._passed = 0
        self._held: Counter[int] = Counter()
        """Number of samples by client."""
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._recent) + len(self._older)

    def add(self, sample: Sample, client: int = 0) -> None:
        """Add a sample; an older one may be dropped.

        Args:
            sample: the sample.
            client: key of the account of its client; 0 for no or a new client.
        """
        self._held[client] += 1
        self._recent.append((client, sample))
        most = self.most_of_one()
        if self._held[client] > most < 2 * self._half:
            # More than one where the number of clients has grown since.
            self._drop(client, self._held[client] - most)
        if len(self._recent) <= self._half:
            return
        passed = self._recent.pop(0)
        self._passed += 1
        if len(self._older) < self._half:
            self._older.append(passed)
        elif (at := int(self._rng.integers(self._passed))) < self._half:
            self._forget(self._older[at][0])
            self._older[at] = passed
        else:
            self._forget(passed[0])

    def most_of_one(self) -> int:
        """Return the maximum number of samples of one client."""
        share = max(_EVEN_SHARES / max(len(self._held), 1), LEAST_SHARE)
        return max(int(min(share, 1.0) * 2 * self._half), 1)

    def _drop(self, client: int, count: int) -> None:
        """Drop samples of a client, first those that are not among the newest of all."""
        for samples in (self._older, self._recent):
            places = [i for i, (owner, _) in enumerate(samples) if owner == client][:count]
            for place in reversed(places):
                del samples[place]
                self._forget(client)
            count -= len(places)

    def _forget(self, client: int) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]

    def draw(self, size: int) -> Sequence[Sample]:
        """Return ``size`` samples, drawn with replacement."""
        index = self._rng.integers(len(self), size=size)
        n = len(self._recent)
        return [(self._recent[i] if i < n else self._older[i - n])[1] for i in index]
