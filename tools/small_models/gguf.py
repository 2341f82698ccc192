"""Reading a GGUF file: what it says of the model, and its tensors as float32.

The format is llama.cpp's (``docs/gguf.md`` there): a header, pairs of key and value, a list of
tensors, and their blocks. Only the kinds of tensors that we have met are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from small_models.errors import ModelError

_SCALARS: Final = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9
_BLOCK: Final = 32
"""Values a quantised block holds."""
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK_TYPES: Final = {
    _F32: np.dtype("<f4"),
    _Q4_1: np.dtype([("scale", "<f2"), ("least", "<f2"), ("nibbles", "u1", _BLOCK // 2)]),
    _Q8_0: np.dtype([("scale", "<f2"), ("values", "i1", _BLOCK)]),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies; ``shape`` as PyTorch has it, the fastest axis last."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A whole file in memory."""

    said: dict[str, Any]
    tensors: tuple[Tensor, ...]
    data: memoryview

    def values(self, tensor: Tensor) -> NDArray[np.float32]:
        """A tensor, dequantised."""
        count = prod(tensor.shape)
        blocks = count if tensor.kind == _F32 else count // _BLOCK
        if len(self.data) < tensor.offset + blocks * _BLOCK_TYPES[tensor.kind].itemsize:
            raise ModelError(f"{tensor.name}: the GGUF file ends before it: fetch it again")
        raw = np.frombuffer(self.data, _BLOCK_TYPES[tensor.kind], blocks, tensor.offset)
        return _dequantised(raw, tensor.kind).reshape(tensor.shape)


def _dequantised(raw: NDArray[Any], kind: int) -> NDArray[np.float32]:
    if kind == _F32:
        return raw.astype(np.float32)
    scale = raw["scale"].astype(np.float32)[:, None]
    if kind == _Q8_0:
        return scale * raw["values"]
    # The low halves of the bytes are the first 16 values, the high halves the other 16.
    nibbles = np.concatenate([raw["nibbles"] & 15, raw["nibbles"] >> 4], axis=1)
    return scale * nibbles + raw["least"].astype(np.float32)[:, None]


def read_gguf(content: bytes) -> Gguf:
    """Read a file; its tensors are dequantised when they are asked for.

    Raises:
        ModelError: it is no GGUF file, or has tensors of a kind that is not read here.
    """
    try:
        return _read(content)
    except (struct.error, UnicodeDecodeError, KeyError) as error:
        raise ModelError("the GGUF file is damaged: fetch it again") from error


def _read(content: bytes) -> Gguf:
    cursor = _Cursor(content)
    magic, version = cursor.take("4s"), cursor.take("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ModelError(f"not a GGUF file of version 2 or 3 (it begins with {magic!r}, {version})")
    tensor_count, key_count = cursor.take("Q"), cursor.take("Q")
    said = {cursor.text(): cursor.value(cursor.take("I")) for _ in range(key_count)}
    tensors = tuple(_tensors(cursor, tensor_count))
    alignment = said.get("general.alignment", 32)
    start = -(-cursor.at // alignment) * alignment
    return Gguf(said, tensors, memoryview(content)[start:])


def _tensors(cursor: _Cursor, count: int) -> Iterator[Tensor]:
    for _ in range(count):
        name = cursor.text()
        shape = tuple(cursor.take("Q") for _ in range(cursor.take("I")))[::-1]
        kind, offset = cursor.take("I"), cursor.take("Q")
        if kind not in _BLOCK_TYPES:
            raise ModelError(
                f"{name}: tensors of GGUF kind {kind} are not read, only F32, Q4_1, Q8_0"
            )
        yield Tensor(name, shape, kind, offset)


class _Cursor:
    """A place in the file, moved by what is read there."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, form: str) -> Any:
        """One little-endian number."""
        (value,) = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return value

    def text(self) -> str:
        """A string after its length."""
        length = self.take("Q")
        self.at += length
        return self.content[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        """A value of the given kind: a string, a list or a number."""
        if kind == _STRING:
            return self.text()
        if kind == _LIST:
            of, length = self.take("I"), self.take("Q")
            return [self.value(of) for _ in range(length)]
        return self.take(_SCALARS[kind])
