"""A list that keeps its order under a sort by arrival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar, overload

T = TypeVar("T")
S = TypeVar("S")


class Settled(list[T]):
    """A list that a sort by arrival alone leaves unchanged.

    The scheduler of page 2.4 applies its passes and then sorts their result by ``arrived_time``,
    which undoes every pass. The order already takes arrival into account; a sort by another key,
    such as a later pass by priority, sorts. Copies, slices and sums are settled too;
    ``sorted(...)`` makes a plain list, which cannot be prevented.
    """

    def sort(self, *, key: Callable[[T], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place, unless ``key`` is the arrival of every item."""
        if key is not None and not reverse and all(key(item) == _arrival(item) for item in self):
            return
        super().sort(key=key, reverse=reverse)

    def copy(self) -> Settled[T]:
        """Return a copy that is settled too."""
        return Settled(self)

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> T: ...
    @overload
    def __getitem__(self, index: slice, /) -> Settled[T]: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> T | Settled[T]:
        if isinstance(index, slice):
            return Settled(super().__getitem__(index))
        return super().__getitem__(index)

    @overload
    def __add__(self, other: list[T], /) -> Settled[T]: ...
    @overload
    def __add__(self, other: list[S], /) -> Settled[T | S]: ...
    def __add__(self, other: list[Any], /) -> Settled[Any]:
        return Settled(super().__add__(other))


def _arrival(item: Any) -> float:
    return float(item.arrived_time)
