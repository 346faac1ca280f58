"""First part of a method: where the labels come from."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from robustly.training.step import Labels, Step, outlasts


@dataclass(frozen=True)
class DataLabels:
    """The labels of the data set."""

    def __call__(self, step: Step) -> Labels:
        """Return the batch's own labels."""
        return Labels(step.y)


@dataclass(frozen=True)
class GuideLabels:
    """Dynamic labels: what a guide network, trained beside the model, says of the clean images now.

    The label is argmax g(x), ties to the lowest class; no gradient flows from the model's loss to the guide, which
    learns from CE(g(x), y) alone (DYNAT, Liu et al., arXiv 2408.13102, eqs. 4 to 6). The guide runs once per
    batch, in train mode, so that its batch-norm statistics see every batch once (the released code runs it again
    at every attack step).

    Args:
        smoothing: how much of a label's weight the model's loss spreads evenly over all classes, in [0, 1); 0.2
            with GAIRAT in the paper, where our reading is that it smooths the dynamic labels.
        warm_up: epochs at the start during which the model takes the data's labels, at least 0; 0 in the paper. A
            guide that has learned nothing calls everything one class, and on few images the model may never leave
            that class again (of three seeds of DYNAT-Inner-AWP on 3,500 digits one did not).
    """

    networks: ClassVar[tuple[str, ...]] = ("guide",)

    smoothing: float = 0.0
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.smoothing)
        if not self.warm_up >= 0:
            raise ValueError(f"warm_up must be at least 0, got {self.warm_up}")

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a warm-up that outlasts the run."""
        return outlasts("warm_up", self.warm_up, epochs, "the guide would never be asked")

    def __call__(self, step: Step) -> Labels:
        """Return the guide's predictions; the guide's own loss is the term "guide"."""
        logits = step.guide_logits
        own = {"guide": F.cross_entropy(logits, step.y, reduction="none")}
        known = step.y if step.moment.time < self.warm_up else logits.detach().argmax(1)
        return Labels(known, own, smoothing=self.smoothing)


@dataclass(frozen=True)
class SmoothedLabels:
    """The data's labels, `smoothing` of their weight spread evenly over all classes, the true one included.

    The attack still works against the hard label (Pang et al., "Bag of tricks for adversarial training", ICLR 2021,
    find 0.1 to 0.2 useful and more than 0.3 harmful).

    Args:
        smoothing: in [0, 1).
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        _check_smoothing(self.smoothing)

    def __call__(self, step: Step) -> Labels:
        """Return the data's labels, to be smoothed."""
        return Labels(step.y, smoothing=self.smoothing)


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
