"""ONNX graphs of the networks, and the conversion of their weights.

onnxruntime runs a graph without optimizing it (see ``networks.serving``), so the graphs have few
nodes: ``Gemm`` for ``Linear`` of PyTorch, one product for query, key and value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import NAME_BUCKETS
from sagellm_lifetime.features.text import BUCKETS
from sagellm_lifetime.networks.head import (
    ABSOLUTE,
    BASIS,
    NAME_DIM,
    OUTPUTS,
    RELATIVE,
    TOKEN_DIM,
)
from sagellm_lifetime.networks.onnx_graph import Graph

Weights = dict[str, np.ndarray]
IN: Final = WIDTH + TOKEN_DIM + NAME_DIM
"""Width of a step."""
OUTPUT: Final = "head.output"
"""Name of the output: corrections, shape ``(B, BINS + RELATIVE)``."""


class Network(NamedTuple):
    """Architecture of a network to be served, without weights."""

    graph: Callable[[], Graph]
    arrays: Callable[[Weights], Weights]
    """Function from a state dict to the graph's parameters, as new arrays or as views."""
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the arrays of a state dict."""


def lstm(hidden_size: int, num_layers: int) -> Network:
    """Return the graph of an ``LSTMNetwork``."""
    shapes = _shared_shapes(hidden_size)
    for i in range(num_layers):
        wide = hidden_size if i else IN
        shapes[f"lstm.weight_ih_l{i}"] = (4 * hidden_size, wide)
        shapes[f"lstm.weight_hh_l{i}"] = (4 * hidden_size, hidden_size)
        shapes[f"lstm.bias_ih_l{i}"] = shapes[f"lstm.bias_hh_l{i}"] = (4 * hidden_size,)
    return Network(partial(_lstm_graph, hidden_size, num_layers), _lstm_arrays, shapes)


def transformer(d_model: int, nhead: int, num_layers: int) -> Network:
    """Return the graph of a ``TransformerNetwork``; the padding is masked."""
    shapes = _shared_shapes(d_model) | _linear_shapes("project", IN, d_model)
    for i in range(num_layers):
        name = f"blocks.{i}"
        shapes |= _linear_shapes(f"{name}.attention.out_proj", d_model, d_model)
        shapes |= _linear_shapes(f"{name}.up", d_model, 2 * d_model)
        shapes |= _linear_shapes(f"{name}.down", 2 * d_model, d_model)
        shapes[f"{name}.attention.in_proj_weight"] = (3 * d_model, d_model)
        shapes[f"{name}.attention.in_proj_bias"] = (3 * d_model,)
    for name in ("norm", *(f"blocks.{i}.norm{k}" for i in range(num_layers) for k in (1, 2))):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (d_model,)
    return Network(
        partial(_transformer_graph, d_model, nhead, num_layers),
        partial(_transformer_arrays, nhead=nhead),
        shapes,
    )


def _shared_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the embeddings and the head, which all networks have."""
    return {
        "evidence.tokens.weight": (BUCKETS, TOKEN_DIM),
        "evidence.names.weight": (NAME_BUCKETS, NAME_DIM),
        **_linear_shapes("head", width, OUTPUTS),
    }


def _linear_shapes(name: str, wide: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, wide), f"{name}.bias": (out,)}


def _lstm_graph(hidden: int, layers: int) -> Graph:
    g = Graph()
    x = g.node("Transpose", ["x"], "time_major", perm=[1, 0, 2])
    wide = IN
    for i in range(layers):
        parts = [
            g.parameter(f"W{i}", 1, 4 * hidden, wide),
            g.parameter(f"R{i}", 1, 4 * hidden, hidden),
            g.parameter(f"B{i}", 1, 8 * hidden),
        ]
        # All states of a layer go to the next one, the newest state of the last to the head.
        last = i == layers - 1
        outputs = ["", "newest"] if last else [f"all{i}"]
        g.nodes("LSTM", [x, *parts, "lengths"], outputs, hidden_size=hidden)
        if not last:
            x = g.node("Squeeze", [f"all{i}", g.constant("axis1", [1])], f"states{i}")
        wide = hidden
    state = g.node("Squeeze", ["newest", g.constant("axis0", [0])], "state")
    g.linear(state, "head", hidden, BINS + RELATIVE)
    return g


