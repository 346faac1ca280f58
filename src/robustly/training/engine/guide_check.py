"""Check of a guide before the run: whether its labels are better than chance on the training images."""

import torch

from robustly.data import ImageData
from robustly.statistics import Proportion
from robustly.training.engine.checkpoint import Row
from robustly.training.engine.job import Job
from robustly.training.labels.guide import GuideLabels

GUIDE = "guide"
IMAGES = 2000
"""Training images on which a guide is checked, evenly spaced, because a source may be ordered by class."""
WEAK = 0.6
"""Accuracy on the training labels below which a guide hurts more than it helps, as a rule of thumb."""


class GuideError(ValueError):
    """A guide whose labels are not better than chance."""


def is_checked(job: Job) -> bool:
    """Return True if the job has a guide that is trained before the run, beforehand or by `guide.pretrain`."""
    guide = job.networks.get(GUIDE)
    return guide is not None and (guide.has_weights or guide.pretrain > 0)


def checked_images(job: Job) -> ImageData:
    """The training images on which a guide is checked, without augmentation."""
    count, data = min(IMAGES, len(job.train)), job.train
    places = torch.arange(count, device=data.device) * len(data) // count
    return data.select(places)


def refuse_chance(accuracy: Proportion, classes: int) -> None:
    """Refuse a guide whose accuracy may be that of chance.

    Args:
        accuracy: its accuracy on training images.
        classes: number of classes.

    Raises:
        GuideError: the lower end of the 95 % interval is not above 1 / classes.
    """
    if accuracy.low <= 1 / classes:
        raise GuideError(
            f"guide: it classifies {100 * accuracy.share:.1f} % of {accuracy.count:,} training images correctly, "
            f"which is not clearly above chance ({100 / classes:.1f} % for {classes} classes): give it weights of "
            "this data, or train it for more epochs with guide.pretrain"
        )


def weak_words(accuracy: float) -> str:
    """A warning about a guide of low accuracy; empty at 60 % and above.

    Args:
        accuracy: its accuracy on training labels, in [0, 1].
    """
    if accuracy >= WEAK:
        return ""
    return (
        f"the guide classifies only {100 * accuracy:.1f} % of the training images correctly, and the model learns "
        "from its answers (guide.pretrain: epochs in which it is trained first)"
    )


def guide_warm_up(job: Job) -> float:
    """Epochs at the start in which the model does not learn from the guide."""
    labels = job.method.labels
    return labels.warm_up if isinstance(labels, GuideLabels) else 0.0


def weak_epoch(row: Row, warm_up: float) -> str:
    """A warning about a guide of low accuracy in an epoch in which the model learns from it; empty without one.

    Args:
        row: metrics of the epoch.
        warm_up: see `guide_warm_up`.
    """
    accuracy = row.get(f"{GUIDE}_accuracy")
    return "" if accuracy is None or float(row["epoch"] or 0) <= warm_up else weak_words(accuracy)
