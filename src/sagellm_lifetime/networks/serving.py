"""Networks in onnxruntime: one thread, no PyTorch, and new weights without a new session.

Building a session takes milliseconds, during which onnxruntime holds the GIL. So a session reads
its parameters from NumPy arrays at every run, and new weights are copied into them without the GIL.
A session in use is never written to: a runner owns its session until it is deleted, and the next
runner gets a free one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from sagellm_lifetime.core.checked import checked
from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import Step
from sagellm_lifetime.networks.graphs import IN, OUTPUT, Network, Weights
from sagellm_lifetime.networks.head import TOKEN_DIM
from sagellm_lifetime.networks.onnx_graph import Graph

_LARGEST_WEIGHT: Final = 1e3
"""Maximum absolute weight; trained ones are of the order of one, and larger ones could overflow."""
_LINE: Final = 64
"""Alignment of parameters, the bytes of a cache line."""


class Session:
    """onnxruntime session over parameters that may be replaced while it does not run."""

    def __init__(self, graph: Graph) -> None:
        import onnxruntime

        self._graph = graph
        self._arrays = {name: _zeros(shape) for name, shape in graph.parameters.items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # No optimization may copy the parameters when the session is built: no folded constants,
        # no fused nodes, no packed matrices. The graph has little to optimize.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        # The views must live as long as the session.
        self._views = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in self._arrays.items()
        }
        for name, view in self._views.items():
            options.add_initializer(name, view)
        self.run = onnxruntime.InferenceSession(
            self.model(), options, providers=["CPUExecutionProvider"]
        ).run

    def load(self, arrays: Weights) -> None:
        """Copy new parameters in; NumPy releases the GIL for that.

        Raises:
            ValueError: names or shapes are not those of the graph, or a type is not float32.
        """
        shapes = {name: array.shape for name, array in arrays.items() if array.dtype == np.float32}
        if shapes != self._graph.parameters:
            differing = dict(shapes.items() ^ self._graph.parameters.items())
            raise ValueError(f"weights of another network: {', '.join(sorted(differing))}")
        for name, array in arrays.items():
            np.copyto(self._arrays[name], array)

    def model(self) -> bytes:
        """Return the ONNX model with the present parameters."""
        return self._graph.model(IN, OUTPUT, self._arrays)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    size = 4 * int(np.prod(shape))
    room = np.zeros(size + _LINE, dtype=np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(np.float32).reshape(shape)


class Runner:
    """Network with its weights, callable on sequences of steps."""

    def __init__(
        self, session: Session, free: list[Session], arrays: Weights, weights: Weights
    ) -> None:
        self._session, self._free = session, free
        session.load(arrays)
        self._run = session.run
        self._tokens = weights["evidence.tokens.weight"]
        self._names = weights["evidence.names.weight"]

    def __call__(self, steps: Sequence[Step]) -> np.ndarray:
        """Return the corrections of one sequence, float32 of shape ``(BINS + RELATIVE,)``.

        There is no batch: sequences are short and a call takes 50 µs, so a padded batch would save
        nothing, and the last bits of an answer would depend on the other sequences in it.
        """
        x = np.zeros((1, len(steps), IN), dtype=np.float32)
        for j, step in enumerate(steps):
            row = x[0, j]
            row[:WIDTH] = step.numbers
            if len(step.tokens):
                total = np.add.reduce(self._tokens[step.tokens], axis=0)
                np.divide(total, len(step.tokens), out=row[WIDTH : WIDTH + TOKEN_DIM])
            if len(step.names):
                np.add.reduce(self._names[step.names], axis=0, out=row[WIDTH + TOKEN_DIM :])
        feeds = {"x": x, "lengths": np.array([len(steps)], dtype=np.int32)}
        return np.asarray(self._run([OUTPUT], feeds)[0])[0]

    def model(self) -> bytes:
        """Return the network as an ONNX model, which also accepts padded batches."""
        return self._session.model()

    def __del__(self) -> None:
        # A runner without references cannot run, so its session is free.
        self._free.append(self._session)


class Runners:
    """Factory of the runners of one network, which reuses a few sessions."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free: list[Session] = []

    def prepare(self, count: int) -> None:
        """Build sessions until ``count`` are free, for the next runners."""
        while len(self._free) < count:
            self._free.append(Session(self._network.graph()))

    def check(self, weights: Weights) -> None:
        """Raise :class:`ValueError` if weights are not of this network, or not finite and small.

        Called before anything is allocated, since a file may declare a network of any width.
        """
        shapes = self._network.shapes
        differing = sorted(weights.keys() ^ shapes.keys())
        if differing:
            raise ValueError(f"weights of another network: {differing[0]!r}")
        for name, shape in shapes.items():
            checked(weights, name, np.float32, shape, -_LARGEST_WEIGHT, _LARGEST_WEIGHT)

    def __call__(self, weights: Weights) -> Runner:
        """Return a runner of a state dict. Raises :class:`ValueError` for another network's."""
        arrays = self._network.arrays(weights)
        try:
            session = self._free.pop()
        except IndexError:
            session = Session(self._network.graph())
        return Runner(session, self._free, arrays, weights)
