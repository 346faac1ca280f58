"""ONNX files: those of the competition, exported ones, and bad ones."""

import gzip
import importlib
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import node, numbers, onnx_bytes
from torch import nn

from robustly.certification.evaluation import evaluate
from robustly.certification.network import UnsupportedOperationError
from robustly.certification.readers.onnx_reader import OnnxError, read_onnx

DENSE = [node("MatMul", "x", "w"), node("Relu", "matmul")]
WEIGHTS = {"w": numbers(3, 4)}


@pytest.mark.slow
def test_files_of_the_competition_load_and_agree(shared_data):
    files = sorted((shared_data / "verify").glob("*/onnx/*.onnx.gz"))
    if not files:
        pytest.skip("the shared data has no ONNX files of verification")
    for file in files:
        network = read_onnx(file)
        assert network.outputs(np.zeros((1, *network.graph.input_shape))).shape == (1, network.graph.outputs)
        assert network.difference(np.full((3, *network.graph.input_shape), 0.25)) < 1e-5


def test_a_file_reads_the_same_plain_packed_and_as_bytes(tmp_path):
    content = onnx_bytes(DENSE, ["batch", 3], WEIGHTS)
    plain, packed = tmp_path / "net.onnx", tmp_path / "net.onnx.gz"
    plain.write_bytes(content)
    packed.write_bytes(gzip.compress(content))
    x = numbers(4, 3, seed=3)
    want = np.maximum(x @ WEIGHTS["w"], 0)
    for source in (content, plain, packed, packed.read_bytes()):
        network = read_onnx(source)
        assert network.input_shape == (1, 3)
        assert network.graph.input_shape == (3,)
        assert network.outputs(x) == pytest.approx(want, abs=1e-6)
        assert evaluate(network.graph, torch.from_numpy(x).double()).numpy() == pytest.approx(want, abs=1e-6)
    assert read_onnx(plain).graph.source == str(plain)
    assert read_onnx(content, name="net").source == "net"


def test_initialisers_among_the_inputs_are_weights():
    network = read_onnx(onnx_bytes(DENSE, [1, 3], WEIGHTS, opset=8, listed=True))
    assert [one.op for one in network.graph.nodes] == ["input", "linear", "relu"]


@pytest.mark.parametrize(
    ("shape", "whole"), [(["n", 3], (3,)), ([1, 1, 1, 3], (1, 1, 3)), ([3], (3,)), ([2, 3], (2, 3))]
)
def test_the_first_axis_is_a_batch_only_if_it_is_free_or_one(shape, whole):
    network = read_onnx(onnx_bytes(DENSE, shape, WEIGHTS))
    assert network.graph.input_shape == whole
    x = numbers(2, *whole)
    assert network.outputs(x) == pytest.approx(np.maximum(x @ WEIGHTS["w"], 0).reshape(2, -1), abs=1e-6)


def test_a_residual_network():
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "x", "w0", **conv, outputs=["a"]),
        node("BatchNormalization", "a", "s", "b", "m", "v", outputs=["n"]),
        node("Relu", "n", outputs=["r"]),
        node("Conv", "r", "w1", **conv, outputs=["c"]),
        node("Add", "c", "a", outputs=["sum"]),
        node("Relu", "sum", outputs=["e"]),
        node("GlobalAveragePool", "e", outputs=["g"]),
        node("Flatten", "g", outputs=["f"]),
        node("Gemm", "f", "w2", "b2", transB=1, outputs=["y"]),
    ]
    weights = {
        "w0": numbers(4, 3, 3, 3), "w1": numbers(4, 4, 3, 3), "s": numbers(4, seed=1), "b": numbers(4, seed=2),
        "m": numbers(4, seed=3), "v": numbers(4, low=0.1), "w2": numbers(10, 4), "b2": numbers(10),
    }  # fmt: skip
    network = read_onnx(onnx_bytes(nodes, ["n", 3, 8, 8], weights, opset=11))
    assert network.difference(numbers(10, 3, 8, 8, seed=7)) < 1e-5
    added = next(one for one in network.graph.nodes if one.op == "add")
    assert [network.graph.nodes[one].name for one in added.inputs] == ["the_c", "the_a"]


