"""Networks in onnxruntime: a graph built by hand from the weights, one thread, no PyTorch.

The graph is a few nodes, so building it and its session takes milliseconds, and new weights are
swapped in by building a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import Step
from sagellm_lifetime.learning.head import ABSOLUTE, BASIS, NAME_DIM, TOKEN_DIM

Weights = dict[str, np.ndarray]
_OPSET: Final = 17
_IR: Final = 9
_DIM: Final = WIDTH + TOKEN_DIM + NAME_DIM


class Graph:
    """Collects nodes and constants of one ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; returns its name."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def linear(self, x: str, weights: Weights, name: str, *, weight: str = "weight") -> str:
        """``x @ W.T + b`` of a ``torch.nn.Linear`` with that name."""
        bias = weight.replace("weight", "bias")
        w = self.constant(f"{name}.{weight}.T", weights[f"{name}.{weight}"].T)
        b = self.constant(f"{name}.{bias}", weights[f"{name}.{bias}"])
        return self.node(
            "Add", [self.node("MatMul", [x, w], f"{name}.product"), b], f"{name}.output"
        )

    def model(self, output: str) -> Any:
        """The ONNX model: ``x`` of shape ``(B, T, width)`` and ``lengths`` ``(B,)`` in."""
        from onnx import TensorProto, helper

        inputs: dict[str, tuple[int, list[str | int | None]]] = {
            "x": (TensorProto.FLOAT, ["B", "T", _DIM]),
            "lengths": (TensorProto.INT32, ["B"]),
        }

        graph = helper.make_graph(
            self.nodes,
            "lifetime",
            [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in inputs.items()],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.constants,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR
        )


class Runner:
    """A network with its weights, callable on sequences of steps."""

    def __init__(self, model: Any, weights: Weights) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.model = model
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._tokens = weights["evidence.tokens.weight"]
        self._names = weights["evidence.names.weight"]

    def __call__(self, steps: Sequence[Step]) -> np.ndarray:
        """Corrections of one sequence, shape ``(BINS + RELATIVE,)``.

        One sequence a call: in a padded batch each would cost as much (sequences are short and
        onnxruntime is called once per sequence in 50 µs), and its last bits would depend on the
        company it is in.
        """
        x = np.zeros((1, len(steps), _DIM), dtype=np.float32)
        for j, step in enumerate(steps):
            row = x[0, j]
            row[:WIDTH] = step.numbers
            if len(step.tokens):
                total = np.add.reduce(self._tokens[step.tokens], axis=0)
                np.divide(total, len(step.tokens), out=row[WIDTH : WIDTH + TOKEN_DIM])
            if len(step.names):
                np.add.reduce(self._names[step.names], axis=0, out=row[WIDTH + TOKEN_DIM :])
        feeds = {"x": x, "lengths": np.array([len(steps)], dtype=np.int32)}
        return np.asarray(self._session.run(None, feeds)[0])[0]


def _folded_head(weights: Weights) -> Weights:
    """The head with the piecewise linear basis multiplied in: corrections per bin come out."""
    w, b = weights["head.weight"], weights["head.bias"]
    return {
        "head.weight": np.concatenate([BASIS.T @ w[:ABSOLUTE], w[ABSOLUTE:]]),
        "head.bias": np.concatenate([b[:ABSOLUTE] @ BASIS, b[ABSOLUTE:]]),
    }


def lstm_runner(weights: Weights) -> Runner:
    """Runner of an ``LSTMNetwork`` from its state dict."""
    from onnx import helper

    g = Graph()
    x = g.node("Transpose", ["x"], "time_major", perm=[1, 0, 2])
    layers = sum(key.startswith("lstm.weight_ih_l") for key in weights)
    hidden = weights["lstm.weight_hh_l0"].shape[1]
    last = ""
    for layer in range(layers):
        w, r, b = (
            g.constant(f"{part}{layer}", value)
            for part, value in (
                ("W", _gates(weights[f"lstm.weight_ih_l{layer}"])[None]),
                ("R", _gates(weights[f"lstm.weight_hh_l{layer}"])[None]),
                (
                    "B",
                    np.concatenate(
                        [
                            _gates(weights[f"lstm.bias_ih_l{layer}"]),
                            _gates(weights[f"lstm.bias_hh_l{layer}"]),
                        ]
                    )[None],
                ),
            )
        )
        outputs = [f"Y{layer}", f"H{layer}"]
        g.nodes.append(
            helper.make_node("LSTM", [x, w, r, b, "lengths"], outputs, hidden_size=hidden)
        )
        axis = "axis1" if layer == 0 else f"axis1_{layer}"
        g.constant(axis, np.array([1], dtype=np.int64))
        x = g.node("Squeeze", [f"Y{layer}", axis], f"states{layer}")
        last = f"H{layer}"
    g.constant("axis0", np.array([0], dtype=np.int64))
    state = g.node("Squeeze", [last, "axis0"], "state")
    return Runner(g.model(g.linear(state, _folded_head(weights), "head")), weights)


