"""Every ONNX operator in its variants: the graph gives the outputs of onnxruntime."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import node, numbers, onnx_bytes

from robustly.certification.network import UnsupportedOperationError
from robustly.certification.readers.onnx_reader import OnnxNetwork, read_onnx

OPSETS = (7, 9, 11, 13, 18, 21)
SOME = (7, 11, 21)


def agrees(nodes: Sequence[Any], shape: Sequence[int | str], opset: int = 13, **values: np.ndarray) -> OnnxNetwork:
    """Read a model, and check its outputs for inputs that are larger than those of the reader's own check."""
    network = read_onnx(onnx_bytes(nodes, shape, values, opset=opset))
    assert network.difference(3 * numbers(20, *network.input_shape, seed=5)) < 1e-5
    return network


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def ops(network: OnnxNetwork) -> list[str]:
    return [one.op for one in network.graph.nodes[1:]]


@pytest.mark.parametrize("opset", SOME)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bias", [(), (4,), (1, 4), (1, 1), (1,), None])
def test_gemm_with_every_bias_and_factors(opset, turned, bias):
    opset = max(opset, 11) if bias is None else opset  # the third input may be missing from 11 on
    weight = numbers(4, 3, seed=1) if turned else numbers(3, 4, seed=1)
    c = {} if bias is None else {"c": numbers(*bias, seed=2)}
    gemm = node("Gemm", "x", "w", *c, transB=int(turned), alpha=0.75, beta=-1.5)
    network = agrees([gemm], ["n", 3], opset, w=weight, **c)
    assert ops(network)[0] == "linear"
    assert network.graph.output == 1 or bias is None


def test_slices_backwards():
    values = {"s": integers(-1), "e": integers(-99), "a": integers(-1), "t": integers(-2)}
    assert ops(agrees([node("Slice", "x", *values)], ["n", 6], **values)) == ["gather"]
    values["a"] = integers(0)
    agrees([node("Slice", "x", *values)], [4, 3], **values)


def test_gemm_with_a_transposed_input_a_constant_left_and_a_computed_bias():
    flip = node("Transpose", "x", outputs=["t"], perm=[1, 0])
    agrees([flip, node("Gemm", "t", "w", transA=1)], [1, 3], w=numbers(3, 4))
    agrees([flip, node("Gemm", "w", "t", "c", alpha=2.0)], [1, 3], w=numbers(4, 3), c=numbers(4, 1))
    agrees([node("Gemm", "w", "x", transA=1, transB=1)], [1, 3], w=numbers(3, 4))
    agrees([node("Gemm", "x", "w", "x", beta=0.5)], [1, 3], w=numbers(3, 3))
    agrees([node("Gemm", "x", "w", "c")], [2, 3], w=numbers(3, 4), c=numbers(2, 1))


@pytest.mark.parametrize(
    ("shape", "weight", "left"),
    [
        ((1, 3), (3, 4), False), ((1, 2, 3), (3, 4), False), ((1, 2, 3), (1, 3, 4), False), ((1, 3), (3,), False),
        ((3,), (3, 4), False), ((3,), (3,), False), ((2, 3), (3, 4), False), ((1, 1, 2, 3), (3, 1), False),
        ((1, 3, 2), (4, 3), True), ((3,), (4, 3), True), ((3, 1), (4, 3), True), ((1, 3, 1), (4, 3), True),
        ((1, 3, 2), (1, 4, 3), True), ((1, 3, 2), (3,), True), ((3,), (3,), True), ((1, 3), (1, 1, 3, 4), False),
        ((1, 4), (4, 1), True),
    ],
)  # fmt: skip
def test_matmul_with_the_constant_on_either_side(shape, weight, left):
    agrees([node("MatMul", *(("w", "x") if left else ("x", "w")))], shape, w=numbers(*weight))


@pytest.mark.parametrize("opset", SOME)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("constant", [(), (1,), (3,), (2, 1), (1, 2, 3), (1, 1, 2, 1)])
def test_arithmetic_with_a_constant_that_broadcasts(op, constant, opset):
    c = numbers(*constant, seed=1, low=0.5, high=2)
    agrees([node(op, "x", "c")], ["batch", 2, 3], opset, c=c)
    if op != "Div":
        agrees([node(op, "c", "x")], [1, 2, 3], opset, c=c)


