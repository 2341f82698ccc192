"""A list whose order is a decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Settled(list[T]):
    """A list that a sort by arrival alone leaves as it is.

    The scheduler of page 2.4 applies its passes and then sorts what they return by
    ``arrived_time``, which undoes every one of them. Arrival has had its say in the order already;
    a sort by anything else, such as a later pass by priority, sorts.
    """

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place, unless ``key`` is the arrival of every item."""
        if key is not None and not reverse and all(key(each) == _arrival(each) for each in self):
            return
        super().sort(key=key, reverse=reverse)


def _arrival(item: Any) -> float:
    return float(item.arrived_time)
