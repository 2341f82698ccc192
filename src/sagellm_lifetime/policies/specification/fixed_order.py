"""A list that keeps its order under a sort by arrival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar, overload

T = TypeVar("T")
S = TypeVar("S")


class FixedOrderList(list[T]):
    """A list that a sort by arrival alone leaves unchanged.

    The scheduler of page 2.4 applies its passes and then sorts their result by ``arrived_time``,
    which undoes every pass. The order already takes arrival into account; a sort by another key,
    such as a later pass by priority, sorts. Copies, slices and sums keep their order too;
    ``sorted(...)`` makes a plain list, which cannot be prevented.
    """

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place, unless ``key`` is the arrival of every item."""
        if key is not None and not reverse and all(key(item) == _arrival(item) for item in self):
            return
        super().sort(key=key, reverse=reverse)

    def copy(self) -> FixedOrderList[T]:
        """Return a copy that keeps its order too."""
        return FixedOrderList(self)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> T: ...
    @overload
    def __getitem__(self, index: slice, /) -> FixedOrderList[T]: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> T | FixedOrderList[T]:
        if isinstance(index, slice):
            return FixedOrderList(super().__getitem__(index))
        return super().__getitem__(index)

    @overload
    def __add__(self, other: list[T], /) -> FixedOrderList[T]: ...
    @overload
    def __add__(self, other: list[S], /) -> FixedOrderList[T | S]: ...
    def __add__(self, other: list[Any], /) -> FixedOrderList[Any]:
        return FixedOrderList(super().__add__(other))


def _arrival(item: Any) -> float:
    return float(item.arrived_time)