def test_reshapes_that_follow_each_other_become_one():
    network = agrees([node("MatMul", "w", "x")], [1, 3, 1], w=numbers(4, 3))
    assert ops(network) == ["reshape", "linear", "reshape"]
    back = [node("Unsqueeze", "x", "a"), node("Squeeze", "unsqueeze", "a"), node("Relu", "squeeze")]
    assert ops(agrees(back, [1, 3], a=integers(2))) == ["relu"]


def test_arithmetic_that_makes_the_input_larger_and_sums_of_computed_tensors():
    agrees([node("Add", "x", "c")], [1, 1, 3], c=numbers(1, 4, 3))
    agrees([node("Sub", "c", "x")], [1, 3], c=numbers(2, 5, 3))
    agrees([node("Mul", "x", "c")], [3], c=numbers(4, 3))
    column = node("Reshape", "x", "s", outputs=["y"])
    for op in ("Add", "Sub", "Mul"):
        agrees([column, node(op, "x", "y")], [1, 3], s=integers(3, 1))
    agrees([node("Sum", "x", "c", "x")], [1, 3], c=numbers(3))
    agrees([node("Sum", "c", "x")], [1, 3], c=numbers(3))
    assert ops(agrees([node("Pow", "x", "c")], [1, 3], c=np.array(2, np.float32))) == ["square"]
    assert ops(agrees([node("Mul", "x", "x")], [1, 3])) == ["square"]


def test_a_matrix_product_takes_an_added_constant_as_its_bias_unless_others_read_it():
    products = [node("MatMul", "x", "w"), node("Add", "matmul", "c")]
    assert ops(agrees(products, [1, 3], w=numbers(3, 4), c=numbers(4))) == ["linear"]
    twice = [*products, node("Add", "add", "c", outputs=["y"])]
    assert ops(agrees(twice, [1, 3], w=numbers(3, 4), c=numbers(4))) == ["linear", "scale"]
    network = agrees([*products, node("Mul", "matmul", "add")], [1, 3], w=numbers(3, 4), c=numbers(4))
    assert ops(network) == ["linear", "linear", "mul"]
    assert ops(agrees([node("Sub", "x", "c"), node("Relu", "sub")], [1, 3], c=np.zeros(3, np.float32))) == ["relu"]


@pytest.mark.parametrize(
    ("op", "settings"),
    [
        ("Relu", {}), ("LeakyRelu", {"alpha": 0.2}), ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 1.5}),
        ("Sigmoid", {}), ("Tanh", {}), ("Elu", {"alpha": 0.5}), ("Softplus", {}), ("Abs", {}), ("Neg", {}),
        ("HardSigmoid", {"alpha": 0.3}), ("HardSigmoid", {}), ("Selu", {}), ("Identity", {}), ("Dropout", {}),
    ],
)  # fmt: skip
def test_activations(op, settings):
    for opset in (7, 13, 21):
        agrees([node(op, "x", **settings)], ["n", 2, 3], opset)


def test_activations_of_later_operator_sets_and_with_slopes():
    agrees([node("HardSwish", "x")], [1, 3], 14)
    agrees([node("Gelu", "x")], [1, 3], 20)
    agrees([node("Gelu", "x", approximate="tanh")], [1, 3], 20)
    for slope in ((1,), (2, 1), (2, 3)):
        agrees([node("PRelu", "x", "s")], [1, 2, 3], s=numbers(*slope))
    assert ops(agrees([node("PRelu", "x", "s")], [1, 2, 3], s=np.full((2, 1), 0.25, np.float32))) == ["leaky_relu"]


def test_swish_and_gelu_that_exporters_write_in_parts():
    assert ops(agrees([node("Sigmoid", "x"), node("Mul", "x", "sigmoid")], [1, 3])) == ["silu"]
    root, half = np.array(2**0.5, np.float32), np.array(0.5, np.float32)
    one = np.array(1, np.float32)
    begin = [node("Div", "x", "root"), node("Erf", "div"), node("Add", "erf", "one")]
    outside = [node("Mul", "x", "add"), node("Mul", "mul", "half", outputs=["y"])]
    inside = [node("Mul", "x", "half", outputs=["h"]), node("Mul", "h", "add", outputs=["y"])]
    for end in (outside, inside):
        network = agrees([*begin, *end], [1, 3], root=root, half=half, one=one)
        assert ops(network)[0] == "gelu"
    with pytest.raises(
        UnsupportedOperationError, match="'Erf' of node 'the_erf' is supported only as a part of GELU"
    ):
        read_onnx(onnx_bytes(begin, [1, 3], {"root": root, "one": one}))


