"""Whole steps of composed methods against straight-line versions, written from the papers alone.

Attack, labels, weights, perturbation of the weights, momentum and weight decay together, in double precision, on a
network in train mode. The straight lines share no code with the package.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_tools import make_step, mlp

from robustly.threats.lp import ThreatModel
from robustly.training import (
    DataLabels,
    DynatLoss,
    GairatWeights,
    GuideLabels,
    InstanceWeights,
    LbgatLoss,
    MailWeights,
    Method,
    OuterLoss,
    PGDInner,
    WeightPerturbation,
)
from robustly.training.method import outer_loss

EPSILON, STEP, STEPS = 0.1, 0.04, 4
RATE, MOMENTUM, DECAY, GAMMA = 0.2, 0.9, 0.01, 0.03


def attacked(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """PGD on the cross-entropy from the clean image, in evaluation mode; and kappa."""
    net.eval()
    point, kappa = x.clone(), torch.zeros(len(x), dtype=torch.float64)
    for _ in range(STEPS):
        point.requires_grad_()
        logits = net(point)
        kappa += (logits.argmax(1) == y).double()
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), point)
        point = (point.detach() + STEP * gradient.sign()).clamp(min=x - EPSILON, max=x + EPSILON).clamp(0, 1)
    net.train()
    return point, kappa


def divergence(z: Tensor, z_adv: Tensor) -> Tensor:
    p = z.softmax(1)
    return (p * (p.log() - z_adv.softmax(1).log())).sum(1)


def weighted(kind: str, z_adv: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
    if kind == "gairat":
        raw = (1 + torch.tanh(-1 + 5 * (1 - 2 * kappa / STEPS))) / 2
        return raw / raw.mean()
    if kind == "mail":
        p = z_adv.detach().softmax(1)
        correct = p[torch.arange(len(y)), y]
        others = p.clone()
        others[torch.arange(len(y)), y] = -1.0
        return 3 / (1 + torch.exp(-10 * (others.max(1).values - correct - 0.5)))
    return torch.ones(len(y), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A composition, and what its formula is made of."""

    loss: OuterLoss
    weights: InstanceWeights | None
    kind: str
    perturbed: bool

    def formula(self, net: nn.Module, guided: Tensor, x: Tensor, x_adv: Tensor, y: Tensor, kappa: Tensor) -> Tensor:
        labels = guided.argmax(1)
        if isinstance(self.loss, LbgatLoss):
            z = net(x)
            z_adv = net(x_adv)
            squares = ((z_adv - guided) ** 2).mean(1)
            w = weighted(self.kind, z_adv, y, kappa)
            return (w * squares + 6 * divergence(z, z_adv)).mean()
        z = net(x) if self.loss.consistency else None  # type: ignore[attr-defined]
        z_adv = net(x_adv)
        own = -z_adv.log_softmax(1)[torch.arange(len(y)), labels]
        total = weighted(self.kind, z_adv, labels, kappa) * own
        return (total if z is None else total + divergence(z, z_adv)).mean()


CASES = {
    "dynat-inner-gairat": Case(DynatLoss(), GairatWeights(burn_in=0), "gairat", False),
    "dynat-inner-mail": Case(DynatLoss(), MailWeights(burn_in=0), "mail", False),
    "dynat-inner-awp": Case(DynatLoss(consistency=1.0), None, "none", True),
    "dynat-inner-mail-awp": Case(DynatLoss(consistency=1.0), MailWeights(burn_in=0), "mail", True),
    "dynat-inner-gairat-awp": Case(DynatLoss(), GairatWeights(burn_in=0), "gairat", True),
    "lbgat6-mail-awp": Case(LbgatLoss(beta=6.0), MailWeights(burn_in=0, term="mse"), "mail", True),
}


def straight_step(
    case: Case, net: nn.Module, guide: nn.Module, velocities: dict[str, Tensor], x: Tensor, y: Tensor
) -> None:
    """One step of both networks, by hand."""
    guided = guide(x)
    target = y if isinstance(case.loss, LbgatLoss) else guided.argmax(1)
    x_adv, kappa = attacked(net, x, target)
    old = {name: p.detach().clone() for name, p in net.named_parameters()}
    if case.perturbed:
        look = copy.deepcopy(net)
        value = case.formula(look, guided.detach(), x, x_adv, y, kappa)
        gradients = torch.autograd.grad(value, list(look.parameters()))
        with torch.no_grad():
            for p, gradient in zip(net.parameters(), gradients, strict=True):
                if p.ndim > 1:
                    p.add_(GAMMA * p.norm() * gradient / gradient.norm())
    shifted = {name: p.detach().clone() for name, p in net.named_parameters()}
    whole = F.cross_entropy(guided, y) + case.formula(net, guided, x, x_adv, y, kappa)
    everything = {f"net.{name}": p for name, p in net.named_parameters()}
    everything |= {f"guide.{name}": p for name, p in guide.named_parameters()}
    gradients = torch.autograd.grad(whole, list(everything.values()))
    with torch.no_grad():
        for (name, p), gradient in zip(everything.items(), gradients, strict=True):
            v = velocities.get(name, torch.zeros_like(p))
            velocities[name] = MOMENTUM * v + gradient + DECAY * p
            p.sub_(RATE * velocities[name])
        for name, p in net.named_parameters():
            p.copy_(old[name] + (p - shifted[name]))


@pytest.mark.parametrize("name", CASES)
def test_three_steps_are_those_of_the_formulas(name: str) -> None:
    case = CASES[name]
    inner = PGDInner(steps=STEPS, step_size=STEP, start="none")
    method = Method(
        labels=DataLabels() if isinstance(case.loss, LbgatLoss) else GuideLabels(),
        inner=inner,
        loss=case.loss,
        weights=case.weights,
        parameters=(WeightPerturbation(gamma=GAMMA),) if case.perturbed else (),
    )
    draws = torch.Generator().manual_seed(1)
    net, guide = mlp(seed=2).train(), mlp(seed=3).train()
    other, other_guide = copy.deepcopy(net), copy.deepcopy(guide)
    trained = [*net.parameters(), *guide.parameters()]
    optimizer = torch.optim.SGD(trained, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    velocities: dict[str, Tensor] = {}
    memory: dict[str, dict[str, Tensor]] = {}
    start = copy.deepcopy(net.state_dict())
    for _ in range(3):
        x, y = torch.rand(12, 6, dtype=torch.float64, generator=draws), torch.randint(4, (12,), generator=draws)
        step = make_step(
            x,
            y,
            net,
            guide=guide,
            threat=ThreatModel("linf", EPSILON),
            label_source=method.labels,
            inner=inner,
            memory=memory,
            slot_of=method.slot_of,
        )
        optimizer.zero_grad()
        outer_loss(method, step)[0].backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        straight_step(case, other, other_guide, velocities, x, y)
    for mine, theirs in ((net, other), (guide, other_guide)):
        expected = theirs.state_dict()
        for key, value in mine.state_dict().items():
            assert torch.allclose(value, expected[key], rtol=1e-9, atol=1e-11), key
    assert not any(torch.equal(start[key], value) for key, value in net.state_dict().items())
