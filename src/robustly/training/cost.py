"""Passes of a training step through each network, counted on small stand-in networks."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustly.data import Batch
from robustly.randomness import KeyedGenerator
from robustly.threats import Chain, Threat, ThreatModel, parse_threat
from robustly.training.method import Method, MethodError, outer_loss
from robustly.training.parts import CONVENTIONAL_NETWORKS, InstanceWeightsError
from robustly.training.quantities import Networks
from robustly.training.step import Memory, Moment

COUNT, SHAPE, CLASSES = 4, (1, 4, 4), 4
CHAINED = (
    *("linf:0.001", "l2:0.001", "l1:0.001", "l0:1", "rotation:0.1", "shift:0.1", "scale:0.001", "shear:0.1"),
    *("brightness:0.001", "contrast:0.001", "flow:0.01", "patch:1"),
)
"""Parts of a stand-in chain: as many as the chain of the run has, of kinds that the images of `SHAPE` allow."""
TEACHERS = tuple(name for name, kind in CONVENTIONAL_NETWORKS.items() if kind == "frozen")


@dataclass(frozen=True)
class StepCost:
    """Passes of one example through each network, summed over all steps on its batch.

    Args:
        forwards: forward passes by network ("model", "guide", "teacher", ...).
        backwards: backward passes by network, to the input or to the weights.
        attack_gradients: backward passes of the training attack, a part of these.
    """

    forwards: dict[str, int]
    backwards: dict[str, int]
    attack_gradients: int = 0

    @property
    def total(self) -> int:
        """All passes, forward and backward, through all networks."""
        return sum(self.forwards.values()) + sum(self.backwards.values())


class _StandIn(nn.Module):
    """A network that counts its passes. Its margin is large on every example, so that no attack ends early."""

    def __init__(self, name: str, passes: Counter[tuple[str, str]], classes: int) -> None:
        super().__init__()
        with torch.no_grad(), torch.random.fork_rng():
            self.head = nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], classes)
            torch.manual_seed(0)
            self.head.weight.normal_(0, 0.01)
            self.head.bias.zero_()[0] = 2.0
        self._name, self._passes = name, passes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        self._passes[self._name, "forward"] += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count_back)  # type: ignore[no-untyped-call]
        return logits

    def _count_back(self, gradient: Tensor) -> None:
        self._passes[self._name, "backward"] += len(gradient)


def step_cost(
    method: Method, epochs: int, frozen: Collection[str] = TEACHERS, threats: int | Sequence[Threat] = 1
) -> StepCost:
    """Passes per unbroken example in the last epoch, after all warm-ups.

    Args:
        method: the composition.
        epochs: epochs of the run.
        frozen: names of the frozen networks; others are trained.
        threats: threats of the run, or their number. Only their number counts, and that of the parts of a chain in
            any order.

    Raises:
        MethodError: the instance weights are for a term that the loss does not have.
    """
    given = (None,) * threats if isinstance(threats, int) else threats
    stand_ins = tuple(_stand_in(threat) for threat in given)
    try:
        return _counted(method, epochs, frozen, stand_ins)
    except InstanceWeightsError:
        # extreme weights may all be zero on the confident stand-in network only
        return _counted(replace(method, weights=None), epochs, frozen, stand_ins)


def _stand_in(threat: Threat | None) -> Threat:
    """A threat for the images of `SHAPE`, with as many parts as a chain in any order has."""
    if isinstance(threat, Chain) and threat.any_order:
        return Chain([parse_threat(text) for text in CHAINED[: len(threat.parts)]], any_order=True)
    return ThreatModel("linf", 1e-3)


def _counted(method: Method, epochs: int, frozen: Collection[str], threats: tuple[Threat, ...]) -> StepCost:
    passes: Counter[tuple[str, str]] = Counter()
    classes = max(CLASSES, *(part.classes for _, part in method.slots()))
    stand_ins = {name: _StandIn(name, passes, classes) for name in ("model", *method.networks)}
    networks = Networks(
        stand_ins["model"],
        trained={name: net for name, net in stand_ins.items() if name != "model" and name not in frozen},
        frozen={name: net.requires_grad_(False).eval() for name, net in stand_ins.items() if name in frozen},
    )
    ids = torch.arange(COUNT)
    draws = KeyedGenerator(0, ids)
    x, y = draws.uniform(*SHAPE), torch.zeros(COUNT, dtype=torch.int64)
    others = tuple(draws.fold("view", view).uniform(*SHAPE) for view in range(1, method.views))
    memory: Memory = {}
    moment, gradients = Moment(epochs - 1, 0, 1, epochs), 0
    for replay in range(method.replays):
        step = method.step(
            Batch(x, y, ids, draws, others), networks, threats=threats, moment=moment, memory=memory, replay=replay
        )
        loss, _ = outer_loss(method, step)
        for network in stand_ins.values():
            network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        method.after_backward(step)
        method.after_step(step)
        attacks = () if method.inner is None else (step.adversarial, *step.further_attacks)
        gradients += sum(int(one.backwards.sum()) for one in attacks)
    cost = StepCost(
        {name: passes[name, "forward"] // COUNT for name in stand_ins},
        {name: passes[name, "backward"] // COUNT for name in stand_ins},
        gradients // COUNT,
    )
    terms = method.loss(step)
    if method.weights is not None and method.weights.term not in terms:
        raise MethodError(
            f"the weights are for the loss term {method.weights.term!r}, the loss has {', '.join(terms)}: "
            "set method.weights.term"
        )
    return cost