def test_clip_with_attributes_inputs_and_missing_bounds():
    agrees([node("Clip", "x", min=-0.5, max=0.75)], [1, 3], 7)
    agrees([node("Clip", "x", min=-0.5)], [1, 3], 7)
    for opset in (11, 13, 18):
        agrees([node("Clip", "x", "low", "high")], [1, 3], opset, low=numbers(), high=np.array(0.9, np.float32))
        agrees([node("Clip", "x", "", "high")], [1, 3], opset, high=np.array(0.9, np.float32))
    agrees([node("Max", "x", "low")], [1, 3], low=numbers())
    agrees([node("Min", "low", "x")], [1, 3], low=numbers())


@pytest.mark.parametrize("opset", SOME)
@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({}, (4, 3, 3, 3)), ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (4, 3, 3, 3)), ({"group": 3}, (6, 1, 3, 2)),
        ({"dilations": [2, 1]}, (4, 3, 2, 3)), ({"pads": [0, 1, 2, 1], "strides": [2, 1]}, (4, 3, 3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (4, 3, 3, 3)), ({"auto_pad": "VALID"}, (4, 3, 3, 3)),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (4, 3, 4, 2)),
        ({"kernel_shape": [3, 3], "pads": [0, 0, 1, 1]}, (4, 3, 3, 3)),
    ],
)  # fmt: skip
def test_convolution(settings, weight, opset):
    agrees([node("Conv", "x", "w", **settings)], ["n", 3, 6, 7], opset, w=numbers(*weight))
    agrees([node("Conv", "x", "w", "b", **settings)], [1, 3, 6, 7], opset, w=numbers(*weight), b=numbers(weight[0]))


def test_convolution_of_one_axis_and_transposed_convolution():
    agrees([node("Conv", "x", "w", pads=[2, 1], strides=[2])], [1, 3, 8], w=numbers(4, 3, 3))
    for settings in (
        {}, {"strides": [2, 2], "output_padding": [1, 0]}, {"pads": [1, 1, 1, 1], "dilations": [1, 2]},
        {"pads": [0, 1, 2, 1], "strides": [2, 1]},
        {"pads": [1, 0, 0, 2], "strides": [2, 2], "output_padding": [1, 1]},
    ):  # fmt: skip
        transposed = node("ConvTranspose", "x", "w", "b", **settings)
        agrees([transposed], [1, 3, 4, 5], w=numbers(3, 2, 3, 3), b=numbers(2))
    agrees([node("ConvTranspose", "x", "w", group=3)], [1, 3, 4, 5], w=numbers(3, 2, 3, 3))
    agrees([node("ConvTranspose", "x", "w", strides=[3])], [1, 3, 4], w=numbers(3, 2, 2))


POOLS: list[dict[str, Any]] = [
    {}, {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0], "strides": [2, 1]},
    {"strides": [2, 2], "ceil_mode": 1}, {"strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "ceil_mode": 1, "pads": [0, 0, 1, 1]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"}, {"pads": [2, 2, 2, 2]},
]  # fmt: skip


@pytest.mark.parametrize("opset", SOME)
@pytest.mark.parametrize("settings", POOLS)
@pytest.mark.parametrize("size", [(6, 7), (8, 9)])
def test_pooling(settings, opset, size):
    opset = max(opset, 10) if "ceil_mode" in settings else opset
    shape = ["n", 2, *size]
    agrees([node("MaxPool", "x", kernel_shape=[3, 3], **settings)], shape, opset)
    agrees([node("AveragePool", "x", kernel_shape=[3, 3], **settings)], shape, opset)
    agrees([node("AveragePool", "x", kernel_shape=[3, 3], count_include_pad=1, **settings)], shape, opset)


def test_pooling_of_one_axis_of_everything_and_with_dilation():
    agrees([node("MaxPool", "x", kernel_shape=[2], strides=[2])], [1, 3, 7])
    agrees([node("AveragePool", "x", kernel_shape=[2], pads=[1, 0])], [1, 3, 7])
    agrees([node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 3])], [1, 2, 6, 6])
    for shape in ([1, 3, 4, 5], [1, 3, 4], ["n", 3, 1, 1]):
        agrees([node("GlobalAveragePool", "x")], shape)
        agrees([node("GlobalMaxPool", "x")], shape)


