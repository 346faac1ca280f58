"""The sentence on the cost of an evaluation before it starts."""

from torch import nn

from robustly.attacks.core.contract import frozen
from robustly.data import ImageData
from robustly.evaluation.batch_size import FEW, pass_seconds
from robustly.evaluation.suites.cost import announced_cost
from robustly.evaluation.suites.suite import Suite
from robustly.threats import Threat


def announcement(model: nn.Module, data: ImageData, threat: Threat, suite: Suite) -> str:
    """Passes and time that an evaluation takes at most, by a few timed passes.

    Args:
        model: the model.
        data: the images, on the model's device.
        threat: the threat.
        suite: the suite.
    """
    cost = announced_cost(suite, threat, len(data), data.num_classes, data.images[:1].numel())
    first = data.first(FEW)
    with frozen(model):
        seconds = pass_seconds(model, first) / max(len(first), 1)
    return (
        f"suite {suite.name}: at most {cost.total:,} passes for {len(data):,} images, {cost.per_image:,.0f} for "
        f"each, if no attack breaks any; about {_duration(cost.seconds(seconds))} here, less with each success"
    )


def _duration(seconds: float) -> str:
    """A duration with one unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
