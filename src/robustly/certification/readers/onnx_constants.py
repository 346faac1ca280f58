"""Constants of an ONNX file, and operators on constants alone, which are computed when the file is read."""

import importlib
import math
from typing import Any

import numpy as np

from robustly.certification.readers.onnx_call import Array, Call, Computed

BROADCAST = frozenset(("Add", "And", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Pow", "Sub", "Where"))
_OTHERS = (
    *(
        "Abs",
        "Cast",
        "Ceil",
        "Concat",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "Identity",
        "Neg",
    ),
    *("Not", "Reciprocal", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Sqrt", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)
FOLDED = BROADCAST.union(_OTHERS)
"""Operators that are computed at once where all inputs are constant."""
GROWTH = 2**24
"""Number of values of constants that a file may compute beyond four times its own."""


def wide(value: Any) -> Array:
    """A constant; floats become float64."""
    array: Array = np.asarray(value)
    return array if array.dtype.kind in "biu" else array.astype(np.float64)


def stored(tensor: Any) -> Array:
    """A tensor of the file."""
    return wide(importlib.import_module("onnx").numpy_helper.to_array(tensor))


def from_attributes(call: Call) -> Array:
    """Value of a `Constant` operator."""
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in call.attributes:
            return wide(call.attributes[name])
    if "value" not in call.attributes:
        raise call.refuse("has no tensor or number as its value")
    return stored(call.attributes["value"])


def folded(call: Call, node: Any, room: int) -> list[Computed | Array]:
    """Results of an operator of `FOLDED` on constants, which may have `room` values in all."""
    if _size(call) > room:
        raise call.refuse(f"makes constants that are larger than the file by more than {GROWTH} values")
    onnx, reference = importlib.import_module("onnx"), importlib.import_module("onnx.reference")
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    names = [f"input_{place}" if value is not None else "" for place, value in enumerate(call.inputs)]
    del copy.input[:]
    copy.input.extend(names)
    given = {name: value for name, value in zip(names, call.inputs, strict=True) if name}
    infos = [
        [onnx.helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, None) for one in found]
        for found in (given, node.output)
    ]
    graph = onnx.helper.make_graph([copy], "constants", *infos)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", call.opset)])
    return [wide(one) for one in reference.ReferenceEvaluator(model).run(None, given)]


def _size(call: Call) -> int:
    """Number of values of the result, at most."""
    values: list[Any] = [one for one in call.inputs if one is not None]
    if call.op == "ConstantOfShape":
        return math.prod(int(n) for n in values[0])
    if call.op == "Expand":
        return math.prod(np.broadcast_shapes(values[0].shape, tuple(int(n) for n in values[1])))
    if call.op == "Gather":
        return int(values[0].size // max(values[0].shape[call.attributes.get("axis", 0)], 1) * values[1].size)
    if call.op in BROADCAST:
        return math.prod(np.broadcast_shapes(*(value.shape for value in values)))
    return sum(int(value.size) for value in values)