@pytest.mark.parametrize("opset", OPSETS)
def test_batch_norm_and_sums_over_axes(opset):
    weights = {
        "s": numbers(3),
        "b": numbers(3, seed=1),
        "m": numbers(3, seed=2),
        "v": numbers(3, low=0.1) ** 2 + 0.01,
    }
    for shape in ([1, 3, 4, 5], [1, 3], [2, 3, 4]):
        agrees([node("BatchNormalization", "x", *weights, epsilon=0.01)], shape, opset, **weights)
    for op, since in (("ReduceMean", 18), ("ReduceSum", 13)):
        for axes, keep in (([2], 1), ([2, 3], 0), ([-1], 0), ([1], 0), ([1, 2, 3], 1), ([0], 0), ([0, 1, 2, 3], 0)):
            if opset >= since:
                reduce = node(op, "x", "axes", keepdims=keep)
                agrees([reduce], [1, 2, 3, 4], opset, axes=integers(*axes))
            elif min(axes) >= 0 or opset >= 11:
                agrees([node(op, "x", axes=axes, keepdims=keep)], [1, 2, 3, 4], opset)
        agrees([node(op, "x")], [1, 2, 3], opset)
    agrees([node("ReduceSum", "x", noop_with_empty_axes=1)], [1, 2, 3], max(opset, 13))


@pytest.mark.parametrize("opset", OPSETS)
def test_shapes(opset):
    for axis in (0, 1, 2, 3):
        agrees([node("Flatten", "x", axis=axis), node("Transpose", "flatten")], ["n", 2, 3], opset)
    for target in ((1, -1), (-1, 6), (0, 3, 2), (0, 0, -1), (1, 1, 6), (6,), (3, 2)):
        agrees([node("Reshape", "x", "s"), node("Transpose", "reshape")], ["n", 2, 3], opset, s=integers(*target))
    for order in ([0, 2, 1, 3], [3, 2, 1, 0], [2, 0, 1, 3], None):
        settings = {} if order is None else {"perm": order}
        agrees([node("Transpose", "x", **settings)], [1, 2, 3, 4], opset)
    squeeze = {"axes": integers(0, 2)}
    unsqueeze = {"axes": integers(0, 3)}
    if opset < 13:
        agrees([node("Squeeze", "x", axes=[0, 2])], [1, 2, 1, 3], opset)
        agrees([node("Unsqueeze", "x", axes=[0, 3])], [1, 2, 3], opset)
    else:
        agrees([node("Squeeze", "x", "axes")], [1, 2, 1, 3], opset, **squeeze)
        agrees([node("Unsqueeze", "x", "axes")], [1, 2, 3], opset, **unsqueeze)
    agrees([node("Squeeze", "x")], [1, 2, 1, 3], opset)
    if opset >= 8:
        for target in ((2, 3), (4, 2, 3), (1, 4, 1, 3), (1,)):
            agrees([node("Expand", "x", "s")], [1, 1, 3], opset, s=integers(*target))


