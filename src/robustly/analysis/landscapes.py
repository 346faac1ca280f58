"""Loss surfaces: over two directions of the image, and over two directions of the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import Images, check_device, check_output, frozen, prepare
from robustly.attacks.core.model_access import input_gradient, logits_of
from robustly.evaluation.parts import ALONE, Arrays, Crew, Task
from robustly.models import as_classifier
from robustly.models.divided import DividedModel
from robustly.models.outputs import logits_in
from robustly.models.weight_directions import filter_normalised
from robustly.objectives import ClassificationGoal, cross_entropy, margin
from robustly.randomness import KeyedGenerator, derive_seed
from robustly.threats.lp import ThreatModel

POINTS = 21


@dataclass(frozen=True)
class Landscape:
    """A loss surface on a square grid: `[i, j]` is `axis[i]` along the second direction, `axis[j]` the first.

    Args:
        axis: coordinates of both directions, ascending, 0 in the middle.
        loss: cross-entropy.
        misclassified: share of the images that are misclassified, in [0, 1].
        margin: max_{j != y} z_j - z_y, for the surface of a single image; above 0 it is misclassified.
    """

    axis: Float[Tensor, " s"]
    loss: Float[Tensor, "s s"]
    misclassified: Float[Tensor, "s s"]
    margin: Float[Tensor, "s s"] | None = None

    def smoothness(self) -> dict[str, float]:
        """Roughness of the surface, and its misclassified share.

        `roughness` is the mean of |second differences| of the loss along both axes, in nats per grid step squared
        (0 for a plane), `largest_roughness` the largest, `misclassified_share` the mean of `misclassified`.
        """
        bends = torch.cat([self.loss.diff(n=2, dim=d).abs().flatten() for d in (0, 1)]).double()
        return {
            "roughness": float(bends.mean()),
            "largest_roughness": float(bends.max()),
            "misclassified_share": float(self.misclassified.double().mean()),
        }

    def plain(self) -> dict[str, Any]:
        """Surface as plain lists of at most seven digits, with its smoothness."""
        grids = {"loss": self.loss, "misclassified": self.misclassified, "margin": self.margin}
        rows = {name: None if grid is None else _rounded(grid) for name, grid in grids.items()}
        return {"axis": [round(float(value), 7) for value in self.axis], **rows, **self.smoothness()}


def input_landscapes(
    model: nn.Module,
    x: Images,
    y: Int64[Tensor, " n"],
    threat: ThreatModel,
    generator: KeyedGenerator,
    *,
    extent: float = 2.0,
    points: int = POINTS,
    crew: Crew = ALONE,
) -> list[Landscape]:
    """Loss L(x + a s + b r) around each of some images.

    s is the direction of the gradient of the cross-entropy, r a direction of independent random signs, both of
    length epsilon in the threat's norm: under linf s = epsilon sign(g); under l2 and l1 g scaled to epsilon; under
    l0 both have the Euclidean length sqrt(epsilon). Near the border of the box the grid leaves the box. It is not
    clamped, because clamping would bend the surface where the model does not.

    Args:
        model: from images to logits; left unchanged.
        x: images `(N, ...)` in the threat's box.
        y: labels.
        threat: one epsilon for all.
        generator: random numbers of the images.
        extent: largest |a| and |b|, in epsilons.
        points: of the grid, on each axis; odd and at least 3.
        crew: the processes that share the work.

    Raises:
        AttackError: images or labels that do not fit.
        ValueError: an invalid grid.
    """
    axis = _axis(extent, points, x)
    x, _ = prepare(x, y, threat)
    goal = ClassificationGoal(y)
    model = as_classifier(model)
    check_device(model, x)
    assert not isinstance(threat.epsilon, Tensor)
    with frozen(model):
        here = x.clone().requires_grad_()
        given = check_output(logits_of(model, here), goal)
        gradient = input_gradient(cross_entropy(given, goal).sum(), here)
        ahead, aside = _directions(gradient, threat.norm, float(threat.epsilon), generator)

        def work(part: Arrays) -> Arrays:
            i = int(part["image"][0])
            found = _around(model, x[i], ahead[i], aside[i], goal.y[i], axis)
            assert found.margin is not None
            own = {"loss": found.loss, "misclassified": found.misclassified, "margin": found.margin}
            return {name: values.numpy() for name, values in own.items()}

        images = [{"image": np.array([i])} for i in range(len(x))]
        parts = crew.share(Task("input landscape", extent=threat.extent_text), images, work)
        return [
            Landscape(axis.cpu(), **{name: torch.from_numpy(grid) for name, grid in one.items()}) for one in parts
        ]


def _directions(gradient: Images, norm: str, epsilon: float, generator: KeyedGenerator) -> tuple[Images, Images]:
    random = torch.where(generator.uniform(*gradient.shape[1:]) < 0.5, -1.0, 1.0).to(gradient)
    if norm == "linf":
        return epsilon * gradient.sign(), epsilon * random
    length = epsilon**0.5 if norm == "l0" else epsilon
    scaled = []
    for direction in (gradient, random):
        size = torch.linalg.vector_norm(direction.flatten(1), 1 if norm == "l1" else 2, dim=1)
        shape = (-1,) + (1,) * (direction.ndim - 1)
        scaled.append(direction * (length / size.clamp_min(torch.finfo(size.dtype).tiny)).view(shape))
    return scaled[0], scaled[1]


def _around(model: nn.Module, x: Tensor, ahead: Tensor, aside: Tensor, y: Tensor, axis: Tensor) -> Landscape:
    columns, total = len(axis), len(axis) ** 2
    shape = (columns,) + (1,) * x.ndim
    logits = []
    for b in axis:  # a row of the grid is a batch
        with torch.no_grad():
            logits.append(logits_of(model, x + axis.view(shape) * ahead + b * aside))
    goal = ClassificationGoal(y.expand(total))
    given = torch.cat(logits)
    loss, gap = cross_entropy(given, goal), margin(given, goal)
    wrong = (given.argmax(1) != goal.y).to(loss.dtype)
    loss, wrong, gap = (values.view(columns, columns).cpu() for values in (loss, wrong, gap))
    return Landscape(axis.cpu(), loss, wrong, gap)


def weight_landscape(
    model: nn.Module,
    x: Images,
    y: Int64[Tensor, " n"],
    *,
    seed: int = 0,
    extent: float = 1.0,
    points: int = POINTS,
    crew: Crew = ALONE,
) -> Landscape:
    """Mean loss of a batch over two filter-normalised random directions of the weights.

    Li et al., "Visualizing the loss landscape of neural nets" (NeurIPS 2018): Gaussian directions, each filter (of
    a convolution) and each neuron (of a linear layer) scaled to the length of the model's own. Biases and the
    parameters of normalisations are not moved. Batch normalisation is in evaluation mode. The model itself is never
    written to: it is called with other weights in place of its own.

    Args:
        model: from images to logits.
        x: one batch `(N, ...)`, N >= 1.
        y: labels.
        seed: of the directions.
        extent: largest coordinate of both axes, in lengths of the filters.
        points: of the grid, on each axis; odd and at least 3.
        crew: the processes that share the work.

    Raises:
        AttackError: labels that do not fit.
        ValueError: an invalid grid; no image.
    """
    axis = _axis(extent, points, x)
    if len(x) == 0:
        raise ValueError("a landscape of the weights needs at least one image")
    model = as_classifier(model)
    check_device(model, x)
    seeds = derive_seed(seed, "landscape", "a"), derive_seed(seed, "landscape", "b")
    logits_at = _walk(model, seeds)
    goal, loss, wrong = ClassificationGoal(y), torch.zeros(len(axis), len(axis)), torch.zeros(len(axis), len(axis))
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), x.dtype)
    half, x = dtype in (torch.float16, torch.bfloat16), x.to(dtype)

    def work(part: Arrays) -> Arrays:
        i = int(part["row"][0])
        for j, a in enumerate(axis.tolist()):
            logits = logits_at(x, (a, axis.tolist()[i]))
            logits = check_output(logits.float() if half else logits, goal)
            loss[i, j] = cross_entropy(logits, goal).mean().cpu()
            wrong[i, j] = (logits.argmax(1) != goal.y).double().mean().cpu()
        return {"loss": loss[i].numpy(), "wrong": wrong[i].numpy()}

    with frozen(model), torch.no_grad():
        rows = [{"row": np.array([i])} for i in range(len(axis))]
        parts = [*crew.share(Task("weight landscape"), rows, work)]
    loss, wrong = (torch.from_numpy(np.stack([part[name] for part in parts])) for name in ("loss", "wrong"))
    return Landscape(axis.cpu().to(loss.dtype), loss, wrong)


Walk = Callable[[Tensor, tuple[float, float]], Tensor]
"""Logits of inputs, with weights that are moved along two directions by two coefficients."""


def _walk(model: nn.Module, seeds: tuple[int, int]) -> Walk:
    if isinstance(model, DividedModel):
        return partial(model.logits_beside, seeds)
    own = {name: value.detach() for name, value in model.named_parameters()}
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    first, second = (
        {name: found for name, value in own.items() if (found := filter_normalised(name, value, seed)) is not None}
        for seed in seeds
    )

    def logits_at(x: Tensor, along: tuple[float, float]) -> Tensor:
        a, b = along
        moved = {name: own[name] + a * first[name] + b * second[name] for name in first}
        return logits_in(torch.func.functional_call(model, {**own, **moved, **buffers}, (x,)))

    return logits_at


def _axis(extent: float, points: int, like: Tensor) -> Tensor:
    if points < 3 or points % 2 == 0 or not extent > 0:
        raise ValueError(
            f"a landscape needs an odd number of points, at least 3, and an extent above 0, got {points}"
        )
    return torch.linspace(-extent, extent, points, device=like.device, dtype=like.dtype)


def _rounded(grid: Tensor) -> list[list[float | None]]:
    """Rows of plain numbers; values that are not finite become None."""
    return [[float(f"{v:.6g}") if abs(v) < float("inf") else None for v in row] for row in grid.tolist()]