def transformer_runner(weights: Weights, nhead: int) -> Runner:
    """Runner of a ``TransformerNetwork`` from its state dict; the padding is masked."""
    g = Graph()
    x = g.linear("x", weights, "project")
    mask = _mask(g)
    blocks = sum(key.endswith(".attention.in_proj_weight") for key in weights)
    for i in range(blocks):
        x = _block(g, x, weights, f"blocks.{i}", nhead, mask, last=i == blocks - 1)
    output = g.linear(_norm(g, x, weights, "norm"), _folded_head(weights), "head")
    g.constant("squeeze_axis", np.array([1], dtype=np.int64))
    flat = g.node("Squeeze", [output, "squeeze_axis"], "flat")
    return Runner(g.model(flat), weights)


def _gates(value: np.ndarray) -> np.ndarray:
    """PyTorch orders the gates i, f, g, o; ONNX i, o, f, c."""
    i, f, c, o = np.split(value, 4)
    return np.concatenate([i, o, f, c])


def _mask(g: Graph) -> str:
    """``(B, 1, 1, T)``: 0 where a step is, -1e9 where there is none; also the last index."""
    g.constant("one", np.array(1, dtype=np.int64))
    g.constant("zero", np.array(0, dtype=np.int64))
    g.constant("axes", np.array([1, 2, 3], dtype=np.int64))
    g.constant("never", np.array(-1e9, dtype=np.float32))
    g.constant("always", np.array(0.0, dtype=np.float32))
    shape = g.node("Shape", ["x"], "shape")
    length = g.node("Gather", [shape, "one"], "T", axis=0)
    steps = g.node("Range", ["zero", length, "one"], "steps")
    lengths = g.node("Cast", ["lengths"], "lengths64", to=7)
    wide = g.node("Unsqueeze", [lengths, "axes"], "wide")
    there = g.node("Less", [steps, wide], "there")
    g.node("Sub", [lengths, "one"], "newest")
    g.constant("newest_axes", np.array([1], dtype=np.int64))
    g.node("Unsqueeze", ["newest", "newest_axes"], "newest_index")
    return g.node("Where", [there, "always", "never"], "mask")


def _norm(g: Graph, x: str, weights: Weights, name: str) -> str:
    scale = g.constant(f"{name}.scale", weights[f"{name}.weight"])
    bias = g.constant(f"{name}.shift", weights[f"{name}.bias"])
    return g.node("LayerNormalization", [x, scale, bias], f"{name}.normed", axis=-1, epsilon=1e-5)


def _block(
    g: Graph, x: str, weights: Weights, name: str, nhead: int, mask: str, *, last: bool
) -> str:
    y = _norm(g, x, weights, f"{name}.norm1")
    if last:
        # Only the newest step is read out, so the last block asks for nothing else.
        x = g.node("GatherND", [x, "newest_index"], f"{name}.x_newest", batch_dims=1)
        g.constant(f"{name}.axis", np.array([1], dtype=np.int64))
        x = g.node("Unsqueeze", [x, f"{name}.axis"], f"{name}.x1")
        asking = g.node("GatherND", [y, "newest_index"], f"{name}.y_newest", batch_dims=1)
        asking = g.node("Unsqueeze", [asking, f"{name}.axis"], f"{name}.y1")
    else:
        asking = y
    width = weights[f"{name}.norm1.weight"].shape[0]
    q, k, v = (
        _heads(g, source, weights, name, part, nhead) for part, source in enumerate((asking, y, y))
    )
    k_t = g.node("Transpose", [k], f"{name}.k_t", perm=[0, 1, 3, 2])
    scale = g.constant(f"{name}.scale", np.array((width // nhead) ** -0.5, dtype=np.float32))
    scores = g.node("Mul", [g.node("MatMul", [q, k_t], f"{name}.qk"), scale], f"{name}.scores")
    scores = g.node("Add", [scores, mask], f"{name}.masked")
    shares = g.node("Softmax", [scores], f"{name}.shares", axis=-1)
    mixed = g.node("MatMul", [shares, v], f"{name}.mixed")
    mixed = g.node("Transpose", [mixed], f"{name}.mixed_t", perm=[0, 2, 1, 3])
    shape = g.constant(f"{name}.flat", np.array([0, 0, width], dtype=np.int64))
    mixed = g.node("Reshape", [mixed, shape], f"{name}.joined")
    x = g.node("Add", [x, g.linear(mixed, weights, f"{name}.attention.out_proj")], f"{name}.x2")
    up = g.linear(_norm(g, x, weights, f"{name}.norm2"), weights, f"{name}.up")
    down = g.linear(g.node("Relu", [up], f"{name}.relu"), weights, f"{name}.down")
    return g.node("Add", [x, down], f"{name}.x3")


def _heads(g: Graph, x: str, weights: Weights, name: str, part: int, nhead: int) -> str:
    """One of query, key, value of all heads, ``(B, nhead, T, width / nhead)``."""
    matrix = np.split(weights[f"{name}.attention.in_proj_weight"], 3)[part]
    bias = np.split(weights[f"{name}.attention.in_proj_bias"], 3)[part]
    label = f"{name}.{'qkv'[part]}"
    y = g.linear(x, {f"{label}.weight": matrix, f"{label}.bias": bias}, label)
    shape = g.constant(
        f"{label}.shape", np.array([0, 0, nhead, matrix.shape[0] // nhead], dtype=np.int64)
    )
    y = g.node("Reshape", [y, shape], f"{label}.split")
    return g.node("Transpose", [y], f"{label}.heads", perm=[0, 2, 1, 3])