class Block(nn.Module):
    """A small network of the operations that users combine."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first((x - 0.5) / 0.25)))
        x = nn.functional.gelu(x) + nn.functional.silu(x)
        x = torch.cat([self.second(x), nn.functional.max_pool2d(x, 2)], 1)
        x = nn.functional.avg_pool2d(x[:, 4:12], 2)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("opset", [9, 13, 20])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_exported_network(opset, tmp_path):
    torch.manual_seed(0)
    model, file, axes = Block().eval(), tmp_path / "net.onnx", {"x": {0: "n"}}
    options = {"dynamo": False, "opset_version": opset, "input_names": ["x"], "dynamic_axes": axes}
    torch.onnx.export(model, (torch.rand(2, 3, 8, 8),), str(file), **options)
    network = read_onnx(file)
    images = torch.rand(4, 3, 8, 8)
    want = model(images).detach().double().numpy()
    assert evaluate(network.graph, images.double()).numpy() == pytest.approx(want, abs=1e-5)
    assert {"gelu", "silu"} <= {one.op for one in network.graph.nodes}


def test_rounding_that_hides_the_real_value_is_refused():
    """`relu(x + 2^25) - relu(x + 2^25 - 1)` is 1 in the reals and 0 in float32."""
    nodes = [
        node("Add", "x", "big", outputs=["a"]), node("Relu", "a", outputs=["ra"]),
        node("Sub", "a", "one", outputs=["b"]), node("Relu", "b", outputs=["rb"]), node("Sub", "ra", "rb"),
    ]  # fmt: skip
    values = {"big": np.array([2.0**25], np.float32), "one": np.ones(1, np.float32)}
    content = onnx_bytes(nodes, [1, 1], values)
    network = read_onnx(content, check=False)
    x = np.array([[0.5]])
    assert network.outputs(x).item() == 0
    assert evaluate(network.graph, torch.from_numpy(x)).item() == 1
    assert network.difference(x) == 1
    with pytest.raises(
        OnnxError, match=r"trap: onnxruntime and exact arithmetic .* differ by \d.* allowed is 0.0001"
    ):
        read_onnx(content, name="trap")


def test_a_final_softmax_is_left_out_on_request_only():
    content = onnx_bytes([*DENSE, node("Softmax", "relu")], [1, 3], WEIGHTS)
    with pytest.raises(
        UnsupportedOperationError, match="'Softmax' of node 'the_softmax' is supported only at the end"
    ):
        read_onnx(content)
    for opset in (11, 13):
        for op in ("Softmax", "LogSoftmax"):
            network = read_onnx(
                onnx_bytes([*DENSE, node(op, "relu")], [1, 3], WEIGHTS, opset=opset), drop_softmax=True
            )
            assert network.dropped == op
            assert network.graph.nodes[-1].op == "relu"
            assert f"without its {op}" in network.graph.source
    inner = onnx_bytes([node("Softmax", "x"), node("MatMul", "softmax", "w")], [1, 3], WEIGHTS)
    with pytest.raises(UnsupportedOperationError, match="only at the end"):
        read_onnx(inner, drop_softmax=True)
    rows = onnx_bytes([node("Softmax", "x", axis=2)], [1, 2, 3])
    with pytest.raises(UnsupportedOperationError, match="over all outputs"):
        read_onnx(rows, drop_softmax=True)


def refused(content: bytes | Path, text: str, kind: type[Exception] = OnnxError) -> None:
    """The file is refused in one sentence, before anything is computed with it."""
    with pytest.raises(kind) as caught:
        read_onnx(content, name="bad.onnx") if isinstance(content, bytes) else read_onnx(content)
    message = str(caught.value)
    assert re.search(text, message), message
    assert "bad.onnx" in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_operators_and_settings_that_are_not_supported_are_named():
    some = "'Cos' of node 'the_cos' is not supported; supported are Abs, Add, AveragePool"
    refused(onnx_bytes([node("Cos", "x")], [1, 3]), some, UnsupportedOperationError)
    own = helper.make_node("Relu", ["x"], ["y"], domain="my.own")
    refused(onnx_bytes([own], [1, 3]), "'my.own:Relu' of node 'y'", UnsupportedOperationError)
    cases = [
        ([node("Div", "c", "x")], {"c": numbers(3)}, "divides by a computed tensor"),
        ([node("Div", "x", "x")], {}, "divides by a computed tensor"),
        ([node("Div", "x", "c")], {"c": np.zeros(3, np.float32)}, "divides by a constant that is 0"),
        ([node("MatMul", "x", "x")], {}, "multiplies two computed tensors"),
        ([node("MatMul", "x", "w")], {"w": numbers(4, 4)}, r"shapes that do not fit: \[1, 3\], \[4, 4\]"),
        ([node("Reshape", "x", "s")], {"s": np.array([2000, 3])}, r"gives 3 values the shape \[2000, 3\]"),
        ([node("Cast", "x", to=TensorProto.INT64)], {}, "casts a computed tensor to another type"),
        ([node("Clip", "x", "c", "d")], {"c": np.float32(1), "d": np.float32(0)}, "bounds 1.0 and 0.0"),
        ([node("Pad", "x", "p", mode="reflect")], {"p": np.array([0, 1, 0, 1])}, "another mode than 'constant'"),
        ([node("Gather", "x", "i", axis=1)], {"i": np.array([3])}, "index outside an axis of length 3"),
        ([node("Flatten", "x", axis=5)], {}, "axis 5, but its input has 2 axes"),
        ([node("Conv", "x", "w")], {"w": numbers(1, 1, 1, 1, 1)}, "batch of 1, channels and 1 or 2 spatial axes"),
        ([node("Pow", "x", "c")], {"c": np.float32(3)}, "exponents 1 and 2"),
        ([node("Expand", "x", "s")], {"s": np.array([10**6, 10**6, 3])}, "allowed are 1 to 134217728 values"),
    ]  # fmt: skip
    for nodes, values, text in cases:
        refused(
            onnx_bytes(nodes, [1, 3], {k: np.asarray(v) for k, v in values.items()}),
            text,
            UnsupportedOperationError,
        )
    norm = [node("BatchNormalization", "x", *"sbmv", training_mode=1)]
    values = {name: numbers(3, low=0.1) for name in "sbmv"}
    refused(onnx_bytes(norm, [1, 3], values, opset=15), "training mode", UnsupportedOperationError)


def test_weights_that_are_not_finite_are_refused():
    for wrong in (np.nan, np.inf):
        weight = numbers(3, 4)
        weight[1, 2] = wrong
        refused(
            onnx_bytes(DENSE, [1, 3], {"w": weight}), "NaN or infinite numbers in its w", UnsupportedOperationError
        )


def test_shapes_inputs_and_versions_that_do_not_fit_are_refused():
    refused(onnx_bytes(DENSE, ["n", "length"], WEIGHTS), r"'x' has shape \['n', 'length'\]; only its first axis")
    refused(onnx_bytes(DENSE, ["n"], WEIGHTS), "only its first axis, the batch, may be free")
    refused(onnx_bytes([node("Relu", "x")], [1, 2**20, 2**20]), "allowed are 134217728 values")
    refused(onnx_bytes(DENSE, [1, 3], WEIGHTS, kind=TensorProto.INT64), "neither float32 nor float64")
    refused(onnx_bytes(DENSE, [1, 3], WEIGHTS, opset=6), "operator set 6; supported are 7 to")
    refused(onnx_bytes(DENSE, [1, 3], WEIGHTS, output="w"), "'w' does not depend on the input")
    refused(onnx_bytes([node("Relu", "z")], [1, 3]), "node 'the_relu' reads 'z', which no operator before it gives")
    model = onnx.load_model_from_string(onnx_bytes(DENSE, [1, 3], WEIGHTS))
    model.graph.input.append(helper.make_tensor_value_info("second", 1, [1]))
    refused(model.SerializeToString(), r"has 2 inputs \(x, second\); supported is one")
    del model.graph.input[1]
    model.graph.output.append(helper.make_tensor_value_info("matmul", 1, None))
    refused(model.SerializeToString(), r"has 2 outputs \(relu, matmul\)")


def test_bytes_that_are_no_model_are_refused(tmp_path):
    content = onnx_bytes(DENSE, [1, 3], WEIGHTS)
    for bad in (b"", b"\x00" * 50, b"not an ONNX file", content[: len(content) // 2], b"\x1f\x8b" + b"0" * 20):
        refused(bad, "is not an ONNX model|cannot be read")
    refused(gzip.compress(content)[:-20], "cannot be read: Compressed file ended")
    refused(tmp_path / "bad.onnx", "cannot be read: No such file")
    (tmp_path / "bad.onnx").mkdir()
    refused(tmp_path / "bad.onnx", "cannot be read: Is a directory")


def test_every_cut_and_every_changed_byte_gives_a_network_or_a_sentence():
    content = onnx_bytes(DENSE, [1, 3], WEIGHTS)
    generator = np.random.default_rng(0)
    for place in generator.permutation(len(content))[:120]:
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        for bad in (content[:place], bytes(changed)):
            with suppress(OnnxError, UnsupportedOperationError):
                assert read_onnx(bad).graph.outputs > 0


def test_sizes_in_a_file_are_not_trusted():
    shape = {"s": np.array([2**20, 2**20], np.int64)}
    refused(onnx_bytes([node("ConstantOfShape", "s"), node("Add", "x", "constantofshape")], [1, 3], shape),
            "constants that are larger than the file", UnsupportedOperationError)  # fmt: skip
    doubled = [node("Concat", f"c{i}", f"c{i}", outputs=[f"c{i + 1}"], axis=0) for i in range(60)]
    refused(onnx_bytes([*doubled, node("Add", "x", "c60")], [1, 1], {"c0": numbers(4)}),
            "constants that are larger than the file", UnsupportedOperationError)  # fmt: skip
    tensor = numpy_helper.from_array(numbers(3, 4), "w")
    tensor.dims[0] = 2**40
    model = onnx.load_model_from_string(onnx_bytes(DENSE, [1, 3], WEIGHTS))
    model.graph.initializer[0].CopyFrom(tensor)
    refused(model.SerializeToString(), "tensor 'w' is damaged")


def test_weights_in_an_external_file(tmp_path):
    model = onnx.load_model_from_string(onnx_bytes(DENSE, [1, 3], {"w": numbers(3, 400)}))
    file = tmp_path / "bad.onnx"
    onnx.save_model(model, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert read_onnx(file).graph.outputs == 400
    refused(file.read_bytes(), "weights of 'w' are in an external file that cannot be read")
    (tmp_path / "weights.bin").unlink()
    refused(file, "weights of 'w' are in an external file that cannot be read")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_gives_the_command(monkeypatch, package):
    real = importlib.import_module

    def without(name: str) -> object:
        if name == package:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(OnnxError, match=rf"needs the package {package}: pip install 'robustly\[onnx\]'"):
        read_onnx(onnx_bytes(DENSE, [1, 3], WEIGHTS))
