"""Writing an ONNX graph by hand: nodes, constants, and parameters, whose values come later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

_OPSET: Final = 17
_IR: Final = 9


class Graph:
    """Collects the nodes, constants and parameters of one ONNX graph."""

    def __init__(self) -> None:
        self.parameters: dict[str, tuple[int, ...]] = {}
        """Name and shape of every float32 array that training moves."""
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}

    def parameter(self, name: str, *shape: int) -> str:
        """Declare a parameter; returns its name."""
        self.parameters[name] = shape
        return name

    def constant(self, name: str, value: Any, dtype: type = np.int64) -> str:
        """Add a constant, or find it; returns its name."""
        self._constants[name] = np.array(value, dtype=dtype)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        self.nodes(op, inputs, [output], **attributes)
        return output

    def nodes(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node with several outputs; an empty name is one that nobody reads."""
        from onnx import helper

        self._nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def linear(self, x: str, name: str, wide: int, out: int) -> str:
        """``x @ W + b`` for ``x`` of shape ``(N, wide)``; the result has the shape ``(N, out)``.

        The parameters are ``{name}.weight`` of shape ``(wide, out)``, the transpose of PyTorch's,
        and ``{name}.bias``.
        """
        w = self.parameter(f"{name}.weight", wide, out)
        b = self.parameter(f"{name}.bias", out)
        return self.node("Gemm", [x, w, b], f"{name}.output")

    def model(self, width: int, output: str, values: Mapping[str, np.ndarray]) -> Any:
        """Return the ONNX model: ``x`` of shape ``(B, T, width)`` and ``lengths`` ``(B,)`` in.

        Args:
            width: numbers of a step.
            output: name of what comes out.
            values: of the parameters.
        """
        from onnx import TensorProto, helper, numpy_helper

        graph = helper.make_graph(
            self._nodes,
            "lifetime",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", width]),
                helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(value, name)
                for name, value in (self._constants | dict(values)).items()
            ],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
        )
