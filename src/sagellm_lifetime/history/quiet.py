"""Keeping the panic reports of polars' Rust side off stderr.

On some damaged Parquet files polars panics inside. Python sees an exception, which is handled, but
the Rust side has printed a report and a stack on the process's stderr before that. While such a
file is read, stderr goes to memory; what is no panic report is written out right afterwards.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_REPORT = re.compile(
    rb"\n?thread '[^\n]*panicked at [^\n]*\n"  # the head, then the message and the stack
    rb"(?:(?!\n|thread ')[^\n]*\n?)*"
)
_STDERR = 2
_lock = threading.Lock()
_readers = 0
_saved = -1
_held: IO[bytes] | None = None


@contextmanager
def no_panic_reports() -> Iterator[None]:
    """Drop panic reports that reach stderr within; several threads may be inside at once."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _readers, _saved, _held  # noqa: PLW0603 - stderr is one for the whole process
    with _lock:
        _readers += 1
        if _readers > 1:
            return
        try:
            held = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the last reader to leave
            if sys.stderr is not None:
                sys.stderr.flush()
            _saved = os.dup(_STDERR)
            os.dup2(held.fileno(), _STDERR)
            _held = held
        except (OSError, ValueError):  # stderr is closed, or there is no place: reports may show
            _held = None


def _leave() -> None:
    global _readers, _held  # noqa: PLW0603
    with _lock:
        _readers -= 1
        if _readers or _held is None:
            return
        held, _held = _held, None
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
        os.dup2(_saved, _STDERR)
        os.close(_saved)
        with held:
            held.seek(0)
            rest = _REPORT.sub(b"", held.read())
        if rest.strip():
            os.write(_STDERR, rest)
