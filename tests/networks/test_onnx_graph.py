"""The bytes that are written are those that the package onnx writes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sagellm_lifetime.networks import graphs
from sagellm_lifetime.networks.onnx_graph import Graph


def test_bytes_are_those_of_the_library():
    graph = Graph()
    graph.node("LSTM", ["x", "", "W"], "y", hidden_size=300, direction="forward", axes=[0, -1])
    graph.nodes("Split", ["y", graph.constant("sizes", [1, -2])], ["a", ""], alpha=0.25, beta=-1e-5)
    values = {"W": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros(0, np.float32)}
    nodes = [
        helper.make_node(
            "LSTM", ["x", "", "W"], ["y"], hidden_size=300, direction="forward", axes=[0, -1]
        ),
        helper.make_node("Split", ["y", "sizes"], ["a", ""], alpha=0.25, beta=-1e-5),
    ]
    arrays = {"sizes": np.array([1, -2], dtype=np.int64)} | values
    theirs = helper.make_model(
        helper.make_graph(
            nodes,
            "lifetime",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", 200]),
                helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
            ],
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    ours = graph.model(200, "a", values)
    assert onnx.load_from_string(ours) == theirs
    assert ours == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "network", [graphs.lstm(16, 2), graphs.transformer(16, 2, 2)], ids=["lstm", "transformer"]
)
def test_the_networks_are_valid(network):
    graph = network.graph()
    values = {k: np.ones(shape, dtype=np.float32) for k, shape in graph.parameters.items()}
    model = onnx.load_from_string(graph.model(graphs.IN, graphs.OUTPUT, values))
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(inferred)
