"""Numbered messages on a pipe: a byte for the kind, a number, then so many bytes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NamedTuple

_HEAD: Final = Struct("<cQI")
_PIECE: Final = 1 << 20


class Frame(NamedTuple):
    """One message."""

    kind: bytes
    number: int
    body: bytes


def packed(frame: Frame) -> bytes:
    """The bytes of one message."""
    return _HEAD.pack(frame.kind, frame.number, len(frame.body)) + frame.body


def frames(pipe: int, patience: Callable[[], float]) -> Iterator[Frame | None]:
    """Messages as they come; ``None`` where none came for ``patience()`` seconds.

    Ends when nobody can write to the pipe any more; half a message is dropped.
    """
    held = bytearray()
    while True:
        if len(held) >= _HEAD.size:
            kind, number, size = _HEAD.unpack_from(held)
            end = _HEAD.size + size
            if len(held) >= end:
                yield Frame(kind, number, bytes(held[_HEAD.size : end]))
                del held[:end]
                continue
        if not select.select([pipe], [], [], patience())[0]:
            yield None
            continue
        piece = os.read(pipe, _PIECE)
        if not piece:
            return
        held += piece
