"""Training images with Gaussian noise, and the logits of a network at them."""

import torch
from jaxtyping import Float
from torch import Tensor

from robustly.attacks.core.contract import Images
from robustly.training.step import Step


def noisy_copies(step: Step, sigma: float, copies: int) -> Images:
    """Copies x + sigma g of the images of a step, with independent standard normal g: `(N * copies, ...)`.

    The copies of one image follow each other. They are not clipped to the box, as the smoothed classifier of Cohen,
    Rosenfeld and Kolter (ICML 2019) does not clip. The noise is keyed by (seed, epoch, example id, copy).

    Args:
        step: the step.
        sigma: standard deviation of the noise, in the unit of the images.
        copies: copies of each image, at least 1.
    """
    draws = step.generator.fold("gaussian noise")
    noise = [draws.fold(copy).normal(*step.x.shape[1:]) for copy in range(copies)]
    noisy = step.x[:, None] + sigma * torch.stack(noise, dim=1).to(step.x)
    return noisy.flatten(0, 1)


def noisy_logits(step: Step, sigma: float, copies: int) -> Float[Tensor, "n m k"]:
    """The model's logits at noisy copies, in train mode, with gradient, by one forward pass of all copies.

    Args:
        step: the step.
        sigma: standard deviation of the noise, in the unit of the images.
        copies: m, copies of each image, at least 1.
    """
    logits = step.logits_at("model", noisy_copies(step, sigma, copies))
    return logits.view(len(step.y), copies, -1)
