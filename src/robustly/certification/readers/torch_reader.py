"""PyTorch modules as graphs, through `torch.export` without decomposition."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import Node as Traced

from robustly.certification.evaluation import evaluate
from robustly.certification.network import Graph
from robustly.certification.readers.building import Builder
from robustly.certification.readers.torch_program import fixed_length, translated
from robustly.models.adapted import Adapted
from robustly.models.adapter import kind_of, unwrapped
from robustly.models.lazy import has_lazy_parameters
from robustly.models.modes import modes_kept
from robustly.models.outputs import OutputError
from robustly.output_text import first_line

POINTS, TOLERANCE, SEED = 20, 1e-4, 13
FREE_BATCH = 7
"""Number of examples in constants of networks that take any number: one that no axis of a network has by habit."""

_LOGGERS = ("torch", "torch.export", "torch.fx.experimental.symbolic_shapes")


class ModuleError(ValueError):
    """A module that cannot be read as a network to verify; the message gives the reason and the remedy."""


def read_module(model: nn.Module, input_shape: tuple[int, ...], *, drop_softmax: bool = False) -> Graph:
    """The graph of a module in evaluation mode, with weights in float64.

    The modes of the module's parts are left as they were. The graph is compared with the module on 20 random inputs
    in [0, 1].

    Args:
        model: a module from inputs `(N, *input_shape)` to outputs `(N, ...)`. Of a tuple, a dictionary or an object
            with `logits`, these are taken.
        input_shape: shape of one input.
        drop_softmax: True leaves out a softmax or log-softmax at the end, for properties that only compare outputs.

    Raises:
        ModuleError: the module fails, cannot be traced, is not deterministic, has weights in half precision or
            that are not finite, or differs from the graph.
        UnsupportedOperationError: an operation cannot be bounded; the message names it and its module.
    """
    bare = unwrapped(model)
    if not isinstance(bare, nn.Module):
        raise ModuleError(f"a network to verify must be a torch.nn.Module, got {kind_of(model)}: use robustly.wrap")
    source = kind_of(bare.inner if isinstance(bare, Adapted) else bare)
    if any(isinstance(module, torch.jit.ScriptModule) for module in bare.modules()):
        raise ModuleError(f"{source} has parts in TorchScript, which torch.export cannot trace: give the original")
    dtype, device = _kind_of_weights(bare, source)
    if not all(isinstance(length, int) and length > 0 for length in input_shape):
        raise ModuleError(
            f"input_shape is {input_shape}: give the lengths of one input's axes, such as (3, 32, 32)"
        )
    generator = torch.Generator().manual_seed(SEED)
    x = torch.rand(POINTS, *input_shape, generator=generator, dtype=dtype).to(device)
    with torch.inference_mode(False), torch.no_grad(), modes_kept(bare), _quiet():
        _to_evaluation(bare)
        network, batch = _runnable(bare, x, source)
        program, free = _exported(network, x[:batch], source)
        builder = Builder(source, FREE_BATCH if free else batch)
        graph, softmax = translated(program, builder, tuple(input_shape), drop_softmax)
        theirs = _outputs(network, x, batch).cpu().double()
        _check_alone(network, x[:1], theirs[:1], source)
    return _checked(graph, x.cpu().double(), theirs, softmax)


def _kind_of_weights(model: nn.Module, source: str) -> tuple[torch.dtype, torch.device]:
    values = [v for v in (*model.parameters(), *model.buffers()) if v.is_floating_point()]
    if has_lazy_parameters(model) or any(value.is_meta for value in values):
        raise ModuleError(f"{source} has weights without numbers: run it once on an input, or load its weights")
    if any(value.is_inference() for value in values):
        raise ModuleError(
            f"{source} has weights that were made in torch.inference_mode, which cannot be traced: make it outside "
            "of that mode, or pass copy.deepcopy(model)"
        )
    half = next((v.dtype for v in values if v.dtype not in (torch.float32, torch.float64)), None)
    if half is not None:
        name = str(half).removeprefix("torch.")
        raise ModuleError(f"{source} has weights in {name}: use model.float(), and verify that")
    for name, value in model.named_parameters():
        if not bool(value.isfinite().all()):
            raise ModuleError(f"{source} has NaN or infinite numbers in {name!r}: nothing can be proved of it")
    return (values[0].dtype, values[0].device) if values else (torch.float32, torch.device("cpu"))


def _to_evaluation(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError:  # a program of torch.export has the mode in which it was traced
        for module in model.modules():
            module.training = False


def _runnable(model: nn.Module, x: Tensor, source: str) -> tuple[nn.Module, int]:
    """A module that returns a tensor, and the number of examples that it takes: 2, or 1 if it takes no other."""
    reason = ""
    for batch in (2, 1):
        try:
            first, second = (model(x[:batch].clone()) for _ in range(2))
            network = model
            if not isinstance(first, Tensor):
                network = Adapted(model)
                first, second = (network(x[:batch].clone()) for _ in range(2))
        except OutputError as error:
            raise ModuleError(f"{source} cannot be verified: {error}") from None
        except Exception as error:  # any error of the user's code
            reason = reason or first_line(error)
            continue
        if first.ndim == 0 or len(first) != batch:
            raise ModuleError(
                f"{source} returns a tensor of shape {tuple(first.shape)} for {batch} inputs: the first axis must "
                "be that of the inputs"
            )
        if not bool(first.isfinite().all()):
            raise ModuleError(f"{source} returns NaN or infinite numbers for inputs in [0, 1]: check its weights")
        if not torch.equal(first, second):
            raise ModuleError(
                f"{source} is not deterministic: two evaluations of one input differ, so it has no proofs"
            )
        return network, batch
    raise ModuleError(f"{source} fails on inputs of shape {tuple(x.shape[1:])}: {reason}")


def _outputs(model: nn.Module, x: Tensor, batch: int) -> Tensor:
    """Outputs for all inputs at once, or for parts of a batch if the module takes no other number."""
    try:
        return model(x.clone())  # type: ignore[no-any-return]
    except Exception:  # any error of the user's code, which has taken a batch before
        return torch.cat([model(part.clone()) for part in torch.split(x, batch)])


def _check_alone(model: nn.Module, x: Tensor, beside: Tensor, source: str) -> None:
    """Refuse a module whose outputs for one input differ from those in a batch."""
    try:
        alone = model(x.clone()).cpu().double()
    except Exception:  # any error of the user's code: it does not take a batch of one
        return
    scale = max(float(beside.abs().max()), 1e-3)
    if not float((alone - beside).abs().max()) <= TOLERANCE * scale:
        raise ModuleError(f"{source} gives one input other outputs alone than in a batch, so nothing can be proved")


def _exported(model: nn.Module, x: Tensor, source: str) -> tuple[ExportedProgram, bool]:
    """The traced program without changes in place, and True if it takes any number of examples."""
    free = len(x) > 1
    try:
        shapes = ({0: Dim.AUTO},) if free else None
        program = torch.export.export(model, (x.clone(),), dynamic_shapes=shapes, strict=False)
        if any(_hidden_change(node) for node in program.graph.nodes):
            program = program.run_decompositions({})
    except Exception as error:  # the exporter raises many kinds of errors
        raise ModuleError(
            f"torch.export cannot trace {source} ({first_line(error)}): a network to verify consists of PyTorch "
            "operations, without control flow that depends on its input"
        ) from None
    name = program.graph_signature.user_inputs[0]
    traced = next(node for node in program.graph.nodes if node.name == name)
    return program, free and fixed_length(traced.meta["val"].shape[0]) is None


def _hidden_change(node: Traced) -> bool:
    """True for a change in place that other nodes may see; others equal the operation on a copy."""
    if (
        not isinstance(node.target, OpOverload)
        or not node.target._schema.is_mutable
        or "dropout" in node.target._schema.name
    ):
        return False
    changed: Any = node.args[0] if node.args else None
    while isinstance(changed, Traced) and len(changed.users) == 1 and isinstance(changed.target, OpOverload):
        aliases = [value.alias_info for value in changed.target._schema.returns]
        if all(alias is None or alias.is_write for alias in aliases):
            return False
        changed = changed.args[0]  # a view
    return True


def _checked(graph: Graph, x: Tensor, theirs: Tensor, softmax: Any) -> Graph:
    """The graph, if its outputs are those of the module.

    Raises:
        ModuleError: they differ by more than 1e-4 of the largest output.
    """
    with torch.no_grad():
        ours = evaluate(graph, x)
    ours = ours if softmax is None else softmax(ours, 1)
    scale, theirs = max(float(theirs.abs().max()), 1e-3), theirs.reshape(len(theirs), -1)
    difference = float((ours - theirs).abs().max()) / scale if ours.shape == theirs.shape else math.inf
    if not difference <= TOLERANCE:
        raise ModuleError(
            f"the outputs of {graph.source} differ by {difference:.1e} (relative) from those of its graph in "
            f"float64, and {TOLERANCE:.0e} is allowed: its numbers are too large for float32, or its outputs "
            "depend on other inputs of a batch"
        )
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the remarks of the exporter, whose errors are reported."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
