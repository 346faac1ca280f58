"""Adversarial weight perturbation: the optimiser's step uses gradients at perturbed weights of higher loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.objectives import kl
from robustly.training.parts import Composition, Part, begins_too_late
from robustly.training.step import Step


@dataclass(frozen=True)
class WeightPerturbation(Part):
    """AWP: v = gamma |w| g / |g| for every weight matrix, g the gradient of a proxy loss; then the step at w + v.

    Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020, with one ascent
    step. Norms are Frobenius norms per tensor. Tensors of one dimension (biases, normalisation), frozen ones and
    those without gradient are not perturbed. The optimiser, weight decay included, works on w + v, and its update
    is then added to w: for plain SGD w <- w - eta grad L(w + v) - eta decay (w + v). Computing g takes one forward
    and one backward pass in train mode; batch-norm statistics are not updated. Guides are not perturbed.

    Args:
        gamma: relative size of the perturbation, at least 0; 0.01 in AT-AWP, 0.005 in TRADES-AWP; 0 turns AWP off.
        warm_up: epochs without perturbation; 0 in AT-AWP and 9 in TRADES-AWP (its epoch 10 is the first with).
        proxy: the loss whose gradient is g: the method's "own"; "adversarial", CE(z', y); or "trades",
            CE(z, y) + beta KL(p || p'). The latter two use the labels of the data with any label source.
        beta: of the proxy "trades", at least 0; 6 in the paper.

    Raises:
        ValueError: a setting out of range.
    """

    gamma: float = 0.01
    warm_up: float = 0.0
    proxy: Literal["own", "adversarial", "trades"] = "own"
    beta: float = 6.0

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("warm_up", self.warm_up), ("beta", self.beta)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, got {value}")

    def check(self, method: Composition) -> str | None:
        """Refuse a proxy that needs adversarial examples in a method without attack."""
        if self.proxy != "own" and method.inner is None:
            return f"proxy {self.proxy!r} needs adversarial examples, the method has no inner maximisation"
        return None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a warm-up that outlasts the run."""
        return begins_too_late("warm_up", self.warm_up, epochs, "nothing would be perturbed")

    def before_outer(self, step: Step, loss: Callable[[Step], Tensor]) -> None:
        """Perturb the weights; the original weights are kept until `after_step`."""
        if self.gamma == 0 or step.moment.time < self.warm_up:
            return
        matrices = {name: p for name, p in step.model.named_parameters() if p.ndim > 1 and p.requires_grad}
        value = loss(step.again()) if self.proxy == "own" else self._proxy_loss(step)
        gradients = torch.autograd.grad(value, list(matrices.values()), allow_unused=True)
        count = torch.tensor(float(len(step.y)), device=step.x.device)
        whole = step.global_mean(count)
        memory = step.remember(self)
        with torch.no_grad():
            for (name, weight), gradient in zip(matrices.items(), gradients, strict=True):
                if gradient is None:
                    continue
                mean = step.global_mean(gradient * count) / whole
                length = mean.norm()
                memory[f"original.{name}"] = weight.detach().clone()
                weight.add_(self.gamma * weight.norm() * torch.where(length > 0, mean / length, 0.0))
        torch.clear_autocast_cache()  # it has half-precision copies of the original weights

    def after_backward(self, step: Step) -> None:
        """Copy the perturbed weights. This is done late, when the memory of the activations is free again."""
        memory = step.remember(self)
        for name, weight in step.model.named_parameters():
            if f"original.{name}" in memory:
                memory[f"perturbed.{name}"] = weight.detach().clone()

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Restore the original weights, then add the optimiser's update."""
        memory = step.remember(self)
        for name, weight in step.model.named_parameters():
            if f"original.{name}" in memory:
                moved = weight - memory.pop(f"perturbed.{name}")
                weight.copy_(memory.pop(f"original.{name}").add_(moved))

    @torch.no_grad()
    def after_failure(self, step: Step) -> None:
        """Restore the original weights."""
        memory = step.remember(self)
        for name, weight in step.model.named_parameters():
            if f"original.{name}" in memory:
                weight.copy_(memory.pop(f"original.{name}"))

    def _proxy_loss(self, step: Step) -> Float[Tensor, ""]:
        if self.proxy == "adversarial":
            return F.cross_entropy(step.again("adversarial").adversarial_logits, step.y)
        again = step.again("clean", "adversarial")
        clean = F.cross_entropy(again.clean_logits, step.y)
        return clean + self.beta * kl(again.clean_logits, again.adversarial_logits).mean()
