"""First part of a method: where the labels come from."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from robustly.training.step import Labels, LabelSource, Step


@dataclass(frozen=True)
class DataLabels:
    """The labels of the data set."""

    needs_guide: ClassVar[bool] = False

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
    """

    needs_guide: ClassVar[bool] = True

    def __call__(self, step: Step) -> Labels:
        """Return the guide's predictions; the guide's own loss is the term "guide"."""
        logits = step.guide_logits
        return Labels(logits.detach().argmax(1), {"guide": F.cross_entropy(logits, step.y, reduction="none")})


LABEL_SOURCES: dict[str, type[LabelSource]] = {"data": DataLabels, "guide": GuideLabels}
