"""Writer of an ONNX graph with nodes, constants, and parameters without values.

The bytes are protocol buffers with the field numbers of https://onnx.ai/onnx/repo-docs/IR.html, so
that a server needs onnxruntime but not ``onnx``; the tests check them with ``onnx``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

_OPSET: Final = 17
_IR: Final = 9
_TYPES: Final = {np.dtype(np.float32): 1, np.dtype(np.int32): 6, np.dtype(np.int64): 7}
"""Numbers of the element types."""
_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7
"""Numbers of the attribute types."""


class Graph:
    """Nodes, constants and parameters of one ONNX graph.

    >>> graph = Graph()
    >>> graph.linear("x", "layer", wide=3, out=2)
    'layer.output'
    >>> graph.parameters
    {'layer.weight': (3, 2), 'layer.bias': (2,)}
    """

    def __init__(self) -> None:
        self.parameters: dict[str, tuple[int, ...]] = {}
        """Name and shape of every float32 array of weights."""
        self._nodes: list[bytes] = []
        self._constants: dict[str, np.ndarray] = {}

    def parameter(self, name: str, *shape: int) -> str:
        """Declare a parameter; return its name."""
        self.parameters[name] = shape
        return name

    def constant(self, name: str, value: Any, dtype: type = np.int64) -> str:
        """Add a constant, or replace the one of that name; return its name."""
        self._constants[name] = np.array(value, dtype=dtype)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; return its name."""
        self.nodes(op, inputs, [output], **attributes)
        return output

    def nodes(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node with several outputs.

        Args:
            op: type of the node.
            inputs: names of its inputs.
            outputs: names of its outputs; an empty name stands for an unused one.
            attributes: floats, whole numbers, strings, or lists of whole numbers.
        """
        self._nodes.append(
            _texts(1, inputs)
            + _texts(2, outputs)
            + _text(4, op)
            + b"".join(_part(5, _attribute(k, v)) for k, v in sorted(attributes.items()))
        )

    def linear(self, x: str, name: str, wide: int, out: int) -> str:
        """Add ``x @ W + b`` for ``x`` of shape ``(N, wide)``; the result has shape ``(N, out)``.

        The parameters are ``{name}.weight`` of shape ``(wide, out)``, the transpose of PyTorch's,
        and ``{name}.bias``.
        """
        w = self.parameter(f"{name}.weight", wide, out)
        b = self.parameter(f"{name}.bias", out)
        return self.node("Gemm", [x, w, b], f"{name}.output")

    def model(self, width: int, output: str, values: Mapping[str, np.ndarray]) -> bytes:
        """Return the ONNX model: ``x`` of shape ``(B, T, width)`` and ``lengths`` ``(B,)`` in.

        Args:
            width: width of a step.
            output: name of the output.
            values: values of the parameters by name.
        """
        arrays = self._constants | dict(values)
        graph = (
            b"".join(_part(1, node) for node in self._nodes)
            + _text(2, "lifetime")
            + b"".join(_part(5, _tensor(name, value)) for name, value in arrays.items())
            + _part(11, _value("x", np.float32, ["B", "T", width]))
            + _part(11, _value("lengths", np.int32, ["B"]))
            + _part(12, _value(output, np.float32, None))
        )
        opset = _text(1, "") + _number(2, _OPSET)
        return _number(1, _IR) + _part(7, graph) + _part(8, opset)


def _varint(value: int) -> bytes:
    """Return a whole number, seven bits a byte; a negative one as 64 bits."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _part(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _part(field, value.encode())


def _texts(field: int, values: Iterable[str]) -> bytes:
    return b"".join(_text(field, value) for value in values)


def _attribute(name: str, value: Any) -> bytes:
    """Return an ``AttributeProto``."""
    if isinstance(value, float):
        type_number, content = _FLOAT, _key(2, _FIXED32) + struct.pack("<f", value)
    elif isinstance(value, int):
        type_number, content = _INT, _number(3, value)
    elif isinstance(value, str):
        type_number, content = _STRING, _text(4, value)
    else:
        type_number, content = _INTS, b"".join(_number(8, item) for item in value)
    return _text(1, name) + content + _number(20, type_number)


def _tensor(name: str, value: np.ndarray) -> bytes:
    """Return a ``TensorProto``; its data are little-endian."""
    little = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return (
        b"".join(_number(1, size) for size in value.shape)
        + _number(2, _TYPES[value.dtype])
        + _text(8, name)
        + _part(9, little.tobytes())
    )


def _value(name: str, dtype: type, shape: list[str | int] | None) -> bytes:
    """Return a ``ValueInfoProto``; a size may have a name."""
    tensor = _number(1, _TYPES[np.dtype(dtype)])
    if shape is not None:
        sizes = (_text(2, d) if isinstance(d, str) else _number(1, d) for d in shape)
        tensor += _part(2, b"".join(_part(1, size) for size in sizes))
    return _text(1, name) + _part(2, _part(1, tensor))
