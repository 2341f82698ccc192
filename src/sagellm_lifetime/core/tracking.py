"""Tracking of running sequences: the evidence and answers of each, from admission to completion.

``update`` carries no features, so the evidence behind a prediction is kept here under the sequence
id. The number of sequences is bounded, and idle ones expire. The caller holds the lock.
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
"""Upper limit of ``capacity``; each sequence takes 1 kB or more, so memory runs out earlier."""


@dataclass(slots=True)
class Tracked:
    """State of a running sequence.

    Attributes:
        slot: index of its row in :attr:`Tracker.rows`.
        evidence: evidence that the model derived from the request; opaque here.
        age: largest ``current_length`` seen, tokens.
        seen: clock time of the last prediction, seconds.
        first_age: age at admission, tokens.
        evidence_ages: ages at which there was new evidence, ascending, tokens.
        answers: the row computed from the evidence at each of these ages.
        estimate: total length that the first prediction gave, tokens; -1 before it. The metrics
            score it.
        confidence: confidence of the first prediction.
        version: version of the predictor for which the row was computed.
        cap: the latest ``max_length``, tokens; ``None`` for none.
        prior: True if the model had learned nothing when the row was computed.
    """

    slot: int
    evidence: Any
    age: int
    seen: float
    first_age: int
    evidence_ages: list[int] = field(default_factory=list)
    answers: list[np.ndarray] = field(default_factory=list)
    estimate: int = -1
    confidence: float = 0.0
    version: int = -1
    cap: int | None = None
    prior: bool = False


class Tracker:
    """Bounded, expiring map from sequence id to :class:`Tracked`, with all rows in one matrix.

    ``admitted = completed + censored + running + expired + replaced + discarded`` always holds.

    Args:
        capacity: maximum number of sequences.
        expire_after: seconds without a prediction after which a sequence may be dropped.
        clock: monotonic clock, seconds.

    Raises:
        RequestError: an option of another type, or out of its range.
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
        """True if sequences are dropped when there are too many, or when they expire."""
        self.rows = np.zeros((64, ROW), dtype=np.float32)
        self.caps = np.full(64, UNCAPPED, dtype=np.int64)
        self.admitted = self.expired = self.replaced = self.discarded = 0
        self._clock = clock
        self._free = list(range(63, -1, -1))
        self._items: OrderedDict[SequenceId, Tracked] = OrderedDict()
        self._slots: dict[SequenceId, int] = {}
        """Slots by sequence id, for look-ups of many ids at once."""

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
        Nothing is changed here; see :meth:`grown` and :meth:`admit`.
        """
        item = self._items.get(sequence_id)
        return None if item is None or age < item.age else item

    def grown(self, sequence_id: SequenceId, item: Tracked, age: int, cap: int | None) -> None:
        """Record the age, cap and time of a new prediction of a tracked sequence."""
        item.age = age
        item.seen = self._clock()
        self._items.move_to_end(sequence_id)
        if cap != item.cap:
            self._set_cap(item, cap)

    def has_room(self, count: int) -> bool:
        """Return True if ``count`` sequences can be admitted without dropping any."""
        if not count or not self.bounded:
            return True
        if len(self._items) + count > self.capacity:
            return False
        oldest = next(iter(self._items.values()), None)
        return oldest is None or self._clock() - oldest.seen <= self.expire_after

    def admit(self, sequence_id: SequenceId, evidence: Any, age: int, cap: int | None) -> Tracked:
        """Start to track a sequence, and return it.

        Sequences not seen for ``expire_after`` seconds are dropped, and the oldest one if the
        tracker is full. A sequence of the same id is dropped and counted as replaced.
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
        """Store the row of a sequence; the first wide row makes all rows wide.

        Args:
            item: the tracked sequence.
            row: cumulative hazards, shape ``(ROW,)`` or ``(WIDE,)``.

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
        """Remove and return a sequence, or ``None`` for an unknown id.

        The row of its slot stays until the slot is used again.
        """
        return self._drop(sequence_id)

    def withdraw(self, items: Sequence[Tracked]) -> None:
        """Stop to track sequences, and count them as never admitted."""
        withdrawn = {id(item) for item in items}
        sequence_ids = [key for key, item in self._items.items() if id(item) in withdrawn]
        for sequence_id in sequence_ids:
            self._drop(sequence_id)
        self.admitted -= len(sequence_ids)

    def slots(self, sequence_ids: Sequence[SequenceId]) -> np.ndarray:
        """Return the slots of ``N`` tracked sequences, int64 of shape ``(N,)``.

        Raises:
            UnknownSequenceError: a sequence is not tracked.
        """
        try:
            slots = map(self._slots.__getitem__, sequence_ids)
            return np.fromiter(slots, np.int64, len(sequence_ids))
        except KeyError as error:
            raise UnknownSequenceError(
                f"sequence {shown(error.args[0])} is not tracked: call predict() for it first"
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
