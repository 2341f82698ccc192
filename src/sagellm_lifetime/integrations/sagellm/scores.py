"""One score per KV handle: how good a victim it is. The eviction and the KV predictor share it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import UnknownNameError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.integrations.sagellm.running import RunningSequences
from sagellm_lifetime.policies.eviction import VALUES
from sagellm_lifetime.policies.plan import Plan
from sagellm_lifetime.policies.reuse import ReuseTable
from sagellm_lifetime.policies.state import Sequences, gap_of

_PLAN: Final = Plan()
_SPARED, _UNPREDICTED, _RUNNING, _IDLE = 0.0, 0.25, 0.5, 0.75
"""Bands of the score, each a quarter wide."""
_TYPICAL: Final = 1000.0
"""Memory-time, tokens or seconds at which a squashed value is far from both of its ends."""
_REMEMBERED: Final = 65_536


@dataclass(frozen=True, slots=True)
class HandleView:
    """What a score needs of a KV handle.

    Attributes:
        handle_id: as text.
        request_id: of its sequence, None if it has none.
        num_tokens: that it holds.
        last_access: seconds on the packages' clock (Unix time).
        created_at: seconds on the same clock.
    """

    handle_id: str
    request_id: str | None
    num_tokens: int
    last_access: float
    created_at: float


def request_id_of(handle: Any) -> str | None:
    """Return the request id of a KV handle, from its metadata or its field, None without one.

    ``KVPool.alloc`` leaves the field empty and keeps the metadata that it is given.

    >>> from types import SimpleNamespace
    >>> request_id_of(SimpleNamespace(request_id=None, metadata={"request_id": 7}))
    '7'
    """
    metadata = getattr(handle, "metadata", None)
    joined = metadata.get("request_id") if isinstance(metadata, Mapping) else None
    if joined is None:
        joined = getattr(handle, "request_id", None)
    return None if joined is None else str(joined)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A handle at the last look at it."""

    last_access: float
    is_idle: bool
    reuses: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of ``N`` handles.

    Attributes:
        score: from 0 to 1, the highest is evicted first, shape ``(N,)``.
        requests: of the running sequences, None for a handle without one.
        idle_s: seconds since the last access, shape ``(N,)``.
        reuses: of each handle that were seen, shape ``(N,)``.
        spared: True for a running sequence that ends soon or was evicted often, shape ``(N,)``.
    """

    score: np.ndarray
    requests: list[PredictionRequest | None]
    idle_s: np.ndarray
    reuses: np.ndarray
    spared: np.ndarray


class HandleScores:
    """Scores of KV handles, by remaining life where a sequence runs and by reuse where none does.

    From the best victim to the worst: idle handles, the least likely to be used again first;
    handles of running sequences by ``order``; those of sequences without a prediction, the oldest
    access first; those whose sequence probably ends soon or was evicted ``max_evictions`` times.

    Args:
        sequences: that run.
        order: a key of ``policies.eviction.VALUES``: ``cost-aware``, ``longest``, ``shortest``
            (the specification's) or ``engine``.
        near_completion: tokens; a sequence that probably ends within so many is spared, except in
            the order ``shortest``, which prefers it.
        max_evictions: of one sequence, after which it is spared.

    Raises:
        UnknownNameError: if there is no such order.
    """

    def __init__(
        self,
        sequences: RunningSequences,
        *,
        order: str = "cost-aware",
        near_completion: int = _PLAN.near_completion,
        max_evictions: int = _PLAN.max_preemptions,
    ) -> None:
        if order not in VALUES:
            raise UnknownNameError("order of eviction", order, list(VALUES))
        self.sequences = sequences
        self.order = order
        self.reuse = ReuseTable()
        self._near_completion = near_completion
        self._max_evictions = max_evictions
        self._evictions: OrderedDict[str, int] = OrderedDict()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def score(self, handles: Sequence[HandleView], now: float) -> Scores:
        """Return the scores of ``N`` handles at ``now``, seconds on the handles' clock."""
        requests = [self.sequences.request(handle.request_id) for handle in handles]
        running = [i for i, request in enumerate(requests) if request is not None]
        asked = [request for request in requests if request is not None]
        accesses = np.array([handle.last_access for handle in handles], dtype=np.float64)
        idle_s = np.fmax(now - accesses, 0.0)  # 0 for a time that is no number
        reuses = np.array([self._reuses(handle.handle_id) for handle in handles], dtype=np.int64)
        density = self.reuse.density(idle_s, reuses)
        # The last term orders handles of one bin of the table, the longest unused first.
        score = _IDLE + 0.2499 / (1.0 + density) + 0.0001 * idle_s / (1.0 + idle_s)
        spared = np.zeros(len(handles), dtype=bool)
        if running:
            at = np.array(running)
            score[at], spared[at] = self._of_running(
                [handles[i] for i in running], asked, idle_s[at]
            )
        return Scores(score, requests, idle_s, reuses, spared)

    def _of_running(
        self,
        handles: Sequence[HandleView],
        requests: Sequence[PredictionRequest],
        idle_s: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        forecast = self.sequences.forecast(requests)
        # A sequence that loses one handle stops, so all that it holds counts, not the one handle.
        held: Counter[str | None] = Counter()
        for handle in handles:
            held[handle.request_id] += handle.num_tokens
        tokens = np.array([held[handle.request_id] for handle in handles], dtype=np.int64)
        evictions = np.array([self._evictions.get(str(h.request_id), 0) for h in handles])
        sequences = Sequences(
            tokens=tokens,
            generated=np.array([request.current_length for request in requests]),
            recompute=np.maximum(tokens, 1),
            arrival=-idle_s,
            urgency=np.zeros(len(handles), dtype=np.int64),
            preemptions=evictions,
            pinned=np.zeros(len(handles), dtype=bool),
        )
        value = VALUES[self.order](sequences, forecast)
        ends_soon = 1.0 - forecast.survival[:, gap_of(self._near_completion)] >= 0.5
        unpredicted = forecast.confidence < 0.0
        spared = ends_soon & ~unpredicted if self.order != "shortest" else np.zeros_like(ends_soon)
        spared |= evictions >= self._max_evictions
        value = np.where(unpredicted, idle_s, value)
        band = np.where(spared, _SPARED, np.where(unpredicted, _UNPREDICTED, _RUNNING))
        score = band + 0.2499 * (0.5 + np.arctan(value / _TYPICAL) / np.pi)
        # Of one sequence's handles the newest first: what stands before it stays valid.
        newest = np.argsort(np.argsort([handle.created_at for handle in handles], kind="stable"))
        return score + 0.0001 * newest / len(handles), spared

    # -- learning --------------------------------------------------------------------------------

    def observe(self, handles: Sequence[HandleView]) -> None:
        """Learn from accesses since the last call: an idle handle that was used again.

        What a running sequence does to its own handles is no reuse.
        """
        for handle in handles:
            before = self._seen.pop(handle.handle_id, None)
            reuses = 0 if before is None else before.reuses
            if before is not None and before.is_idle and handle.last_access > before.last_access:
                self.reuse.ended(handle.last_access - before.last_access, reuses, reused=True)
                reuses += 1
            is_idle = self.sequences.request(handle.request_id) is None
            self._seen[handle.handle_id] = _Seen(handle.last_access, is_idle, reuses)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def evicted(self, handles: Sequence[HandleView], now: float) -> None:
        """Learn from evictions: idle handles were not used again, running ones lost their work."""
        for handle in handles:
            reuses = self._reuses(handle.handle_id)
            self._seen.pop(handle.handle_id, None)
            if handle.request_id is not None and handle.request_id in self.sequences:
                times = self._evictions.pop(handle.request_id, 0)
                self._evictions[handle.request_id] = times + 1
            else:
                self.reuse.ended(now - handle.last_access, reuses, reused=False)
        while len(self._evictions) > _REMEMBERED:
            self._evictions.popitem(last=False)

    def _reuses(self, handle_id: str) -> int:
        seen = self._seen.get(handle_id)
        return 0 if seen is None else seen.reuses
