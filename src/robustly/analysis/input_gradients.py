"""Input gradients on clean images: size, structure, and distance to the boundary of the linearised model.

They are diagnostics, not evidence of robustness. Robust networks have small, smooth gradients that follow the edges
of the image (Rodríguez-Muñoz, Wang and Torralba, "Characterizing model robustness via natural input gradients",
ECCV 2024), but a network can have such gradients and not be robust.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from robustly.attacks.core.contract import Images, check_device, frozen, prepare
from robustly.attacks.core.linearisation import CANDIDATES, linearised_distances
from robustly.attacks.core.search import Search
from robustly.evaluation.parts import ALONE, Arrays, Crew, Task
from robustly.evaluation.recording import as_array
from robustly.models import as_classifier
from robustly.objectives import ClassificationGoal, cross_entropy
from robustly.threats.lp import ThreatModel

MEASURES = ("l1", "l2", "edges", "variation", "high_frequency", "concentration")
BINS = 24
ELEMENTS = 1 << 26
"""Largest number of values in the gradients of all classes of one batch."""
_BLUR_REACH = 4  # of the Gaussian, in standard deviations


@dataclass(frozen=True)
class GradientStatistics:
    """Measures of g = grad_x CE(x, y), one value per image.

    Args:
        correct: True where the model classifies the image correctly.
        l1: sum of |g|.
        l2: Euclidean length of g.
        edges: cosine between |g| (largest channel, blurred by a Gaussian of one pixel) and the magnitude of the
            image's Sobel gradient (of the mean of the channels), in [0, 1]; NaN where either is zero.
        variation: sum of |differences of neighbours| of g, divided by its l1 norm: 0 constant, about 4 a
            checkerboard; NaN where g is zero.
        high_frequency: share of g's energy at spatial frequencies above half of Nyquist, in [0, 1].
        concentration: Gini coefficient of |g|: 0 spread evenly, near 1 in few pixels.
        radius: distance to the nearest class of the linearised model, min_j (z_y - z_j) / ||grad (z_y - z_j)||_q
            with q dual to the threat's norm (for l0: of the number of values); 0 where the image is misclassified,
            infinite where all gradients are zero.
        nearest: that class; the label where the image is misclassified.
    """

    correct: Bool[Tensor, " n"]
    l1: Float[Tensor, " n"]
    l2: Float[Tensor, " n"]
    edges: Float[Tensor, " n"]
    variation: Float[Tensor, " n"]
    high_frequency: Float[Tensor, " n"]
    concentration: Float[Tensor, " n"]
    radius: Float[Tensor, " n"]
    nearest: Int64[Tensor, " n"]


def gradient_statistics(
    model: nn.Module,
    x: Images,
    y: Int64[Tensor, " n"],
    threat: ThreatModel,
    *,
    batch_size: int = 250,
    crew: Crew = ALONE,
) -> GradientStatistics:
    """Measure the input gradients of a model on clean images.

    Costs two forward passes and min(K - 1, 20) + 2 backward passes an image. With more than 21 classes, the radius
    is that of the 20 with the largest logits.

    Args:
        model: from images to logits; left unchanged.
        x: at least one image `(N, C, H, W)` in the threat's box.
        y: labels.
        threat: its norm is that of the radius.
        batch_size: largest number of images per batch.
        crew: the processes that share the batches.

    Raises:
        AttackError: images or labels that do not fit.
        ValueError: no image, or images that are not `(N, C, H, W)`.
    """
    x, _ = prepare(x, y, threat)
    model = as_classifier(model)
    check_device(model, x)
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(f"gradient statistics need at least one image (N, C, H, W), got {tuple(x.shape)}")
    size = min(batch_size, max(1, ELEMENTS // ((CANDIDATES + 1) * x[0].numel())))
    names = GradientStatistics.__dataclass_fields__

    def work(part: Arrays) -> Arrays:
        first = int(part["first"][0])
        found = _of_batch(model, x[first : first + size], y[first : first + size], threat)
        return {name: as_array(getattr(found, name)) for name in names}

    with frozen(model):
        firsts = [{"first": np.array([first])} for first in range(0, len(x), size)]
        parts = [*crew.share(Task("input gradients", extent=threat.extent_text), firsts, work)]
    joined = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])).to(x.device) for name in names}
    return GradientStatistics(**joined)


def _of_batch(model: nn.Module, x: Images, y: Int64[Tensor, " n"], threat: ThreatModel) -> GradientStatistics:
    search = Search(model, x, ClassificationGoal(y), threat)
    search.begin()
    everyone = torch.arange(len(x), device=x.device)
    gradient = search.value_and_grad(x, everyone, cross_entropy, inside=False).gradient
    rows = search.unbroken
    radius, nearest = x.new_zeros(len(x)), y.clone()
    if len(rows):
        others = search.clean.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
        classes = others[rows, : min(CANDIDATES, search.clean.shape[1] - 1)]
        least = linearised_distances(search, rows, classes).min(dim=1)
        radius[rows] = least.values.to(radius)
        nearest[rows] = classes.gather(1, least.indices[:, None])[:, 0]
    return GradientStatistics(
        correct=~search.broken,
        l1=gradient.abs().flatten(1).sum(1),
        l2=gradient.flatten(1).norm(dim=1),
        edges=edge_agreement(gradient, x),
        variation=relative_variation(gradient),
        high_frequency=high_frequency_share(gradient),
        concentration=gini(gradient.abs().flatten(1)),
        radius=radius,
        nearest=nearest,
    )


def edge_agreement(gradient: Float[Tensor, "n c h w"], image: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Cosine of the blurred |gradient| and the image's Sobel magnitude, in [0, 1]; NaN where one is zero."""
    reach = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, device=image.device, dtype=image.dtype)
    bell = (-reach.square() / 2).exp()
    bell = bell / bell.sum()
    strength = _filtered(gradient.abs().amax(1, keepdim=True), bell, bell)
    grey = image.mean(1, keepdim=True)
    gradient, smooth = image.new_tensor([-1.0, 0.0, 1.0]), image.new_tensor([1.0, 2.0, 1.0])
    edges = torch.hypot(_filtered(grey, gradient, smooth), _filtered(grey, smooth, gradient))
    strength, edges = strength.flatten(1), edges.flatten(1)
    length = strength.norm(dim=1) * edges.norm(dim=1)
    return torch.where(length > 0, (strength * edges).sum(1) / length, torch.nan)


