"""The seam between decisions and an engine: queue, memory and victims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.policies.events import Event
from sagellm_lifetime.policies.sequence_view import SequenceView

Permutation: TypeAlias = Sequence[int]
"""Each index once: the sequence at place ``k`` is the one that was at place ``permutation[k]``."""


class AdviceError(LifetimeError, ValueError):
    """An answer that cannot be: not a permutation, not a number of sequences or blocks."""


class Advisor(Protocol):
    """Decides; the same object in a replay, in a live engine and in a test.

    An engine tells an advisor what happens, asks before a step, and carries the answers out. All
    moments are in seconds on one clock, that of the events; memory is in blocks.

    Example:
        This one admits the newest first, as many as there is room for:

        >>> class NewestFirst:
        ...     limits_admission = False
        ...     def on_events(self, events): pass
        ...     def order(self, waiting, free_blocks): return range(len(waiting))[::-1]
        ...     def victims(self, running): return None
        ...     def reserve(self): return 0
        ...     def admit_limit(self, running, waiting, free_blocks): return len(waiting)
        >>> from sagellm_lifetime import Advisor
        >>> advisor: Advisor = NewestFirst()
        >>> list(check_order(advisor.order(["a", "b", "c"], 100), 3))
        [2, 1, 0]
    """

    @property
    def limits_admission(self) -> bool:
        """Return True if :meth:`admit_limit` is to be asked."""

    def on_events(self, events: Sequence[Event]) -> None:
        """Take note of what has happened, in this order, since the last call.

        Several steps may have passed, but none in which a question would have been asked.
        """

    def order(self, waiting: Sequence[SequenceView], free_blocks: int) -> Permutation | None:
        """Return the order in which to admit, or None to leave it as it is.

        Args:
            waiting: the queue, first to be admitted first.
            free_blocks: that those admitted in this step may take.

        Returns:
            A permutation of the first ``k`` places of the queue, for any ``k`` up to all of it;
            behind them the queue stays as it is.
        """

    def victims(self, running: Sequence[SequenceView]) -> Permutation | None:
        """Return the running sequences, the first victim last as vLLM takes them, or None.

        Asked where memory is about to run out while others wait.
        """

    def reserve(self) -> int:
        """Return the blocks that admission is to leave free for the growth of what runs."""

    def admit_limit(self, running: int, waiting: Sequence[SequenceView], free_blocks: int) -> int:
        """Return how many of the queue, from its head, may be admitted in this step.

        Args:
            running: sequences that run.
            waiting: the queue, in the order in which it will be admitted.
            free_blocks: that nobody holds, nor is about to for the rest of a prompt.
        """


def check_order(order: Permutation | None, most: int) -> Permutation | None:
    """Return a permutation of the first places of ``most``, or None for none.

    Raises:
        AdviceError: it is something else.
    """
    if order is None:
        return None
    count = len(order)
    if count > most or sorted(order) != list(range(count)):
        raise AdviceError(f"an order of {count} for {most} sequences that is no permutation")
    return order


def check_count(count: int, most: int, what: str) -> int:
    """Return a number from 0 to ``most``.

    Raises:
        AdviceError: it is something else.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
        raise AdviceError(f"{count!r} {what} of {most}")
    return count
