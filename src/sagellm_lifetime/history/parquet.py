"""Guards around reading Parquet files that may be damaged.

Counts: :func:`counts_agree` compares the counts of a file before polars allocates by them. A
damaged count of values makes polars allocate as many, which can end the process. The counts are in
the file's footer, in each column chunk's and in the header of each page. What cannot be understood
is left to polars, whose errors are handled. Both kinds of header are Thrift structs in the compact
protocol (parquet-format, parquet.thrift).

Panic reports: on some damaged files polars panics inside. Python gets an exception, which is
handled, but the Rust side has printed a report and a stack to stderr before.
:func:`no_panic_reports` buffers stderr meanwhile and drops those reports; all other output is
written afterwards.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from sagellm_lifetime.core.errors import HistoryError

_FOOTER: Final = 8  # bytes at the end: the length of the footer, and b"PAR1"
_HEADER: Final = 1 << 16  # bytes read for a page's header; longer statistics are left to polars
_DEEPEST: Final = 12
_REPEATED: Final = 2
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Field numbers of parquet.thrift.
_SCHEMA, _ROWS, _GROUPS = 2, 3, 4
_NAME, _REPETITION, _CHILDREN = 4, 3, 5
_COLUMNS, _GROUP_ROWS, _META = 1, 3, 3
_PATH, _VALUES, _UNPACKED, _PACKED, _FIRST_PAGE, _FIRST_DICTIONARY = 3, 5, 6, 7, 9, 11
_TYPE, _PAGE_UNPACKED, _PAGE_PACKED = 1, 2, 3
_PAGE_VALUES: Final = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}


def damaged_parquet(path: Path) -> HistoryError:
    """Return the error of a Parquet file that polars cannot read."""
    return HistoryError(
        f"{path}: not a readable Parquet file (truncated or damaged): copy it again"
    )


class DisagreementError(Exception):
    """Two counts of the file contradict each other."""


def counts_agree(path: Path) -> bool:
    """Return False if counts in a Parquet file contradict each other, True if none were found to.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            _check(stream)
    except DisagreementError:
        return False
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return True  # not understood, so polars decides
    return True


def _check(stream: IO[bytes]) -> None:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _FOOTER))
    length = int.from_bytes(stream.read(4), "little")
    if _FOOTER + length > size:
        raise ValueError("no footer")
    stream.seek(size - _FOOTER - length)
    footer, _ = _struct(stream.read(length), 0)
    nested = _repeated_columns(footer[_SCHEMA])
    groups = footer[_GROUPS]
    if sum(group[_GROUP_ROWS] for group in groups) != footer[_ROWS]:
        raise DisagreementError
    for group in groups:
        for chunk in group[_COLUMNS]:
            meta = chunk[_META]
            path = tuple(meta[_PATH])
            if path not in nested and meta[_VALUES] != group[_GROUP_ROWS]:
                raise DisagreementError
            _check_pages(stream, meta, size)


def _repeated_columns(schema: list[dict[int, Any]]) -> set[tuple[bytes, ...]]:
    """Return the paths of the columns whose rows may hold several values."""
    repeated_paths: set[tuple[bytes, ...]] = set()
    stack: list[tuple[tuple[bytes, ...], bool, int]] = []  # path, repeated, children left
    for element in schema[1:]:
        while stack and stack[-1][2] == 0:
            stack.pop()
        path, repeated = ((), False) if not stack else stack[-1][:2]
        if stack:
            stack[-1] = (*stack[-1][:2], stack[-1][2] - 1)
        path = (*path, element[_NAME])
        repeated = repeated or element.get(_REPETITION) == _REPEATED
        children = element.get(_CHILDREN, 0)
        if children:
            stack.append((path, repeated, children))
        elif repeated:
            repeated_paths.add(path)
    return repeated_paths


