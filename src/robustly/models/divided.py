"""A network whose passes several processes share, each with a share of the weights."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustly.models.outputs import logits_in


@runtime_checkable
class Passes(Protocol):
    """Passes of a network that several processes take together."""

    def forward(self, x: Tensor, with_graph: bool) -> tuple[Tensor, "Graph | None"]:
        """Output of a batch `(N, ...)`, and its graph for gradients.

        Args:
            x: inputs.
            with_graph: whether gradients with respect to the inputs may follow. There is no graph if the output
                does not depend on the inputs.
        """
        ...

    def backward(self, graph: "Graph", gradient: Tensor, keep: bool) -> Tensor:
        """Gradient with respect to the inputs of a graph.

        Args:
            graph: as `forward` returned it.
            gradient: with respect to the output.
            keep: whether the graph is used again.
        """
        ...

    def move(self, seeds: tuple[int, int] | None, along: tuple[float, float]) -> None:
        """Move the weights along two filter-normalised directions; None moves them back."""
        ...

    def half(self) -> "DividedModel | None":
        """The network in bfloat16, made at the first call; None if no copy of it can be made."""
        ...


@runtime_checkable
class Graph(Protocol):
    """The graph of one pass, which lies in all processes and is released with this object.

    Args:
        call: number of the pass.
        rows: number of its rows.
    """

    call: int
    rows: int


class DividedModel(nn.Module):
    """A network whose passes several processes share: each computes its rows of a batch.

    Gradients are those with respect to the input, once. A pass must be taken in evaluation mode.

    Args:
        network: this process's network, with its share of the weights.
        passes: passes of all processes.
        weights_sha256: hash of the whole weights, see `robustly.models.weights_hash`.
    """

    def __init__(self, network: nn.Module, passes: Passes, weights_sha256: str) -> None:
        super().__init__()
        self.network = network
        self.passes = passes
        self.weights_sha256 = weights_sha256
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Output of the network."""
        if torch.is_grad_enabled() and x.requires_grad:
            found: Tensor = _SharedPass.apply(x, self.passes)  # type: ignore[no-untyped-call]
            return found
        return self.passes.forward(x, with_graph=False)[0]

    def logits_beside(self, seeds: tuple[int, int], x: Tensor, along: tuple[float, float]) -> Tensor:
        """Logits with weights that are moved along two directions, `(N, K)`; the weights are moved back after it.

        Args:
            seeds: of the directions, see `robustly.models.weight_directions`.
            x: inputs.
            along: their coefficients.
        """
        try:
            self.passes.move(seeds, along)
            return logits_in(self(x))
        finally:
            self.passes.move(None, (0.0, 0.0))


class _SharedPass(torch.autograd.Function):
    """A pass of all processes as one operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: Passes) -> Tensor:
        output, ctx.graph = passes.forward(x.detach(), with_graph=True)
        ctx.passes = passes
        if ctx.graph is None:
            ctx.mark_non_differentiable(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("runtime.strategy fsdp: there are no second derivatives through weights in shards")
        return ctx.passes.backward(ctx.graph, gradient, _graph_is_kept()), None


def _graph_is_kept() -> bool:
    """True if the running backward pass keeps the graph; without the answer of PyTorch, True."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())
