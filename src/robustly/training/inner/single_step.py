"""Inner maximisations of one gradient step: N-FGSM and Free-AT (Fast-AT is `PGDInner` with one step)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustly.attacks import AttackResult
from robustly.attacks.core.contract import ModelMode, frozen
from robustly.attacks.core.model_access import logits_of
from robustly.objectives import ClassificationGoal, cross_entropy
from robustly.threats.balls import laid_out_like
from robustly.threats.contract import Theta
from robustly.training.inner.pgd import training_pgd
from robustly.training.parts import Part
from robustly.training.step import Step


@dataclass(frozen=True)
class NoisyFGSMInner(Part):
    """N-FGSM: x' = box(x + eta + alpha sign grad CE(f(x + eta), y)), eta uniform in the ball of radius k epsilon.

    De Jorge et al., "Make some noise: reliable and efficient single-step adversarial training", NeurIPS 2022.
    There is no projection onto the epsilon ball: points lie up to k epsilon + alpha away, inside the box. With k =
    0 and alpha = epsilon it is FGSM.

    Args:
        noise: k, at least 0; 2 in the paper (3 on SVHN at 12/255, 4 for WRN-28-10 at 16/255).
        relative_step_size: alpha as a share of epsilon, positive; 1 in the paper.
        mode: the model's mode under attack: "eval", "train" (the paper's) or "train_nostat".

    Raises:
        ValueError: a setting out of range.
    """

    noise: float = 2.0
    relative_step_size: float = 1.0
    mode: ModelMode = "train"

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        if not 0 < self.relative_step_size < math.inf:
            raise ValueError(f"relative_step_size must be positive, got {self.relative_step_size}")

    def __call__(self, step: Step) -> AttackResult:
        """Attack the batch of a step."""
        x, goal = step.x, ClassificationGoal(step.labels.hard)
        draws = step.generator.fold("inner").fold("restart", 0).fold("start")
        noisy = step.threat.scaled(self.noise).around(x)
        theta = noisy.random_start(draws).detach().requires_grad_()
        with frozen(step.model, self.mode, full_precision=False):
            logits = logits_of(step.model, noisy.apply(theta))
            (gradient,) = torch.autograd.grad(cross_entropy(logits, goal).sum(), theta)
        reach = step.threat.scaled(self.noise + self.relative_step_size).around(x)
        length = training_pgd(1, relative_step_size=self.relative_step_size).step_sizes(step.threat.around(x))
        x_adv = laid_out_like(x, reach.apply(reach.step(theta.detach(), gradient, length)))
        once = torch.ones_like(step.y)
        none = torch.zeros_like(once, dtype=torch.bool)
        distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        correct = (~goal.reached(logits.detach())).long()
        return AttackResult(x_adv, none, distance, once, once.clone(), correct, none.clone())


@dataclass(frozen=True)
class FreeInner(Part):
    """Free-AT: one backward pass gives the gradients of the weights and of a perturbation that is kept.

    Each batch is replayed m times. Every replay trains on x' = box(x + delta); then delta <- project(delta + alpha
    sign grad_x' L), with the gradient of the same backward pass that the optimiser's step uses. delta has a row
    for each place in the batch; the next batch starts from it. Shafahi et al., "Adversarial training for free!",
    NeurIPS 2019, algorithm 1. Divide the epochs of a run by m. The attack maximises the method's own loss.

    Args:
        replays: m, at least 1; 8 on CIFAR-10, 4 on ImageNet.
        relative_step_size: alpha as a share of epsilon, positive; 1 in the paper.

    Raises:
        ValueError: a setting out of range.
    """

    shares_backward = True

    replays: int = 8
    relative_step_size: float = 1.0

    def __post_init__(self) -> None:
        if self.replays < 1:
            raise ValueError(f"replays must be at least 1, got {self.replays}")
        if not 0 < self.relative_step_size < math.inf:
            raise ValueError(f"relative_step_size must be positive, got {self.relative_step_size}")

    def __call__(self, step: Step) -> AttackResult:
        """Return the batch with the current perturbation, as a leaf that collects its gradient."""
        x, threat_set = step.x, step.threat.around(step.x)
        identity = threat_set.identity()
        theta = threat_set.project(identity + self._delta(step, identity)[: len(x)].to(identity))
        leaf = laid_out_like(identity, theta).detach().requires_grad_()
        none = torch.zeros_like(step.y)
        distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        x_adv = threat_set.apply(leaf)
        return AttackResult(
            x_adv,
            none.bool(),
            distance,
            none,
            none.clone(),
            none.clone(),
            none.bool(),
            theta=None if x_adv is leaf else leaf,
        )

    def after_backward(self, step: Step) -> None:
        """Move the perturbation along the images' gradient from the backward pass of the weights."""
        adversarial = step.adversarial
        leaf = adversarial.x_adv if adversarial.theta is None else adversarial.theta
        if leaf.grad is None:
            raise ValueError("the loss has no gradient to the adversarial images: Free-AT cannot attack through it")
        threat_set = step.threat.around(step.x)
        identity = threat_set.identity()
        length = training_pgd(1, relative_step_size=self.relative_step_size).step_sizes(threat_set)
        moved = threat_set.step(leaf.detach(), leaf.grad, length)
        self._delta(step, identity)[: len(identity)] = (moved - identity).detach()

    def _delta(self, step: Step, identity: Theta) -> Tensor:
        """The perturbation, with a row for each place of the largest batch so far."""
        memory = step.remember(self)
        delta = memory.get("delta", identity.new_zeros(0, *identity.shape[1:]))
        if len(delta) < len(identity):
            delta = torch.cat([delta, identity.new_zeros(len(identity) - len(delta), *identity.shape[1:])])
        memory["delta"] = delta
        return delta
