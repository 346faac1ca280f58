"""A network whose passes in attacks are compiled (`torch.compile`); verdicts stay with the network itself."""

import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from robustly.attacks.core.contract import Images
from robustly.attacks.core.graphs import is_repeatable, modes_of
from robustly.attacks.core.model_access import half_precision_copy, input_gradient
from robustly.memory import is_out_of_memory
from robustly.models.outputs import logits_in
from robustly.output_text import LONGEST_REASON, one_line

Backend = Callable[[torch.fx.GraphModule, list[Any]], Callable[..., Any]]
"""From a graph and examples of its inputs to a function that computes it."""
INDUCTOR = "inductor"
MOST = 8
"""Compilations of a network; the number that PyTorch allows by itself."""
_AGREES = {torch.float16: (0.1, 0.5), torch.bfloat16: (0.1, 0.5)}
_USUAL = 0.01, 0.1
"""Largest relative differences of logits and gradients, of compiled passes and others, in the Euclidean norm."""


class CompiledNetwork(nn.Module):
    """A network with compiled forward and input-backward passes, for searches.

    Weights are read where they lie: they may change in place. The kernels of a pass depend on its shape alone, not
    on the passes before it. A single example runs uncompiled, and so do passes that change statistics or draw
    dropout. Before a compiled pass is used for the first time, its logits and its gradient are compared with those
    of the network. Passes that differ, that cannot be compiled, or that follow `MOST` compilations run uncompiled;
    the first reason is a warning.

    Args:
        net: the network, on its device.
        size: number of examples of most passes, which has static shapes. One more compilation serves all other
            numbers. None compiles each number by itself.
        backend: backend of `torch.compile`, or its name.

    Attributes:
        refusal: first reason why passes run uncompiled; empty without one.
    """

    def __init__(self, net: nn.Module, size: int | None = None, backend: str | Backend = INDUCTOR) -> None:
        super().__init__()
        self.net, self.size, self.backend = net, size, backend
        self._count, self.refusal = 0, ""
        self._agrees: dict[tuple[object, ...], bool] = {}
        self._half: CompiledNetwork | None = None
        self._static, self._dynamic = (
            torch.compile(_with_own_code(lambda x: net(x)), backend=self._counted, fullgraph=True, dynamic=False)  # noqa: PLW0108 (a code object)
            for _ in range(2)
        )

    def forward(self, x: Images) -> Any:
        """Output of the network for inputs `(M, ...)`."""
        if len(x) < 2 or not is_repeatable(self.net):
            return self.net(x)
        key = self._key(x)
        if key not in self._agrees:
            self._agrees[key] = self._tried(x)
        if not self._agrees[key]:
            return self.net(x)
        try:
            return self._compiled(x)
        except Exception as error:  # such as one compilation too many
            if is_out_of_memory(error):
                raise
            output = self.net(x)  # whose error is the user's
            self._agrees[key] = self._refused(_reason_in(error))
            return output

    @property
    def compilations(self) -> int:
        """Number of graphs that were compiled."""
        return self._count + (0 if self._half is None else self._half.compilations)

    def half_precision(self, x: Images) -> "CompiledNetwork | None":
        """The compiled bfloat16 copy, with the weights of this moment; see `half_precision_copy`.

        Call it in evaluation mode.
        """
        if self._half is None:
            copied = half_precision_copy(self.net, x)
            self._half = None if copied is None else CompiledNetwork(copied.eval(), self.size, self.backend)
        if self._half is not None:
            for state in (nn.Module.parameters, nn.Module.buffers):
                for own, value in zip(state(self._half.net), state(self.net), strict=True):
                    own.data.copy_(value.data)
        return self._half

    def _key(self, x: Images) -> tuple[object, ...]:
        kind = x.device.type
        rest = (
            *(x.shape[1:], x.dtype, x.is_contiguous(), x.requires_grad, torch.is_grad_enabled()),
            *(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
            *modes_of(self.net),
        )
        return (*rest, len(x) if self._is_static(x) else None)

    def _is_static(self, x: Images) -> bool:
        return self.size is None or len(x) == self.size

    def _compiled(self, x: Images) -> Any:
        if self._is_static(x):
            return self._static(x)
        torch._dynamo.mark_dynamic(x, 0)
        return self._dynamic(x)

    def _counted(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self._count += 1
        backend = torch._dynamo.lookup_backend(self.backend) if isinstance(self.backend, str) else self.backend
        found: Callable[..., Any] = backend(graph, inputs)
        return found

    def _tried(self, x: Images) -> bool:
        """Compile a pass; returns whether it agrees with that of the network."""
        missing = missing_compiler(x.device) if self.backend == INDUCTOR else ""
        if not missing and self._count >= MOST:
            missing = f"there are more than {MOST} kinds of passes"
        if missing:
            return self._refused(missing)
        gpus = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(gpus), _quiet():
            reason = self._reason_against(x)
        return self._refused(reason) if reason else True

    def _reason_against(self, x: Images) -> str:
        """Reason not to use a compiled pass; empty if it can be used."""
        given = x.detach().clone()
        version = given._version
        plain = _pass(self.net, given, x.requires_grad)
        if given._version != version:
            return "the network changes its input in place"
        try:
            found = _pass(self._compiled, x.detach().clone(), x.requires_grad)
        except Exception as error:  # of any kind: the network is the user's
            if is_out_of_memory(error):
                raise
            return _reason_in(error)
        return self._difference(found, plain)

    def _difference(self, found: list[Tensor], plain: list[Tensor]) -> str:
        dtype = next((one.dtype for one in self.net.parameters()), torch.float32)
        if torch.is_autocast_enabled(plain[0].device.type):
            dtype = torch.get_autocast_dtype(plain[0].device.type)
        limits = zip(("logits", "gradients"), _AGREES.get(dtype, _USUAL), found, plain, strict=False)
        for what, most, compiled, own in limits:
            if compiled.shape != own.shape:
                return f"compiled {what} have another shape than those of the network"
            wanted = own.double().nan_to_num()
            size = float((compiled.double().nan_to_num() - wanted).norm()) / max(float(wanted.norm()), 1e-30)
            if not size <= most:
                return f"compiled {what} differ from those of the network by {100 * size:.2g} %"
        return ""

    def _refused(self, reason: str) -> bool:
        """False; the first reason is a warning."""
        if not self.refusal:
            self.refusal = reason
            warnings.warn(f"runtime.compile: {reason}; such passes run uncompiled", stacklevel=2)
        return False


def missing_compiler(device: torch.device) -> str:
    """The compiler that this machine lacks for a device, in words; empty if none is known to be missing."""
    if device.type == "cpu":
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "cl"]
        if not any(map(shutil.which, names)):
            return f"no C++ compiler ({', '.join(names)}) was found"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return ""


def _with_own_code(run: Any) -> Callable[[Images], Any]:
    """The function with a code object of its own: PyTorch limits compilations by code object, which all share."""
    return FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)


def _pass(net: Callable[[Images], Any], x: Images, backward: bool) -> list[Tensor]:
    """Logits, and the gradient of the sum of their squares if the input requires one."""
    here = x.requires_grad_(backward)
    output = net(here)
    output = (output if isinstance(output, Tensor) else logits_in(output)).float()
    if not (backward and torch.is_grad_enabled()):
        return [output]
    return [output.detach(), input_gradient(output.square().sum(), here)]


def _reason_in(error: BaseException) -> str:
    """The reason in an error of a compilation, whose message has several lines, one of them with an explanation."""
    if type(error).__name__ == "ConstraintViolationError" or "Constraints violated" in str(error):
        return "the passes depend on the number of examples"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.endswith("raised:")] or [type(error).__name__]
    said = next(
        (line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")), lines[0]
    )
    return one_line(said).rstrip(".")[:LONGEST_REASON]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of PyTorch back, and what it logs of an error that it also raises."""
    log = logging.getLogger("torch._guards")
    before = log.disabled
    try:
        log.disabled = True
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.disabled = before
