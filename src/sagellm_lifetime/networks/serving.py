"""Networks in onnxruntime: one thread, no PyTorch, and new weights without a new session.

To build a session takes milliseconds, and onnxruntime holds the GIL for them. So a session reads
its parameters from arrays of ours whenever it runs, and taking in new weights is copying them
there, which holds up nobody. What is being run is never written to: a runner keeps its session for
itself as long as it lives, and the next one gets a session that is free.
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
"""Trained weights are of the order of one. Products of larger ones would overflow in a network."""
_LINE: Final = 64
"""Bytes of a cache line, at which parameters start."""


class Session:
    """An onnxruntime session over parameters that may be written to while it does not run."""

    def __init__(self, graph: Graph) -> None:
        import onnxruntime

        self._graph = graph
        self._arrays = {name: _zeros(shape) for name, shape in graph.parameters.items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Nothing may keep what it made of the parameters when it was built: no folded constants,
        # no fused nodes, no packed matrices. The graph leaves them little to do.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Views of the arrays, which have to live as long as the session.
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
        """Copy new parameters in; NumPy needs no GIL for that.

        Raises:
            ValueError: they are not those of the graph, float32 and of its shapes.
        """
        found = {k: v.shape for k, v in arrays.items() if v.dtype == np.float32}
        if found != self._graph.parameters:
            odd = dict(found.items() ^ self._graph.parameters.items())
            raise ValueError(f"weights of another network: {', '.join(sorted(odd))}")
        for name, array in arrays.items():
            np.copyto(self._arrays[name], array)

    def model(self) -> bytes:
        """Return the ONNX model with the parameters as they are."""
        return self._graph.model(IN, OUTPUT, self._arrays)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    size = 4 * int(np.prod(shape))
    room = np.zeros(size + _LINE, dtype=np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(np.float32).reshape(shape)


class Runner:
    """A network with its weights, callable on sequences of steps."""

    def __init__(
        self, session: Session, free: list[Session], arrays: Weights, weights: Weights
    ) -> None:
        self._session, self._free = session, free
        session.load(arrays)
        self._run = session.run
        self._tokens = weights["evidence.tokens.weight"]
        self._names = weights["evidence.names.weight"]

    def __call__(self, steps: Sequence[Step]) -> np.ndarray:
        """Corrections of one sequence, shape ``(BINS + RELATIVE,)``.

        One sequence a call: in a padded batch each would cost as much (sequences are short and
        onnxruntime is called once per sequence in 50 µs), and its last bits would depend on the
        company it is in.
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
        """Return the network as an ONNX model, which takes padded batches too."""
        return self._session.model()

    def __del__(self) -> None:
        # Nobody can call it any more.
        self._free.append(self._session)


class Runners:
    """Makes the runners of one network, one after the other, of few sessions."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free: list[Session] = []

    def prepare(self, count: int) -> None:
        """Build sessions now, so that the next ``count`` runners living at a time need none."""
        while len(self._free) < count:
            self._free.append(Session(self._network.graph()))

    def check(self, weights: Weights) -> None:
        """Raise :class:`ValueError` where weights are not of this network, or not finite and small.

        Nothing is allocated before that: the width of a network is what a file says it is.
        """
        shapes = self._network.shapes
        odd = sorted(weights.keys() ^ shapes.keys())
        if odd:
            raise ValueError(f"weights of another network: {odd[0]!r}")
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
