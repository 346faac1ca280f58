"""Times and strength of bounds beside auto_LiRPA: nine margins of small MNIST networks, one thread, one process."""

import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustly.certification.bounds.alpha import optimise
from robustly.certification.bounds.methods import margins, row_bounds
from robustly.certification.bounds.propagation import intermediate
from robustly.certification.network import Graph
from robustly.certification.operations import Interval
from robustly.certification.readers.torch_reader import read_module
from robustly.certification.sets import InputSet
from robustly.certification.specification import Specification, robustness
from verification_parts.networks import Pictured

ITERATIONS = 20
LIMITS = {"IBP": 0.6, "CROWN": 0.6, "alpha, last layer": 0.5}


@dataclass(frozen=True)
class Compared:
    """One row: CPU milliseconds for an image and mean worst margin of both, and the largest difference.

    `equal` is the largest difference of CROWN margins from the same bounds of the hidden layers; NaN for others.
    """

    network: str
    epsilon: float
    method: str
    ours: float
    theirs: float
    margin: float
    their_margin: float
    equal: float


def peer() -> tuple[types.ModuleType | None, str]:
    """auto_LiRPA, installed or in the folder AUTO_LIRPA_PATH, or the reason of its absence."""
    folder = os.environ.get("AUTO_LIRPA_PATH")
    if folder and not (Path(folder) / "auto_LiRPA").is_dir():
        return None, "the folder AUTO_LIRPA_PATH has no auto_LiRPA"
    if folder:
        sys.path.append(folder)
    try:
        import graphviz  # noqa: F401
    except ImportError:  # auto_LiRPA imports it for drawings only
        sys.modules["graphviz"] = types.ModuleType("graphviz")
        sys.modules["graphviz"].Digraph = object  # type: ignore[attr-defined]
    try:
        import auto_LiRPA
    except ImportError as error:
        return None, f"auto_LiRPA is absent ({error}): install it or set AUTO_LIRPA_PATH to a folder with it"
    return auto_LiRPA, ""


def compared(name: str, given: Pictured, epsilon: float, count: int, rounds: int) -> list[dict[str, object]]:
    """Rows of one network at one radius; times are medians of alternating runs.

    Args:
        name: name of the network in the table.
        given: network and images.
        epsilon: radius in pixel units.
        count: number of images, bounded as one batch.
        rounds: number of runs of each tool and method.
    """
    normalise, network = given.model[0], given.model[1:]
    x, y = given.x[:count], given.y[:count]
    box = [normalise((x + side * epsilon).clamp(0, 1)) for side in (-1, 1)]
    inputs, spec = InputSet(box[0], box[1]), robustness(y, 10)
    graph = read_module(network, tuple(x.shape[1:])).to(torch.float32)
    ours, theirs, last = _our_methods(graph, inputs, spec), *_their_methods(network, normalise(x), inputs, spec)
    rows = []
    for method in ours:
        found = {"ours": ours[method](), "theirs": theirs[method]()}  # the first run prepares
        equal = float("nan")
        if method == "CROWN":
            equal = float((row_bounds(graph, inputs, spec, last(graph)) - found["theirs"]).abs().max())
        spent: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for side, run in (("ours", ours[method]), ("theirs", theirs[method])):
                begin = time.process_time()
                run()
                spent[side].append(1000 * (time.process_time() - begin) / count)
        worst = {side: float(value.amin(1).mean()) for side, value in found.items()}
        medians = {side: statistics.median(values) for side, values in spent.items()}
        row = Compared(
            name, epsilon, method, medians["ours"], medians["theirs"], worst["ours"], worst["theirs"], equal
        )
        rows.append(asdict(row))
        print(row, flush=True)
    return rows


def _our_methods(graph: Graph, inputs: InputSet, spec: Specification) -> dict[str, Callable[[], Tensor]]:
    def alpha() -> Tensor:
        start = intermediate(graph, inputs)
        return optimise(graph, inputs, spec, start, iterations=ITERATIONS, goal=None).margins

    return {
        "IBP": lambda: margins(graph, inputs, spec, "ibp"),
        "CROWN": lambda: margins(graph, inputs, spec, "crown"),
        "alpha, last layer": alpha,
    }


def _their_methods(
    network: nn.Module, x: Tensor, inputs: InputSet, spec: Specification
) -> tuple[dict[str, Callable[[], Tensor]], Callable[[Graph], dict[int, Interval]]]:
    """Functions of auto_LiRPA, and one that gives the hidden bounds of the last run by the nodes of our graph."""
    from auto_LiRPA import BoundedModule, BoundedTensor
    from auto_LiRPA.perturbations import PerturbationLpNorm

    options = {
        "conv_mode": "patches",
        "sparse_intermediate_bounds": True,
        "optimize_bound_args": {"iteration": ITERATIONS, "early_stop_patience": ITERATIONS},
        "verbosity": 0,
    }
    bounded = BoundedModule(network, torch.zeros_like(x[:1]), device="cpu", bound_opts=options)
    ball = PerturbationLpNorm(norm=float("inf"), x_L=inputs.lower, x_U=inputs.upper)
    point = BoundedTensor(x, ball)

    def run(method: str, fixed: dict[str, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        with torch.set_grad_enabled(fixed is not None):
            found = bounded.compute_bounds(
                x=(point,), C=spec.rows, method=method, interm_bounds=fixed, bound_upper=False
            )
        return found[0].detach()

    def alpha() -> Tensor:
        """Last layer only: the hidden bounds are those of CROWN (without them, they are optimised too)."""
        run("CROWN")
        return run("CROWN-Optimized", {node.name: (node.lower, node.upper) for node in activation_inputs()})

    def activation_inputs() -> list[Any]:
        return [node.inputs[0] for node in bounded.nodes() if type(node).__name__ == "BoundRelu"]

    def hidden(graph: Graph) -> dict[int, Interval]:
        """Bounds of the inputs of activations, in the order of the network."""
        read = sorted({node.inputs[0] for node in graph.nodes if node.op == "relu"})
        return {
            index: Interval(
                *(one.detach().view(len(x), *graph.nodes[index].shape) for one in (node.lower, node.upper))
            )
            for index, node in zip(read, activation_inputs(), strict=True)
        }

    return {"IBP": lambda: run("IBP"), "CROWN": lambda: run("CROWN"), "alpha, last layer": alpha}, hidden


def table(rows: list[dict[str, object]], reason: str) -> str:
    """The rows as Markdown."""
    lines = [
        "| network | epsilon | bounds | ours, ms | auto_LiRPA, ms | ratio | goal | margin | theirs | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in (Compared(**one) for one in rows):  # type: ignore[arg-type]
        equal = f"{row.equal:.0e}" if row.equal == row.equal else ""
        lines.append(
            f"| {row.network} | {row.epsilon:g} | {row.method} | {row.ours:.2f} | {row.theirs:.2f} | "
            f"{row.ours / row.theirs:.2f} | {LIMITS[row.method]} | {row.margin:.4f} | {row.their_margin:.4f} | "
            f"{equal} |"
        )
    return "\n".join(lines) if rows else f"Not measured: {reason or 'the part has not run'}."
