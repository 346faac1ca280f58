"""What a step of a method costs: passes through each network, counted on a stand-in and not estimated."""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustly.data import Batch
from robustly.randomness import KeyedGenerator
from robustly.threats.lp import ThreatModel
from robustly.training.method import Method, MethodError, outer_loss
from robustly.training.step import Memory, Moment, Step
from robustly.training.weights import WeightsError

COUNT, SHAPE, CLASSES = 4, (1, 4, 4), 4


@dataclass(frozen=True)
class StepCost:
    """Passes of one example through each network, in all steps that are taken on its batch.

    Args:
        forwards: by role ("model", "guide", "teacher", "standard_teacher").
        backwards: likewise; passes back to the input and passes back to the weights count alike.
    """

    forwards: dict[str, int]
    backwards: dict[str, int]

    @property
    def total(self) -> int:
        """All passes, forward and backward, through all networks."""
        return sum(self.forwards.values()) + sum(self.backwards.values())


class _StandIn(nn.Module):
    """A network that has every example right by far, so that no attack ends early; it counts its passes."""

    def __init__(self, role: str, passes: Counter[tuple[str, str]]) -> None:
        super().__init__()
        self.head = nn.Linear(SHAPE[0] * SHAPE[1] * SHAPE[2], CLASSES)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            self.head.weight.normal_(0, 0.01)
            self.head.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
        self._role, self._passes = role, passes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        self._passes[self._role, "forward"] += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count_back)  # type: ignore[no-untyped-call]
        return logits

    def _count_back(self, gradient: Tensor) -> None:
        self._passes[self._role, "backward"] += len(gradient)


def step_cost(method: Method, epochs: int) -> StepCost:
    """Passes of an example that nothing breaks, in the last epoch of a run, when every warm-up is over.

    Args:
        method: the composition.
        epochs: of the run.

    Raises:
        MethodError: the instance weights are for a term that the loss does not have.
    """
    try:
        return _counted(method, epochs)
    except WeightsError:  # the stand-in is so sure that extreme weights vanish on it, as they may not on networks
        return _counted(replace(method, weights=None), epochs)


def _counted(method: Method, epochs: int) -> StepCost:
    passes: Counter[tuple[str, str]] = Counter()
    networks = {role: _StandIn(role, passes) for role in ("model", *method.networks)}
    teachers = {role: network for role, network in networks.items() if role not in ("model", "guide")}
    for teacher in teachers.values():
        teacher.requires_grad_(False).eval()
    ids = torch.arange(COUNT)
    x, y = KeyedGenerator(0, ids).uniform(*SHAPE), torch.zeros(COUNT, dtype=torch.int64)
    memory: Memory = {}
    moment = Moment(epochs - 1, 0, 1, epochs)
    for replay in range(method.replays):
        step = Step(
            Batch(x, y, ids, KeyedGenerator(0, ids)),
            networks["model"],
            networks.get("guide"),
            teachers=teachers,
            threat=ThreatModel("linf", 1e-3),
            moment=moment,
            label_source=method.labels,
            inner=method.inner,
            memory=memory,
            slot_of=method.slot_of,
            replay=replay,
        )
        loss, _ = outer_loss(method, step)
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        method.tell("after_backward", step)
        method.tell("after_step", step)
    terms = method.loss(step)  # of logits that are there: no further pass
    if method.weights is not None and method.weights.term not in terms:
        raise MethodError(
            f"the weights are for the loss term {method.weights.term!r}, the loss has {', '.join(terms)}: "
            "set method.weights.term"
        )
    roles = list(networks)
    return StepCost(
        {role: passes[role, "forward"] // COUNT for role in roles},
        {role: passes[role, "backward"] // COUNT for role in roles},
    )
