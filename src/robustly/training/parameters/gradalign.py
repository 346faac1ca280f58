"""Gradient alignment, a regulariser against catastrophic overfitting."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustly.attacks.core.contract import Images
from robustly.attacks.core.model_access import frozen_statistics
from robustly.training.parts import Part, Terms
from robustly.training.step import Step


@dataclass(frozen=True)
class GradAlign(Part):
    """lambda (1 - cos(grad_x CE(f(x), y), grad_x CE(f(x + eta), y))), eta a random point of the threat set.

    Andriushchenko and Flammarion, "Understanding and improving fast adversarial training", NeurIPS 2020. As in the
    released code, the first gradient is detached, the weights are trained through the second (double
    back-propagation), and the mean is over examples whose two gradients are not zero. Both gradients use the
    statistics of the batch; running statistics are not updated (the released code updates them). The method is for
    FGSM from the clean image.

    Args:
        weight: lambda, at least 0; exp(ln(10) epsilon / 8 + ln 0.02) with epsilon in 255ths on CIFAR-10: 0.2 at
            8/255 and 2 at 16/255. 0 leaves its passes out.

    Raises:
        ValueError: a negative weight.
    """

    weight: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be at least 0, got {self.weight}")

    def check_sharding(self) -> str | None:
        """Refuse weights in shards, through which gradients are not differentiated."""
        return "differentiates the gradient of the network"

    def extra_terms(self, step: Step) -> Terms:
        """Return the term "alignment"."""
        if self.weight == 0:
            return {}
        threat_set = step.threat.around(step.x)
        noisy = threat_set.apply(threat_set.random_start(step.generator.fold("gradalign")))
        with frozen_statistics(step.model):
            here = _input_gradient(step, step.x, create_graph=False).detach()
            there = _input_gradient(step, noisy, create_graph=True)
        # scaled, because squares of small gradients underflow; a cosine does not depend on the scale
        here, there = (gradient / _largest(gradient) for gradient in (here, there))
        both = (here.abs().amax(1) > 0) & (there.abs().amax(1) > 0)
        share = step.batch_mean(both.to(here.dtype)).clamp_min(torch.finfo(here.dtype).tiny)
        # a norm has no gradient at 0, so these examples are removed first
        kept_here, kept_there = here[both], there[both]
        cosine = F.cosine_similarity(kept_here, kept_there, dim=1, eps=0.0)
        term = there.new_zeros(len(both)).index_put((both.nonzero()[:, 0],), self.weight * (1 - cosine))
        return {"alignment": term / share}


def _largest(gradient: Tensor) -> Tensor:
    largest = gradient.detach().abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def _input_gradient(step: Step, x: Images, *, create_graph: bool) -> Tensor:
    """Gradient of each example's cross-entropy with respect to the input, `(N, D)`."""
    point = x.detach().requires_grad_()
    logits = step.logits_at("model", point)
    loss = F.cross_entropy(logits, step.labels.hard, reduction="sum")
    return torch.autograd.grad(loss, point, create_graph=create_graph)[0].flatten(1)