@pytest.mark.parametrize("opset", OPSETS)
def test_parts(opset):
    for axis in (0, 1, 2):
        agrees([node("Concat", "x", "c", "x", axis=axis)], [1, 2, 3], opset, c=numbers(1, 2, 3))
    for index, axis in (
        (integers(2, 0, -1), 1),
        (np.array(1), 2),
        (integers(0), 0),
        (np.array([[0, 1], [2, 0]]), 1),
    ):
        agrees([node("Gather", "x", "i", axis=axis)], [1, 3, 2], opset, i=index.astype(np.int64))
    parts = [([1], [3], [1]), ([0, -2], [1, 2**60], [0, 2]), ([-3, 0], [-1, 2], [1, 2])]
    for starts, ends, axes in parts:
        if opset < 10:
            agrees([node("Slice", "x", starts=starts, ends=ends, axes=axes)], [1, 4, 3], opset)
        else:
            found = {"s": integers(*starts), "e": integers(*ends), "a": integers(*axes)}
            agrees([node("Slice", "x", *found)], [1, 4, 3], opset, **found)
            found["p"] = integers(*[2] * len(axes))
            agrees([node("Slice", "x", *found)], [1, 4, 3], opset, **found)
    begin = [node("Split", "x", "sizes", outputs=["a", "b"], axis=1)]
    if opset < 13:
        begin = [node("Split", "x", outputs=["a", "b"], axis=1, split=[1, 3])]
    sizes = {"sizes": integers(1, 3)} if opset >= 13 else {}
    agrees([*begin, node("Mul", "b", "a")], [1, 4, 3], opset, **sizes)
    equal = {"num_outputs": 2} if opset >= 18 else {}
    agrees([node("Split", "x", outputs=["a", "b"], axis=1, **equal), node("Sub", "b", "a")], [1, 4, 3], opset)
    if opset < 11:
        agrees([node("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 3, 0], value=0.5)], [1, 2, 3, 4], opset)
        agrees([node("Pad", "x", pads=[0, 1, 0, -1])], [1, 5], opset)
    else:
        agrees([node("Pad", "x", "p", "v")], [1, 2, 3], opset, p=integers(0, 0, 1, 0, 2, 0), v=numbers())
        agrees([node("Pad", "x", "p")], [1, 2, 4], opset, p=integers(1, 0, -1, 0, 2, 0))
    if opset >= 18:
        agrees([node("Pad", "x", "p", "", "a")], [1, 2, 4], opset, p=integers(1, 2), a=integers(-1))


@pytest.mark.parametrize("opset", OPSETS)
def test_shapes_that_the_file_computes_are_constant_at_a_batch_of_one(opset):
    axes = {"axes": [0]} if opset < 13 else {}
    more = () if opset < 13 else ("zero",)
    chain = [
        node("Shape", "x"),
        node("Gather", "shape", "first", axis=0),
        node("Unsqueeze", "gather", *more, **axes),
        helper.make_node("Constant", [], ["rest"], value=helper.make_tensor("r", TensorProto.INT64, [1], [-1])),
        node("Concat", "unsqueeze", "rest", axis=0),
        node("Reshape", "x", "concat"),
        node("MatMul", "reshape", "w"),
    ]
    zero = {"zero": integers(0)} if opset >= 13 else {}
    network = agrees(chain, ["n", 2, 3], opset, first=np.array(0, np.int64), w=numbers(6, 4), **zero)
    assert ops(network) == ["reshape", "linear"]


def test_constants_that_the_file_computes():
    fill = helper.make_tensor("f", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["half"], value=fill),
        helper.make_node("Constant", [], ["three"], value_float=3.0),
        node("Mul", "half", "three", outputs=["c"]),
        node("Transpose", "w", outputs=["v"]),
        node("Cast", "v", outputs=["u"], to=TensorProto.FLOAT),
        node("MatMul", "x", "u"),
        node("Sub", "matmul", "c"),
    ]
    values = {"s": integers(4), "w": numbers(4, 3).astype(np.float64)}
    assert ops(agrees(nodes, [1, 3], **values)) == ["linear"]


def test_double_precision_and_casts():
    double = [node("MatMul", "x", "w"), node("Relu", "matmul")]
    content = onnx_bytes(double, [1, 3], {"w": numbers(3, 4).astype(np.float64)}, kind=TensorProto.DOUBLE)
    network = read_onnx(content)
    assert network.element_type is np.float64
    assert network.outputs(numbers(2, 3)).dtype == np.float64
    assert network.difference(numbers(2, 3)) < 1e-15
    casts = [node("Cast", "x", outputs=["d"], to=TensorProto.DOUBLE), node("MatMul", "d", "w")]
    casts.append(helper.make_node("Cast", ["matmul"], ["y"], to=TensorProto.FLOAT))
    agrees(casts, [1, 3], w=numbers(3, 4).astype(np.float64))


def test_dropout_passes_its_input_in_evaluation_mode():
    off = node("Dropout", "x", "ratio", "train")
    values = {"ratio": np.array(0.5, np.float32), "train": np.array(False)}
    agrees([off, node("Relu", "dropout")], [1, 3], **values)
    values["train"] = np.array(True)
    with pytest.raises(UnsupportedOperationError, match="'Dropout' of node 'the_dropout' is in training mode"):
        read_onnx(onnx_bytes([off], [1, 3], values), check=False)
