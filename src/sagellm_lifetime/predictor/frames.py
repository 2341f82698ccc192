"""Numbered messages on a pipe: a byte for the kind, a number, then so many bytes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from math import ceil
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


def ready(inbox: int, outbox: int | None, seconds: float) -> tuple[bool, bool]:
    """Whether something can be read from the one and written to the other; waits so long at most.

    With ``poll``: ``select`` fails in a server whose file descriptors go beyond 1024.
    """
    poll = select.poll()
    poll.register(inbox, select.POLLIN)
    if outbox is not None:
        poll.register(outbox, select.POLLOUT)
    events = dict(poll.poll(ceil(seconds * 1e3)))
    return inbox in events, outbox in events


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
        if not ready(pipe, None, patience())[0]:
            yield None
            continue
        piece = os.read(pipe, _PIECE)
        if not piece:
            return
        held += piece
