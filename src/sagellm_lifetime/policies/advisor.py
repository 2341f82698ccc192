"""The seam between decisions and an engine: queue, memory and victims."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from operator import index
from typing import Protocol, TypeAlias

from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.policies.events import Event
from sagellm_lifetime.policies.sequence_view import SequenceView

Permutation: TypeAlias = Sequence[int]
"""Each index once: the sequence at place ``k`` is the one that was at place ``permutation[k]``."""


class AdviceError(LifetimeError, ValueError):
    """An invalid answer of an advisor: not a permutation, or not a valid count."""


class Advisor(Protocol):
    """The decisions of a scheduler; the same object serves a replay, a live engine and a test.

    An engine passes events to an advisor, calls it before a step, and carries out the answers. All
    times are in seconds on the clock of the events; memory is in blocks.

    Example:
        An advisor that admits the newest first, as many as fit:
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
        """Return True if the engine must call :meth:`admit_limit`."""

    def on_events(self, events: Sequence[Event]) -> None:
        """Record the events since the last call, in their order.

        Several steps may have passed, but none in which another method would have been called.
        """

    def order(self, waiting: Sequence[SequenceView], free_blocks: int) -> Permutation | None:
        """Return the order in which to admit, or None to leave it as it is.

        Args:
            waiting: the queue, first to be admitted first.
            free_blocks: blocks available to the sequences admitted in this step.

        Returns:
            A permutation of the first ``k`` places of the queue, for any ``k`` up to all of it;
            the rest of the queue keeps its order.
        """

    def victims(self, running: Sequence[SequenceView]) -> Permutation | None:
        """Return the order of the running sequences, the first victim last, or None to keep it.

        Called when memory is about to run out while others wait. vLLM preempts the last one.
        """

    def reserve(self) -> int:
        """Return the blocks that admission leaves free for the growth of running sequences."""

    def admit_limit(self, running: int, waiting: Sequence[SequenceView], free_blocks: int) -> int:
        """Return how many of the queue, from its head, may be admitted in this step.

        Args:
            running: number of running sequences.
            waiting: the queue, in the order of admission.
            free_blocks: blocks that no sequence holds or needs for the rest of its prompt.

        An engine takes a 0 for 1 where nothing runs, since it would wait for ever.
        """


def check_order(order: Permutation | None, most: int) -> list[int] | None:
    """Return a copy of ``order`` if it is None or a permutation of the first places of ``most``.

    The copy is a list of ``int``. Only the copy is checked and used, since an object of somebody
    else may answer differently when it is read again, and a float equals an index but is none.

    Raises:
        AdviceError: if it is anything else.
    """
    if order is None:
        return None
    try:
        places = list(map(index, islice(order, most + 1)))
    except TypeError:  # no iterable, or of something else than whole numbers
        raise AdviceError(
            f"an order for {counted(most, 'sequence')} that is no permutation"
        ) from None
    count = len(places)
    if count > most:
        raise AdviceError(
            f"an order of over {most} for {counted(most, 'sequence')} that is no permutation"
        )
    if count and (len(set(places)) != count or min(places) != 0 or max(places) != count - 1):
        raise AdviceError(
            f"an order of {count} for {counted(most, 'sequence')} that is no permutation"
        )
    return places


def check_count(count: int, most: int, unit: str) -> int:
    """Return ``count`` as an ``int`` if it is a whole number (also NumPy's) from 0 to ``most``.

    Raises:
        AdviceError: if it is anything else; ``unit`` names the counted objects in the message.
    """
    try:
        whole = -1 if isinstance(count, bool) else index(count)
    except TypeError:
        whole = -1
    if not 0 <= whole <= most:
        # The message is also in metrics, and a text could be a client's.
        shown = repr(count) if isinstance(count, int | float) else type(count).__name__
        raise AdviceError(f"{shown} {unit}" + (f" of {most}" if most < sys.maxsize else ""))
    return whole