def _filtered(maps: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Separable filter of odd length; values beyond the border equal those at the border."""
    sides = (len(across) // 2, len(across) // 2, len(down) // 2, len(down) // 2)
    padded = nn.functional.pad(maps, sides, mode="replicate")
    return nn.functional.conv2d(nn.functional.conv2d(padded, across.view(1, 1, 1, -1)), down.view(1, 1, -1, 1))


def relative_variation(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Anisotropic total variation divided by the l1 norm; NaN where the gradient is zero."""
    down = gradient.diff(dim=2).abs().flatten(1).sum(1)
    across = gradient.diff(dim=3).abs().flatten(1).sum(1)
    size = gradient.abs().flatten(1).sum(1)
    return torch.where(size > 0, (down + across) / size, torch.nan)


def high_frequency_share(gradient: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Share of the energy farther than half of Nyquist from frequency zero; NaN where the gradient is zero."""
    down = torch.fft.fftfreq(gradient.shape[2], device=gradient.device, dtype=gradient.dtype)
    across = torch.fft.fftfreq(gradient.shape[3], device=gradient.device, dtype=gradient.dtype)
    high = torch.hypot(down[:, None], across[None, :]) > 0.25  # cycles per pixel; Nyquist is one half
    power = torch.fft.fft2(gradient).abs().square().sum(1)
    total = power.sum((1, 2))
    return torch.where(total > 0, (power * high).sum((1, 2)) / total, torch.nan)


def gini(values: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Gini coefficient of values >= 0: 0 if all are equal, (d - 1) / d if all but one are 0; NaN if all are 0."""
    count = values.shape[1]
    ranks = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    weighted = ((2 * ranks - count - 1) * values.sort(dim=1).values).sum(1)
    total = values.sum(1)
    return torch.where(total > 0, weighted / (count * total), torch.nan)


def summarised(found: GradientStatistics, threat: ThreatModel) -> dict[str, Any]:
    """Medians, deciles and histograms of the statistics, as plain values.

    Args:
        found: the statistics.
        threat: the threat of the measurement; its epsilon is compared with the radii.
    """
    epsilon = threat.epsilon
    assert not isinstance(epsilon, Tensor)
    correct = found.radius[found.correct]
    return {
        "count": len(found.correct),
        "correct": int(found.correct.sum()),
        "zero_gradients": int((found.l1 == 0).sum()),
        "measures": {name: _spread(getattr(found, name)) for name in MEASURES},
        "radius": {
            **_spread(correct),
            "norm": threat.norm,
            "epsilon": float(epsilon),
            "beyond_epsilon": int((correct > float(epsilon)).sum()),
            "unreachable": int(correct.isinf().sum()),
        },
    }


def _spread(values: Tensor) -> dict[str, Any]:
    """Median, deciles and histogram of the finite values; the last bin also holds the one per cent above it."""
    finite = values[values.isfinite()].double().cpu()
    if len(finite) == 0:
        return {"count": 0, "median": None, "low": None, "high": None, "histogram": None}
    low, middle, high, end = finite.quantile(finite.new_tensor([0.1, 0.5, 0.9, 0.99])).tolist()
    top = end if end > 0 else 1.0
    counts = torch.histc(finite.clamp_max(top), bins=BINS, min=0.0, max=top)
    edges = torch.linspace(0, top, BINS + 1, dtype=torch.float64)
    histogram = {"edges": edges.tolist(), "counts": counts.int().tolist()}
    return {"count": len(finite), "median": middle, "low": low, "high": high, "histogram": histogram}
