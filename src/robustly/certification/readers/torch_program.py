"""A program of `torch.export` as a graph, node by node."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node as Traced

from robustly.certification.network import Graph, UnsupportedOperationError
from robustly.certification.readers.aten import TABLE, supported
from robustly.certification.readers.building import Builder, Ref
from robustly.output_text import first_line

Softmax = Callable[[Tensor, int], Tensor]

_SOFTMAX: Mapping[str, Softmax] = {
    "softmax": torch.softmax,
    "_softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "_log_softmax": torch.log_softmax,
}
_VANISH = ("dropout", "clone", "contiguous", "detach", "alias", "to", "_to_copy", "view", "reshape", "flatten")
_LIKE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")


def translated(
    program: ExportedProgram, builder: Builder, input_shape: tuple[int, ...], drop_softmax: bool
) -> tuple[Graph, Softmax | None]:
    """The graph of a program, and the softmax that it leaves out.

    Args:
        program: the program, without changes in place that other nodes see.
        builder: an empty builder.
        input_shape: shape of one input.
        drop_softmax: True leaves out a softmax or log-softmax at the end.

    Raises:
        UnsupportedOperationError: an operation cannot be bounded, or there is a second input.
    """
    signature = program.graph_signature
    last = next(s.arg.name for s in signature.output_specs if s.kind == OutputKind.USER_OUTPUT)
    nodes = {node.name: node for node in program.graph.nodes}
    softmax = _final_softmax(nodes[last]) if drop_softmax else None
    values: dict[Traced, Any] = {nodes[signature.user_inputs[0]]: builder.input(input_shape)}
    for node in _needed(nodes[last], values):
        if node.op == "get_attr":
            values[node] = getattr(program.graph_module, str(node.target))
        elif node.op == "placeholder":
            values[node] = _weight(program, node.name, builder.source)
        elif node is softmax:
            values[node] = values[node.all_input_nodes[0]]
        else:
            values[node] = _value(builder, node, values)
    output = values[nodes[last]]
    builder.place = f"The output {last!r} in {builder.source}"
    output = builder.as_ref(output, output.ndim) if isinstance(output, Tensor) else output
    graph = builder.graph(builder.reshape(output, output.shape or (1,)))
    return graph, None if softmax is None else _SOFTMAX[_operator(softmax)]


def _needed(last: Traced, known: Mapping[Traced, Any]) -> list[Traced]:
    """The nodes on which the output depends, in order; assertions and unused parts are left out."""
    needed, waiting = set(known), [last]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return [node for node in last.graph.nodes if node in needed and node not in known]


def _weight(program: ExportedProgram, name: str, source: str) -> Tensor:
    signature = program.graph_signature
    for table in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if name in table:
            key = table[name]
            value: Any = program.state_dict[key] if key in program.state_dict else program.constants[key]
            # a copy: operations in place on constants must not reach the model
            weight: Tensor = _wide(value.detach().cpu().clone())
            return weight
    raise UnsupportedOperationError(f"{source} has a second input {name!r}: verify a module with one input")


def _value(builder: Builder, node: Traced, values: Mapping[Traced, Any]) -> Any:
    """Value of a node: a `Ref` if it depends on the input, else the constant itself."""
    found: Any = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: values[one])
    args, kwargs = found
    target, name = node.target, _operator(node)
    module = list(node.meta.get("nn_module_stack", {}).values())[-1:]
    path, kind = module[0] if module else ("", "")
    kind = kind if isinstance(kind, str) else kind.__name__
    builder.place = f"Operator {name!r}" + (f" of module {path!r} ({kind.rpartition('.')[2]})" if path else "")
    builder.place += f" in {builder.source}"
    builder.name = f"{path}:{node.name}" if path else node.name
    if target is operator.getitem:
        if args[0][args[1]] is None:
            builder.refuse("gives indices, which are not supported")
        return args[0][args[1]]
    if name == "sym_size" and isinstance(args[0], Ref):
        return (builder.batch, *args[0].shape)[args[1]]
    if name in _LIKE and isinstance(args[0], Ref):
        args = (torch.empty(builder.batch, *args[0].shape, dtype=torch.float64), *args[1:])
    if not any(isinstance(one, Ref) for one in _leaves((args, kwargs))):
        args, kwargs = torch.utils._pytree.tree_map(_on_cpu, (args, kwargs))
        return torch.utils._pytree.tree_map(_wide, target(*args, **kwargs))  # type: ignore[operator]
    base = name.removesuffix("_") if not name.startswith("_") else name
    if base not in TABLE or not isinstance(target, torch._ops.OpOverload):
        hint = " (at the end of a classifier it can be left out: drop_softmax=True)" if name in _SOFTMAX else ""
        builder.refuse(f"is not supported{hint}; supported are {supported()}")
    named = {a.name: a.default_value if a.has_default_value() else None for a in target._schema.arguments}
    named |= {**dict(zip(named, args, strict=False)), **kwargs}
    shape = _example_shape(builder, node)
    try:
        return TABLE[base](builder, named, shape)
    except UnsupportedOperationError:
        raise
    except Exception as error:  # arguments of a kind that the translation does not expect
        builder.refuse(f"has arguments that are not supported ({first_line(error)})")


def _example_shape(builder: Builder, node: Traced) -> tuple[int, ...]:
    """Shape of the result without the batch axis; of the first result if there are several."""
    found = node.meta["val"]
    value = found[0] if isinstance(found, tuple | list) else found
    first, *shape = [fixed_length(length) for length in value.shape] or [0]
    if first not in (None, builder.batch) or None in shape:
        builder.refuse("moves or mixes the batch axis, so the outputs of an example depend on other examples")
    if value.dtype not in (torch.float32, torch.float64):
        name = str(value.dtype).removeprefix("torch.")
        builder.refuse(f"computes in {name}: supported are float32 and float64")
    return tuple(length for length in shape if length is not None)


def fixed_length(length: Any) -> int | None:
    """The length of an axis, or None for an axis of any length."""
    found: int | None = length.node.maybe_as_int() if isinstance(length, torch.SymInt) else length
    return found


def _final_softmax(last: Traced) -> Traced | None:
    """The softmax of the output over its last of two axes, or None."""
    node: Any = last
    while _operator(node) in _VANISH and len(node.args[0].users) == 1:
        node = node.args[0]
    if _operator(node) not in _SOFTMAX or node.meta["val"].ndim != 2 or node.args[1] not in (1, -1):
        return None
    return node  # type: ignore[no-any-return]


def _operator(node: Traced) -> str:
    """Name of an operator without overload; empty for weights and inputs."""
    target = node.target if node.op == "call_function" else ""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).rpartition("::")[2]
    return str(getattr(target, "__name__", target))


def _leaves(value: Any) -> Iterator[Any]:
    yield from torch.utils._pytree.tree_leaves(value)


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