def _lstm_arrays(weights: Weights) -> Weights:
    arrays = _head(weights)
    for i in range(sum(key.startswith("lstm.weight_ih_l") for key in weights)):
        w, r, b_w, b_r = (
            _gates(weights[f"lstm.{part}_l{i}"])
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        arrays |= {f"W{i}": w[None], f"R{i}": r[None], f"B{i}": np.concatenate([b_w, b_r])[None]}
    return arrays


def _gates(value: np.ndarray) -> np.ndarray:
    """Return gates in the order of ONNX (i, o, f, c) from that of PyTorch (i, f, g, o)."""
    i, f, c, o = np.split(value, 4)
    return np.concatenate([i, o, f, c])


def _head(weights: Weights) -> Weights:
    """Return the head times the piecewise linear basis, which gives one output per bin."""
    w, b = weights["head.weight"], weights["head.bias"]
    return {
        "head.weight": np.concatenate([BASIS.T @ w[:ABSOLUTE], w[ABSOLUTE:]]).T,
        "head.bias": np.concatenate([b[:ABSOLUTE] @ BASIS, b[ABSOLUTE:]]),
    }


def _transformer_graph(width: int, nhead: int, blocks: int) -> Graph:
    """Return the graph of a Transformer; outside attention, steps are rows ``(B * T, width)``."""
    g = Graph()
    # -1 in a shape stands for B or for B * T.
    g.constant("-1", [-1])
    g.node("Shape", ["x"], "T", start=1, end=2)
    mask = _mask(g)
    flat = g.node("Reshape", ["x", g.constant("flat_in", [-1, IN])], "x.flat")
    x = g.linear(flat, "project", IN, width)
    for i in range(blocks):
        x = _block(g, x, f"blocks.{i}", width, nhead, mask, last=i == blocks - 1)
    g.linear(_norm(g, x, "norm", "norm", width), "head", width, BINS + RELATIVE)
    return g


def _mask(g: Graph) -> str:
    """Add the mask ``(B, 1, 1, T)``, 0 for steps and -1e9 for padding; return its name."""
    g.constant("zero", 0)
    g.constant("one", 1)
    g.constant("never", -1e9, np.float32)
    g.constant("always", 0.0, np.float32)
    g.node("Squeeze", ["T"], "count")
    g.node("Range", ["zero", "count", "one"], "steps")
    g.node("Cast", ["lengths"], "lengths64", to=7)
    g.node("Unsqueeze", ["lengths64", g.constant("axes", [1, 2, 3])], "wide")
    g.node("Less", ["steps", "wide"], "there")
    return g.node("Where", ["there", "always", "never"], "mask")


def _newest(g: Graph, x: str, width: int) -> str:
    """Add the rows of the newest steps, ``(B, width)``; return their name."""
    g.node("Concat", ["-1", "T", g.constant("width", [width])], "by_sequence", axis=0)
    g.node("Sub", ["lengths64", "one"], "newest")
    g.node("Unsqueeze", ["newest", g.constant("axis1", [1])], "newest_index")
    x = g.node("Reshape", [x, "by_sequence"], "x.by_sequence")
    return g.node("GatherND", [x, "newest_index"], "x.newest", batch_dims=1)


def _norm(g: Graph, x: str, name: str, output: str, width: int) -> str:
    parts = [g.parameter(f"{name}.{part}", width) for part in ("weight", "bias")]
    return g.node("LayerNormalization", [x, *parts], f"{output}.normed", axis=-1, epsilon=1e-5)


def _block(g: Graph, x: str, name: str, width: int, nhead: int, mask: str, *, last: bool) -> str:
    y = _norm(g, x, f"{name}.norm1", f"{name}.norm1", width)
    q, k, v = (f"{name}.{part}" for part in "qkv")
    if last:
        # Only the newest step is used by the head, so the last block has no other query.
        x = _newest(g, x, width)
        query = _norm(g, x, f"{name}.norm1", f"{name}.query", width)
        query = g.linear(query, f"{name}.attention.q", width, width)
        g.node("Reshape", [query, g.constant("one_step", [-1, nhead, 1, width // nhead])], q)
        g.nodes("Split", [_heads(g, y, f"{name}.attention.kv", width, nhead, 2)], [k, v], axis=1)
    else:
        qkv = _heads(g, y, f"{name}.attention.qkv", width, nhead, 3)
        g.nodes("Split", [qkv], [q, k, v], axis=1)
    k = g.node("Transpose", [k], f"{k}.t", perm=[0, 1, 3, 2])
    scores = g.node("Add", [g.node("MatMul", [q, k], f"{name}.scores"), mask], f"{name}.masked")
    shares = g.node("Softmax", [scores], f"{name}.shares", axis=-1)
    mixed = g.node("MatMul", [shares, v], f"{name}.mixed")
    mixed = g.node("Transpose", [mixed], f"{name}.mixed.t", perm=[0, 2, 1, 3])
    mixed = g.node("Reshape", [mixed, g.constant("flat", [-1, width])], f"{name}.mixed.flat")
    mixed = g.linear(mixed, f"{name}.attention.out_proj", width, width)
    x = g.node("Add", [x, mixed], f"{name}.x1")
    y = _norm(g, x, f"{name}.norm2", f"{name}.norm2", width)
    up = g.node("Relu", [g.linear(y, f"{name}.up", width, 2 * width)], f"{name}.relu")
    return g.node("Add", [x, g.linear(up, f"{name}.down", 2 * width, width)], f"{name}.x2")


def _heads(g: Graph, x: str, name: str, width: int, nhead: int, parts: int) -> str:
    """Add the heads of ``parts`` of query, key and value; return their name.

    Their shape is ``(B, parts * nhead, T, width / nhead)``.
    """
    y = g.linear(x, name, width, parts * width)
    tail = g.constant(f"heads{parts}", [parts * nhead, width // nhead])
    shape = g.node("Concat", ["-1", "T", tail], f"{name}.shape", axis=0)
    y = g.node("Reshape", [y, shape], f"{name}.split")
    return g.node("Transpose", [y], f"{name}.heads", perm=[0, 2, 1, 3])


def _transformer_arrays(weights: Weights, nhead: int) -> Weights:
    arrays = _head(weights)
    blocks = sum(key.endswith(".attention.in_proj_weight") for key in weights)
    parts = ("norm1", "attention.out_proj", "norm2", "up", "down")
    in_blocks = (f"blocks.{i}.{part}" for i in range(blocks) for part in parts)
    for name in ("project", *in_blocks, "norm"):
        for key in (f"{name}.weight", f"{name}.bias"):
            arrays[key] = weights[key].T
    for i in range(blocks):
        name = f"blocks.{i}.attention"
        w, b = weights[f"{name}.in_proj_weight"].T, weights[f"{name}.in_proj_bias"]
        width = len(w)
        # The scale of the scores is a factor of the query's weights.
        scale = np.ones(3 * width, dtype=np.float32)
        scale[:width] = (width // nhead) ** -0.5
        w, b = w * scale, b * scale
        if i < blocks - 1:
            columns = {"qkv": slice(None)}
        else:
            columns = {"q": slice(width), "kv": slice(width, None)}
        for part, where in columns.items():
            arrays[f"{name}.{part}.weight"], arrays[f"{name}.{part}.bias"] = w[:, where], b[where]
    return arrays
