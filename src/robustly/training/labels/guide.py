"""Dynamic labels from a guide network, trained beside the model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from robustly.training.labels.data import check_smoothing
from robustly.training.parts import Part, begins_too_late
from robustly.training.step import Labels, Step


@dataclass(frozen=True)
class GuideLabels(Part):
    """Dynamic labels: the current predictions of a guide network, trained beside the model, on the clean images.

    The label is argmax g(x), ties to the lowest class. No gradient flows from the model's loss to the guide, which
    is trained by CE(g(x), y) only (DYNAT, Liu et al., arXiv 2408.13102, eqs. 4 to 6). The guide runs once per batch
    in train mode, so that its batch-norm statistics are updated once per batch (the released code runs it again at
    every attack step).

    Args:
        smoothing: share of a label's weight that the model's loss spreads evenly over all classes, in [0, 1); 0.2
            with GAIRAT in the paper, which we read as smoothing of the dynamic labels.
        warm_up: epochs at the start with the labels of the data, at least 0; 0 in the paper. An untrained guide
            predicts one class for all images, and on few images the model may collapse to that class (one of three
            seeds of DYNAT-Inner-AWP on 3,500 digits did).
        confidence: the guide's largest probability from which its prediction is the label, in [0, 1]; below it, the
            label is that of the data. 0 in the paper: always the guide's.
    """

    reads = ("guide",)

    smoothing: float = 0.0
    warm_up: float = 0.0
    confidence: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.smoothing)
        if not self.warm_up >= 0:
            raise ValueError(f"warm_up must be at least 0, got {self.warm_up}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence}")

    def check_epochs(self, epochs: int) -> str | None:
        """Refuse a warm-up that outlasts the run."""
        return begins_too_late("warm_up", self.warm_up, epochs, "the guide's labels would never be used")

    def __call__(self, step: Step) -> Labels:
        """Return the guide's predictions; its loss is the term "guide"."""
        logits = step.guide_logits
        own = {"guide": F.cross_entropy(logits, step.y, reduction="none")}
        if step.moment.time < self.warm_up:
            return Labels(step.y, own, smoothing=self.smoothing)
        hard = logits.detach().argmax(1)
        if self.confidence > 0:
            sure = logits.detach().softmax(1).amax(1) >= self.confidence
            hard = torch.where(sure, hard, step.y)
        return Labels(hard, own, smoothing=self.smoothing)
