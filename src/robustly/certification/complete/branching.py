"""Choice of the neuron that is split next.

Bunel et al., "Branch and bound for piecewise linear neural network verification" (JMLR 2020, BaBSR); De Palma et
al., "Improved branch and bound for neural network verification via Lagrangian decomposition" (2021, FSB).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustly.certification.bounds.propagation import Bounds
from robustly.certification.complete.domains import Domains, Sites
from robustly.certification.network import Graph, Node
from robustly.certification.operations import Rows

CANDIDATES = 3
"""Neurons that each of the two scores proposes."""


def scores(
    graph: Graph, sites: Sites, domains: Domains, bounds: Bounds, at: Mapping[int, Rows]
) -> tuple[Tensor, Tensor]:
    """Estimated gain of splitting each neuron, by two rules, `(D, splits)`; -1 where the sign is known.

    Args:
        graph: the network.
        sites: the neurons.
        domains: the domains.
        bounds: bounds of the nodes in the domains.
        at: rows over the outputs of the relaxed operations.
    """
    gains, intercepts = [], []
    if not sites.splits:
        nothing = domains.bound.new_zeros(len(domains), 0)
        return nothing, nothing
    for source, signs in sites.of_split(domains.splits).items():
        index = sites.split[source]
        low, high = bounds[source].lower.flatten(1)[:, index], bounds[source].upper.flatten(1)[:, index]
        share = high / (high - low).clamp_min(1e-12)
        bias = _bias(graph, source)[index]
        gain, intercept = torch.zeros_like(low), torch.zeros_like(low)
        for node in sites.kinked[source]:
            slope = at[node].coefficients.flatten(1)[:, index] if node in at else torch.zeros_like(low)
            slope = slope * (1 - _below(graph.nodes[node])[index])
            cut = slope.clamp_max(0) * (-low * share)
            gain = gain + torch.minimum(bias * slope * (share - 1), bias * slope * share) + cut
            intercept = intercept + cut
        open_ = (signs == 0) & (low < 0) & (high > 0)
        gains.append(torch.where(open_, gain.abs(), -1.0))
        intercepts.append(torch.where(open_, -intercept, -1.0))
    return torch.cat(gains, 1), torch.cat(intercepts, 1)


def _below(node: Node) -> Tensor:
    """Slope of a kinked operation below 0, flattened."""
    slope = {"relu": 0.0, "abs": -1.0}.get(node.op, node.settings.get("slope", 0.0))
    return torch.as_tensor(node.constants.get("slope", slope)).expand(node.shape).flatten()


def _bias(graph: Graph, index: int) -> Tensor:
    """Constant part of the operation that a node is, flattened; 0 where there is none."""
    node = graph.nodes[index]
    name = "shift" if node.op == "scale" else "bias"
    bias = node.constants.get(name)
    dtype = next((one.dtype for one in node.constants.values()), torch.get_default_dtype())
    if bias is None:
        return torch.zeros(node.size, dtype=dtype)
    if node.op in ("conv", "conv_transpose"):
        bias = bias.view(-1, *[1] * (len(node.shape) - 1))
    return bias.expand(node.shape).flatten()


def choose(gain: Tensor, intercept: Tensor) -> Tensor:
    """BaBSR: the neuron with the largest gain, -1 if no sign is open; the intercept decides among tiny gains."""
    best, choice = gain.max(1)
    other = intercept.argmax(1)
    choice = torch.where((best < 1e-3) & (intercept.amax(1) > 0), other, choice)
    return torch.where(best < 0, -1, choice)


def filtered(domains: Domains, gain: Tensor, intercept: Tensor, bound: Callable[[Domains], Tensor]) -> Tensor:
    """FSB: of the best neurons by both scores, the one whose worse half has the largest quick bound.

    Args:
        domains: the domains.
        gain: first score.
        intercept: second score.
        bound: quick lower bounds of domains, `(D,)`.
    """
    count = min(CANDIDATES, gain.shape[1])
    candidates = torch.cat([gain.topk(count, 1).indices, intercept.topk(count, 1).indices], 1)
    number = candidates.shape[1]
    rows = torch.arange(len(domains), device=gain.device).repeat_interleave(number)
    tried = domains.select(rows)
    tried = replace(tried, choice=candidates.flatten())
    halves = bound(tried.children()).view(2, len(domains), number)
    worse, better = halves.amin(0), halves.amax(0)
    usable = gain.gather(1, candidates) >= 0
    value = torch.where(usable, worse + 1e-3 * better, -torch.inf)
    choice = candidates.gather(1, value.argmax(1, keepdim=True)).squeeze(1)
    return torch.where(gain.amax(1) < 0, -1, choice)
