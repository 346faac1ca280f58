"""ONNX files as graphs of the verifier, compared with onnxruntime when they are read.

Constants are float64, so the graph speaks of real arithmetic over the weights that the file stores. A network that
rounds so much in float32 that onnxruntime gives other outputs is refused.
"""

import gzip
import importlib
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph, UnsupportedOperationError
from robustly.certification.readers.building import LARGEST, Builder, Ref, Shape
from robustly.certification.readers.onnx_call import Array, Call, Computed, home
from robustly.certification.readers.onnx_constants import FOLDED, GROWTH, folded, from_attributes, stored
from robustly.certification.readers.onnx_elementwise import ELEMENTWISE
from robustly.certification.readers.onnx_shapes import SHAPES

OPSETS = range(7, 25)
OPERATORS = {**ELEMENTWISE, **SHAPES}
TOLERANCE = 1e-4
"""Largest difference of outputs between the graph and onnxruntime, relative to the larger of 1 and the outputs."""
_FILE_LIMIT = 2**31 - 1  # of the format itself
_TYPES: Mapping[int, type[np.generic]] = {1: np.float32, 11: np.float64}


class OnnxError(ValueError):
    """An ONNX file that cannot be read, or that onnxruntime computes otherwise."""


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network from an ONNX file.

    Args:
        graph: the network in the vocabulary of the verifier, with float64 constants.
        source: name of the file.
        input_shape: shape of the file's input, with a batch of 1 where the file leaves its length free.
        element_type: float32 or float64, in which onnxruntime computes.
        session: onnxruntime's session.
        dropped: "Softmax" or "LogSoftmax" if this last operator is not in the graph; else None.
    """

    graph: Graph
    source: str
    input_shape: Shape
    element_type: type[np.generic]
    session: Any
    dropped: str | None = None

    def outputs(self, x: Array) -> Array:
        """Outputs of onnxruntime, `(B, outputs)`, for inputs `(B, *graph.input_shape)`; one example at a time.

        Raises:
            OnnxError: onnxruntime cannot run the network.
        """
        name = self.session.get_inputs()[0].name
        points = np.ascontiguousarray(x, self.element_type).reshape(-1, *self.input_shape)
        try:
            return np.stack([self.session.run(None, {name: point})[0].ravel() for point in points])
        except Exception as error:  # onnxruntime has a class for each kind of failure
            raise _not_run(self.source, error) from error

    def difference(self, x: Array) -> float:
        """Largest relative difference between onnxruntime and the graph in float64, for inputs of any box.

        The difference of one example is the largest of its outputs, divided by the larger of 1 and its largest
        output; infinite where an output is not finite.
        """
        theirs = self.outputs(x).astype(np.float64)
        points = torch.from_numpy(np.asarray(x, self.element_type)).double()
        with torch.no_grad():
            parts = torch.split(points.reshape(-1, *self.graph.input_shape), 10)
            own = torch.cat([evaluate(self.graph, part) for part in parts])
        if self.dropped is not None:
            own = own.softmax(1) if self.dropped == "Softmax" else own.log_softmax(1)
        if own.shape != theirs.shape or not np.isfinite(theirs).all():
            return math.inf
        apart = np.abs(own.numpy() - theirs).max(1) / np.maximum(np.abs(theirs).max(1), 1)
        return float(apart.max()) if np.isfinite(apart).all() else math.inf


def read_onnx(
    source: Path | bytes, *, name: str | None = None, check: bool = True, drop_softmax: bool = False
) -> OnnxNetwork:
    """Read a network from an ONNX file, plain or gzipped, of operator set 7 to 24.

    A free first axis of the input is the batch and gets length 1; an input whose first axis is neither free nor 1
    is one example as a whole.

    Args:
        source: the file, or its bytes.
        name: name in messages; the path by default.
        check: compare the graph with onnxruntime on 100 random inputs, half uniform in [0, 1], half normal.
        drop_softmax: leave out a softmax or log-softmax at the end, which changes no comparison of two outputs.

    Raises:
        OnnxError: a package is missing, the bytes are not an ONNX model, shapes are not fixed, there are several
            inputs or outputs, or onnxruntime's outputs differ by more than `TOLERANCE`.
        UnsupportedOperationError: an operator or one of its settings cannot be bounded.
    """
    title = name or ("ONNX bytes" if isinstance(source, bytes) else str(source))
    model = _model(source, title)
    network = _network(model, title, drop_softmax)
    network = replace(network, session=_session(model, title))
    if check:
        generator, shape = np.random.default_rng(0), network.input_shape
        points = np.concatenate([generator.random((50, *shape)), generator.standard_normal((50, *shape))])
        found = network.difference(points)
        if not found <= TOLERANCE:
            raise OnnxError(
                f"{title}: onnxruntime and exact arithmetic over its weights differ by {found:.2g} (relative) on "
                f"random inputs, allowed is {TOLERANCE:g}; a proof would not hold for the network as it runs"
            )
    return network


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OnnxError(f"reading ONNX files needs the package {name}: pip install 'robustly[onnx]'") from error


def _model(source: Path | bytes, title: str) -> Any:
    """The parsed file, with the weights of its external files."""
    onnx = _package("onnx")
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(_FILE_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise OnnxError(f"{title} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > _FILE_LIMIT:
        raise OnnxError(f"{title} is larger than 2 GiB, the limit of the ONNX format")
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the class of the error depends on the version of protobuf
        raise OnnxError(f"{title} is not an ONNX model, or is cut off") from error
    if not model.graph.node or not model.graph.output:
        raise OnnxError(f"{title} is not an ONNX model: it has no operators or no output")
    outside = [one.name for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        try:
            if isinstance(source, bytes):
                raise FileNotFoundError("bytes have no folder")
            onnx.load_external_data_for_model(model, str(Path(source).parent))
        except Exception as error:  # missing, outside the folder, a link, or too short
            reason = f"the weights of {outside[0]!r} are in an external file that cannot be read"
            raise OnnxError(f"{title}: {reason}") from error
    return model


def _session(model: Any, title: str) -> Any:
    runtime, content = _package("onnxruntime"), model.SerializeToString()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )  # a second try prints to the terminal
    except Exception as error:
        raise _not_run(title, error) from error


def _not_run(title: str, error: Exception) -> OnnxError:
    return OnnxError(f"{title}: onnxruntime cannot run it: {' '.join(str(error).split())[:200]}")


def _input(model: Any, title: str) -> tuple[str, Shape, type[np.generic]]:
    """Name, shape and element type of the only input."""
    constants = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    for what, found in (("inputs", inputs), ("outputs", model.graph.output)):
        if len(found) != 1:
            names = ", ".join(one.name for one in found) or "none"
            raise OnnxError(f"{title} has {len(found)} {what} ({names}); supported is one")
    name, tensor = inputs[0].name, inputs[0].type.tensor_type
    lengths = [one.dim_value if one.HasField("dim_value") else 0 for one in tensor.shape.dim]
    if len(lengths) > 1 and lengths[0] < 1:
        lengths[0] = 1
    if not lengths or min(lengths) < 1:
        shown = [one.dim_param or one.dim_value or "?" for one in tensor.shape.dim]
        raise OnnxError(f"{title}: input {name!r} has shape {shown}; only its first axis, the batch, may be free")
    if math.prod(lengths) > LARGEST:
        raise OnnxError(f"{title}: input {name!r} has shape {lengths}; allowed are {LARGEST} values")
    if tensor.elem_type not in _TYPES:
        raise OnnxError(f"{title}: input {name!r} is neither float32 nor float64")
    return name, tuple(lengths), _TYPES[tensor.elem_type]


def _network(model: Any, title: str, drop_softmax: bool) -> OnnxNetwork:
    """The network without its session."""
    opset = max([one.version for one in model.opset_import if one.domain in ("", "ai.onnx")], default=1)
    if opset not in OPSETS:
        raise OnnxError(f"{title} has operator set {opset}; supported are {OPSETS[0]} to {OPSETS[-1]}")
    entry, shape, kind = _input(model, title)
    values: dict[str, Computed | Array] = {}
    for one in model.graph.initializer:
        try:
            with np.errstate(all="ignore"):
                values[one.name] = stored(one)
        except Exception as error:  # sizes that do not fit the data, unknown types
            raise OnnxError(f"{title}: the tensor {one.name!r} is damaged") from error
    room = GROWTH + 4 * sum(one.size for one in values.values() if not isinstance(one, Computed))
    builder, last, dropped = Builder(title, 1, name=str(entry)), model.graph.output[0].name, None
    values[entry] = Computed(builder.input(home(shape)).index, shape)
    for node in model.graph.node:
        label = str(node.name or (node.output[0] if node.output else ""))
        missing = [one for one in node.input if one and one not in values]
        if missing:
            raise OnnxError(f"{title}: node {label!r} reads {missing[0]!r}, which no operator before it gives")
        try:
            inputs = tuple(values[one] if one else None for one in node.input)
            op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
            given = {one.name: _package("onnx").helper.get_attribute_value(one) for one in node.attribute}
            builder.name, builder.place = label, f"{title}: operator {op!r} of node {label!r}"
            call = Call(op, opset, given, inputs, len(node.output), builder)
            if op in ("Softmax", "LogSoftmax") and drop_softmax and last in node.output:
                dropped = op
            with np.errstate(all="ignore"):  # weights that are not finite are refused
                results = _results(call, node, room, dropped is not None)
        except (OnnxError, UnsupportedOperationError):
            raise
        except Exception as error:  # settings of a wrong type or length, shapes that do not fit, too little memory
            reason = " ".join(str(error).split())[:200]
            raise OnnxError(f"{title}: operator of node {label!r} does not fit its inputs: {reason}") from error
        room -= sum(one.size for one in results if not isinstance(one, Computed))
        values.update(zip(node.output, results, strict=False))
    result = values.get(last)
    if not isinstance(result, Computed):
        raise OnnxError(f"{title}: the output {last!r} does not depend on the input")
    if dropped is not None:
        builder.source = f"{title} without its {dropped}"
    graph = builder.graph(Ref(result.index, result.shape))
    for one in graph.nodes:
        if one.op == "erf":
            reason = f"operator 'Erf' of node {one.name!r} is supported only as a part of GELU"
            raise UnsupportedOperationError(f"{title}: {reason}")
    return OnnxNetwork(graph, title, shape, kind, None, dropped)


def _results(call: Call, node: Any, room: int, last: bool) -> list[Computed | Array]:
    """Outputs of one operator."""
    if call.op == "Constant":
        return [from_attributes(call)]
    if not any(isinstance(one, Computed) for one in call.inputs):
        if call.op not in FOLDED:
            raise call.refuse(f"has only constant inputs; such operators may be {', '.join(sorted(FOLDED))}")
        return folded(call, node, room)
    if call.op in ("Shape", "Size"):
        whole = np.array(call.x().shape, np.int64)
        part = whole[call.attributes.get("start", 0) : call.attributes.get("end")]
        return [part if call.op == "Shape" else whole.prod()]
    if call.op in ("Softmax", "LogSoftmax"):
        shape = call.x().shape
        axis = call.axis(call.attributes.get("axis", -1 if call.opset >= 13 else 1), len(shape))
        over = shape[axis] if call.opset >= 13 else math.prod(shape[axis:])
        if not last or over != math.prod(shape):
            raise call.refuse(
                "is supported only at the end, over all outputs, for properties that compare outputs (drop_softmax)"
            )
        return [call.x()]
    if call.op not in OPERATORS:
        raise call.refuse(f"is not supported; supported are {', '.join(sorted(OPERATORS))}")
    found = OPERATORS[call.op](call)
    return [*found] if isinstance(found, list) else [found]
