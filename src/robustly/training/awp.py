"""Adversarial weight perturbation: the outer step is taken at weights that are worse than the model's own."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robustly.objectives import kl
from robustly.training.batch_norms import statistics_kept
from robustly.training.parameters import ParameterPart
from robustly.training.step import Step, outlasts

if TYPE_CHECKING:
    from robustly.training.method import Method


@dataclass(frozen=True)
class WeightPerturbation(ParameterPart):
    """AWP: v = gamma |w| g / |g| for every weight matrix, g the gradient of a proxy loss; then the step at w + v.

    Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020, with one ascent
    step. Norms are Frobenius norms per tensor; tensors of one dimension (biases, normalisation) stay,
    and so do frozen ones and those without gradient. The optimiser, weight decay included, sees w + v; what it adds
    to w + v is then added to w: for plain SGD w <- w - eta grad L(w + v) - eta decay (w + v). The look for g is a
    forward and backward pass in train mode that running statistics do not hear of. Guides are not perturbed.

    Args:
        gamma: relative size of the perturbation, at least 0; 0.01 in AT-AWP and 0.005 in TRADES-AWP. 0 is no AWP.
        warm_up: epochs without perturbation; 0 in AT-AWP and 9 in TRADES-AWP (its epoch 10 is the first with).
        proxy: the loss that g is the gradient of: the method's "own"; "adversarial", CE(z', y); or "trades",
            CE(z, y) + beta KL(p || p'). The latter two take the labels of the data, whatever the label source says.
        beta: of the proxy "trades", at least 0; 6 in the paper.

    Raises:
        ValueError: a setting out of range.
    """

    gamma: float = 0.01
    warm_up: float = 0.0
    proxy: Literal["own", "adversarial", "trades"] = "own"
    beta: float = 6.0

    def __post_init__(self) -> None:
        for name in ("gamma", "warm_up", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def check(self, method: "Method") -> str | None:
        """Refuse a proxy that asks for adversarial examples where there are none."""
        if self.proxy != "own" and method.inner is None:
            return f"proxy {self.proxy!r} asks for adversarial examples, the method has no inner maximisation"
        return None

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a warm-up that outlasts the run."""
        return outlasts("warm_up", self.warm_up, epochs, "nothing would be perturbed")

    def before_outer(self, step: Step, loss: Callable[[Step], Tensor]) -> None:
        """Perturb the weights; what they were is remembered until `after_step`."""
        if self.gamma == 0 or step.moment.time < self.warm_up:
            return
        matrices = {name: p for name, p in step.model.named_parameters() if p.ndim > 1 and p.requires_grad}
        value = loss(step.again()) if self.proxy == "own" else self._proxy_loss(step.again())
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
        torch.clear_autocast_cache()  # it holds half-precision copies of the weights as they were

    def after_backward(self, step: Step) -> None:
        """Note where the optimiser starts from; not earlier, as now the activations are gone."""
        memory = step.remember(self)
        for name, weight in step.model.named_parameters():
            if f"original.{name}" in memory:
                memory[f"perturbed.{name}"] = weight.detach().clone()

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Give the optimiser's movement to the weights as they were (without movement they are back bit by bit)."""
        memory = step.remember(self)
        for name, weight in step.model.named_parameters():
            if f"original.{name}" in memory:
                moved = weight - memory.pop(f"perturbed.{name}")
                weight.copy_(memory.pop(f"original.{name}").add_(moved))

    def _proxy_loss(self, step: Step) -> Float[Tensor, ""]:
        with statistics_kept(step.model):
            if self.proxy == "adversarial":
                return F.cross_entropy(step.adversarial_logits, step.y)
            clean = F.cross_entropy(step.clean_logits, step.y)
            return clean + self.beta * kl(step.clean_logits, step.adversarial_logits).mean()
