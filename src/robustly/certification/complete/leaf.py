"""Exact bound of a domain in which all signs are known: a linear programme over the input.

The programme gives multipliers only. The bound itself comes from a backward pass, so it does not depend on the
solver's tolerances.
"""

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from torch import Tensor

from robustly.certification.bounds.backward import lower
from robustly.certification.bounds.propagation import Bounds
from robustly.certification.network import Graph
from robustly.certification.operations import Rows
from robustly.certification.sets import InputSet

_PENALTY = 1e4
"""Price of violating the signs: makes the programme feasible, and bounds the sum of the multipliers."""


@dataclass(frozen=True)
class Leaf:
    """Solution of the programme.

    Args:
        multipliers: of the sign constraints, by node, in the order of the given neurons.
        weights: of the rows, `(K,)`.
        point: an input where the largest row is least, `(1, *shape)`.
    """

    multipliers: dict[int, Tensor]
    weights: Tensor
    point: Tensor


def solve_leaf(
    graph: Graph,
    inputs: InputSet,
    bounds: Bounds,
    rows: Tensor,
    offset: Tensor,
    signs: dict[int, tuple[Tensor, Tensor]],
) -> Leaf | None:
    """Minimise the largest row over the box where neurons have given signs; None if there is no solver or it fails.

    Args:
        graph: the network, in float64.
        inputs: the input set, one example.
        bounds: bounds of every node; no neuron has an open sign.
        rows: rows over the output, `(K, *shape)`.
        offset: their constant parts, `(K,)`.
        signs: places in the flattened node and signs of neurons, by node.
    """
    try:
        linprog = import_module("scipy.optimize").linprog
    except ImportError:
        return None
    count = graph.nodes[0].size
    wanted, constant = _linear(graph, graph.output, rows, inputs, bounds)
    left = [np.concatenate([wanted, np.full((len(wanted), 1), -1.0), np.zeros((len(wanted), 1))], 1)]
    right = [-constant - offset.numpy()]
    for node, (places, sign) in signs.items():
        ones = torch.zeros(len(places), graph.nodes[node].size, dtype=rows.dtype)
        ones.scatter_(1, places.unsqueeze(1), -sign.to(rows.dtype).unsqueeze(1))
        slope, start = _linear(graph, node, ones.view(-1, *graph.nodes[node].shape), inputs, bounds)
        left.append(np.concatenate([slope, np.zeros((len(slope), 1)), np.full((len(slope), 1), -1.0)], 1))
        right.append(-start)
    low, high = inputs.lower.flatten().numpy(), inputs.upper.flatten().numpy()
    limits = [*zip(low, high, strict=True), (None, None), (0, None)]
    if not all(np.isfinite(one).all() for one in (*left, *right, low, high)):
        return None
    cost = np.concatenate([np.zeros(count), [1.0, _PENALTY]])
    found = linprog(cost, np.concatenate(left), np.concatenate(right), bounds=limits, method="highs")
    if found.status != 0:
        return None
    duals = torch.from_numpy(-found.ineqlin.marginals).clamp_min(0)
    parts = torch.split(duals, [len(one) for one in left])
    point = torch.from_numpy(np.clip(found.x[:count], low, high)).view(1, *graph.input_shape)
    return Leaf(dict(zip(signs, parts[1:], strict=True)), parts[0].clamp_min(1e-9), point)


def _linear(graph: Graph, at: int, rows: Tensor, inputs: InputSet, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Rows over a node as linear functions of the input: coefficients `(R, inputs)` and constants `(R,)`."""
    found = lower(graph, at, Rows(rows.unsqueeze(0)), inputs, bounds)
    bias = found.bias[0].numpy()
    if found.rows is None:
        return np.zeros((len(rows), graph.nodes[0].size)), bias
    return found.rows.coefficients[0].flatten(1).numpy(), bias
