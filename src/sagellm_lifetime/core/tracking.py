"""What was known when a prediction was made, kept until the completion comes.

``update`` carries no features, so the evidence behind a prediction waits here, joined by sequence
id: bounded in number, expiring in time. The caller holds the lock.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.batch import UNCAPPED
from sagellm_lifetime.core.errors import LifetimeError, UnknownSequenceError, shown
from sagellm_lifetime.core.hazard import ROW, WIDE, widened
from sagellm_lifetime.core.protocol import SequenceId
from sagellm_lifetime.core.values import as_option, as_seconds_option

MOST_TRACKED: Final = 10**8
"""No machine has the memory for more: each takes 1 kB and more."""


@dataclass(slots=True)
class Tracked:
    """One running sequence.

    Attributes:
        slot: its row in :attr:`Tracker.rows`.
        evidence: what the predictor derived from the request; opaque here.
        age: largest ``current_length`` seen.
        cap: ``max_length`` as it was said last.
        first_age, estimate, confidence: the first prediction, which the metrics score.
        asked: ages at which new evidence came, ascending.
        answers: the row that followed from each, until the next.
        version: state of the predictor when the row was computed.
        prior: whether nothing had been learned then.
    """

    slot: int
    evidence: Any
    age: int
    seen: float
    first_age: int
    asked: list[int] = field(default_factory=list)
    answers: list[np.ndarray] = field(default_factory=list)
    estimate: int = -1
    confidence: float = 0.0
    version: int = -1
    cap: int | None = None
    prior: bool = False


class Tracker:
    """Bounded, expiring map from sequence id to :class:`Tracked`, rows in one matrix.

    ``admitted = completed + censored + running + expired + replaced + discarded`` always holds.
    """

    def __init__(
        self,
        capacity: int = 65_536,
        expire_after: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = as_option("capacity", capacity, 1, MOST_TRACKED)
        self.expire_after = as_seconds_option("expire_after", expire_after)
        self.bounded = True
        """Whether sequences are forgotten for their number or age."""
        self.rows = np.zeros((64, ROW), dtype=np.float32)
        self.caps = np.full(64, UNCAPPED, dtype=np.int64)
        self.admitted = self.expired = self.replaced = self.discarded = 0
        self._clock = clock
        self._free = list(range(63, -1, -1))
        self._items: OrderedDict[SequenceId, Tracked] = OrderedDict()
        self._slots: dict[SequenceId, int] = {}
        """Of the same sequences, for the array form."""

    def __len__(self) -> int:
        return len(self._items)

    def emptied(self) -> Tracker:
        """Return a tracker with the same settings that tracks nothing and has counted nothing."""
        twin = Tracker(self.capacity, self.expire_after, self._clock)
        twin.bounded = self.bounded
        return twin

    def get(self, sequence_id: SequenceId, age: int) -> Tracked | None:
        """Return the tracked sequence, or ``None`` if there is none of that id and age.

        Ages never decrease, so a smaller age means the id was used again for a new sequence.
        Nothing changes: that is for :meth:`grown` and :meth:`admit`.
        """
        item = self._items.get(sequence_id)
        return None if item is None or age < item.age else item

    def grown(self, sequence_id: SequenceId, item: Tracked, age: int, cap: int | None) -> None:
        """Note that a tracked sequence was asked about, at its age and under its cap."""
        item.age = age
        item.seen = self._clock()
        self._items.move_to_end(sequence_id)
        if cap != item.cap:
            self._set_cap(item, cap)

    def has_room(self, count: int) -> bool:
        """Return whether ``count`` sequences can be admitted and none has to make room."""
        if not count or not self.bounded:
            return True
        if len(self._items) + count > self.capacity:
            return False
        oldest = next(iter(self._items.values()), None)
        return oldest is None or self._clock() - oldest.seen <= self.expire_after

    def admit(self, sequence_id: SequenceId, evidence: Any, age: int, cap: int | None) -> Tracked:
        """Start to track; sequences not seen for ``expire_after`` seconds make room first.

        A sequence of the same id is dropped and counted as replaced.
        """
        if sequence_id in self._slots:
            self._drop(sequence_id)
            self.replaced += 1
        now = self._clock()
        while self.bounded and self._items:
            oldest = next(iter(self._items))
            full = len(self._items) >= self.capacity
            if not full and now - self._items[oldest].seen <= self.expire_after:
                break
            self._drop(oldest)
            self.expired += 1
        if not self._free:
            self._grow()
        item = Tracked(self._free.pop(), evidence, age, now, first_age=age)
        self._set_cap(item, cap)
        self._items[sequence_id] = item
        self._slots[sequence_id] = item.slot
        self.admitted += 1
        return item

    def set_row(self, item: Tracked, row: np.ndarray) -> None:
        """Keep the row of a sequence; from the first wide one on all rows are wide.

        Raises:
            LifetimeError: a row of another length.
        """
        if len(row) == WIDE and self.rows.shape[1] == ROW:
            self.rows = widened(self.rows)
        if len(row) == self.rows.shape[1]:
            self.rows[item.slot] = row
        elif len(row) == ROW:
            self.rows[item.slot, :ROW] = row
            self.rows[item.slot, ROW:] = np.inf
        else:
            raise LifetimeError(
                f"a row of cumulative hazards has {ROW} or {WIDE} numbers, and the model's has "
                f"{len(row)}"
            )

    def take(self, sequence_id: SequenceId) -> Tracked | None:
        """Remove and return; ``None`` for an unknown id. The slot's row stays until reused."""
        return self._drop(sequence_id)

    def slots(self, sequence_ids: Sequence[SequenceId]) -> np.ndarray:
        """Return the rows of tracked sequences.

        Raises:
            UnknownSequenceError: one is not tracked.
        """
        try:
            found = map(self._slots.__getitem__, sequence_ids)
            return np.fromiter(found, np.int64, len(sequence_ids))
        except KeyError as error:
            raise UnknownSequenceError(
                f"sequence {shown(error.args[0])} is not tracked: ask predict() about it first"
            ) from None

    def evidence(self, sequence_ids: Sequence[SequenceId]) -> list[Any]:
        """Return the evidence of tracked sequences, all known to :meth:`slots`."""
        return [self._items[sequence_id].evidence for sequence_id in sequence_ids]

    def _set_cap(self, item: Tracked, cap: int | None) -> None:
        item.cap = cap
        self.caps[item.slot] = UNCAPPED if cap is None else cap

    def _drop(self, sequence_id: SequenceId) -> Tracked | None:
        item = self._items.pop(sequence_id, None)
        if item is not None:
            del self._slots[sequence_id]
            self._free.append(item.slot)
        return item

    def _grow(self) -> None:
        old = len(self.rows)
        self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        self.caps = np.concatenate([self.caps, np.full(old, UNCAPPED, dtype=np.int64)])
        self._free.extend(range(2 * old - 1, old - 1, -1))