def _check_pages(stream: IO[bytes], meta: dict[int, Any], size: int) -> None:
    """Raise DisagreementError if a column chunk's pages hold other counts than it states."""
    offset = min(meta[_FIRST_PAGE], meta.get(_FIRST_DICTIONARY) or meta[_FIRST_PAGE])
    end = offset + meta[_PACKED]
    if not 0 < offset <= end <= size:
        raise DisagreementError
    values = 0
    while offset < end and values < meta[_VALUES]:
        stream.seek(offset)
        header, used = _struct(stream.read(_HEADER), 0)
        packed, unpacked = header[_PAGE_PACKED], header[_PAGE_UNPACKED]
        if packed < 0 or not 0 <= unpacked <= meta[_UNPACKED] or offset + used + packed > end:
            raise DisagreementError
        page_type = header[_TYPE]
        page_values = header[_PAGE_VALUES[page_type]][1] if page_type in _PAGE_VALUES else 0
        if not 0 <= page_values <= meta[_VALUES]:
            raise DisagreementError
        values += page_values if page_type in (_DATA, _DATA_V2) else 0
        offset += used + packed
    if values != meta[_VALUES]:
        raise DisagreementError


def _struct(data: bytes, offset: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return a struct of the compact protocol as field number -> value, and where it ends."""
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    fields: dict[int, Any] = {}
    number = 0
    while wire_type := data[offset] & 15:
        step, offset = data[offset] >> 4, offset + 1
        if step:
            number += step
        else:
            number, offset = _zigzag(data, offset)
        fields[number], offset = _value(data, offset, wire_type, depth)
    return fields, offset + 1


def _value(data: bytes, offset: int, wire_type: int, depth: int) -> tuple[Any, int]:  # noqa: PLR0911
    if wire_type in (1, 2):  # true, false
        return wire_type == 1, offset
    if wire_type == 3:  # a byte
        return data[offset], offset + 1
    if wire_type in (4, 5, 6):  # integers
        return _zigzag(data, offset)
    if wire_type == 7:  # a double
        return data[offset : offset + 8], offset + 8
    if wire_type == 8:  # bytes
        length, offset = _varint(data, offset)
        if offset + length > len(data):
            raise ValueError("cut short")
        return data[offset : offset + length], offset + length
    if wire_type in (9, 10):
        return _list(data, offset, depth)
    if wire_type == 12:
        return _struct(data, offset, depth + 1)
    raise ValueError("no type of the compact protocol")


def _list(data: bytes, offset: int, depth: int) -> tuple[list[Any], int]:
    count, wire_type, offset = data[offset] >> 4, data[offset] & 15, offset + 1
    if count == 15:
        count, offset = _varint(data, offset)
    if count > len(data):
        raise ValueError("more items than bytes")
    items = []
    for _ in range(count):
        if wire_type in (1, 2):  # in a list, a boolean is a byte of its own
            item, offset = data[offset] == 1, offset + 1
        else:
            item, offset = _value(data, offset, wire_type, depth + 1)
        items.append(item)
    return items, offset


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _zigzag(data: bytes, offset: int) -> tuple[int, int]:
    value, offset = _varint(data, offset)
    return (value >> 1) ^ -(value & 1), offset


_REPORT = re.compile(
    rb"\n?thread '[^\n]*panicked at [^\n]*\n"  # the head, then the message and the stack
    rb"(?:(?!\n|thread ')[^\n]*\n?)*"
)
_STDERR = 2
_lock = threading.Lock()
_readers = 0
_saved_stderr = -1
_buffer: IO[bytes] | None = None


@contextmanager
def no_panic_reports() -> Iterator[None]:
    """Drop panic reports that reach stderr in the block; several threads may be in it at once."""
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _readers, _saved_stderr, _buffer  # noqa: PLW0603 - stderr is one for the whole process
    with _lock:
        _readers += 1
        if _readers > 1:
            return
        try:
            buffer = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the last reader to leave
            if sys.stderr is not None:
                sys.stderr.flush()
            _saved_stderr = os.dup(_STDERR)
            os.dup2(buffer.fileno(), _STDERR)
            _buffer = buffer
        except (OSError, ValueError):  # stderr is closed or the disk full: reports may show
            _buffer = None


def _leave() -> None:
    global _readers, _buffer  # noqa: PLW0603
    with _lock:
        _readers -= 1
        if _readers or _buffer is None:
            return
        buffer, _buffer = _buffer, None
        if sys.stderr is not None and not sys.stderr.closed:
            sys.stderr.flush()
        os.dup2(_saved_stderr, _STDERR)
        os.close(_saved_stderr)
        with buffer:
            buffer.seek(0)
            rest = _REPORT.sub(b"", buffer.read())
        if rest.strip():
            os.write(_STDERR, rest)
