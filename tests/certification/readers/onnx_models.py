"""Small ONNX models for the tests of the reader."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SINGLE = TensorProto.FLOAT


def numbers(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Uniform float32 numbers."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def node(op: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> Any:
    """One node; its outputs are named like the operator if no names are given."""
    found = list(outputs) or [op.lower()]
    return helper.make_node(op, list(inputs), found, name=f"the_{found[0]}", **attributes)


def onnx_bytes(
    nodes: Sequence[Any],
    shape: Sequence[int | str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 13,
    listed: bool = False,
    kind: int = SINGLE,
    output: str | None = None,
) -> bytes:
    """A model with the input `x`; its output is that of the last node.

    Args:
        nodes: its nodes.
        shape: shape of its input; words are free lengths.
        constants: initialisers by name.
        opset: operator set.
        listed: list the initialisers among the inputs, as files of IR version 3 do.
        kind: element type of input and output.
        output: name of the output.
    """
    constants = constants or {}
    inputs = [helper.make_tensor_value_info("x", kind, list(shape))]
    if listed:
        inputs += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in constants.items()
        ]
    graph = helper.make_graph(
        list(nodes),
        "net",
        inputs,
        [helper.make_tensor_value_info(output or nodes[-1].output[0], kind, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8)
    return model.SerializeToString()
