"""Results of a network whose robust accuracy is known."""

import torch
from torch import nn

from robustly import ImageData, ThreatModel, evaluate
from robustly.api import Result
from robustly.evaluation import Suite


def images(count: int = 24) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = (pixels.flatten(1)[:, 0] > 127).long()
    return ImageData(pixels, labels, torch.arange(count) + 100, ("dark", "<bright>"), "memory")


def first_pixel() -> nn.Module:
    """Class 1 where the first pixel is above one half: robust to changes up to its distance from one half."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    weight = torch.zeros(2, 16)
    weight[1, 0] = 20.0
    net.load_state_dict({"1.weight": weight, "1.bias": torch.tensor([0.0, -10.0])})
    return net.eval()


def standing(radius: float, count: int = 24) -> int:
    """Number of images that no change of at most `radius` breaks."""
    return int(((images(count).images.flatten(1)[:, 0] / 255 - 0.5).abs() > radius).sum())


def result_of(suite: Suite | str, count: int = 24) -> Result:
    model, data = first_pixel(), images(count)
    evidence = evaluate(model, data, ThreatModel("linf", 0.1), suite, batch_size=count)
    return Result.of(evidence, model, data, suite if isinstance(suite, Suite) else None)
